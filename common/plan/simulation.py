"""The part of a plan that says how one machine stands in for the hospitals."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, cast

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from common.plan_fields import Count, Fraction, Positive, Slug, Strict, TaskName


class CurveSchedule(StrEnum):
    """How long a lone hospital trains on the first of its questions.

    `steps`: as many optimizer steps as on all of them. `passes`: as many passes as the stage says.
    """

    STEPS = "steps"
    PASSES = "passes"


class ScoredSplit(StrEnum):
    """Which questions stand in for the sites' test questions in a simulation."""

    TEST = "test"
    VALIDATION = "validation"


class Simulation(Strict):
    """How one machine stands in for the hospitals; real sites ignore it."""

    #: A data source by its name (simulation/data_sources.py), checked where a simulation starts.
    data: Slug
    #: Methods run beside the plan's own, on the same data; `local` and `pooled` are the plan's
    #: own method at each hospital alone, and on all hospitals' data in one place.
    compare: tuple[Slug, ...] = ()
    #: The learning rate of every stage of some of them, in place of the stage's own.
    learning_rates: Mapping[Slug, Positive] = Field({})
    #: With `local`: every hospital trains on so many of each task's questions, too.
    curve: tuple[Count, ...] = ()
    curve_schedule: CurveSchedule = CurveSchedule.STEPS
    #: Share of each task's usual training questions.
    train_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    #: The same for some tasks, in its place.
    train_fractions: Mapping[TaskName, Annotated[float, Field(gt=0, le=1)]] = Field({})
    #: Most test questions of a hospital and task; null takes all.
    test_questions: Count | None = None
    label_noise: Fraction = 0.0
    #: How many hospitals' data each of a task's sites holds, in their order: [3] pools at one
    #: site what [1, 1, 1] leaves at three. Null deals one to each.
    deal: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    #: With `validation` sites are scored on questions that are neither for training nor for the
    #: test: for choosing settings, such as a learning rate.
    split: ScoredSplit = ScoredSplit.TEST

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is not asked for, so that such plans keep their digest."""
        found = cast(dict[str, Any], whole(self))
        off = {name for name in _LEFT_OUT if not getattr(self, name)}
        if not self.curve:
            off.add("curve_schedule")
        if self.split is ScoredSplit.TEST:
            off.add("split")
        return {name: value for name, value in found.items() if name not in off}


#: Fields that a serialized plan does not have where they are empty.
_LEFT_OUT = ("learning_rates", "curve")
#: Fields on which the hospitals' data do not depend.
NOT_OF_DATA = frozenset({"compare", "learning_rates", "curve", "curve_schedule"})
