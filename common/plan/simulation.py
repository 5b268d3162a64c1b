"""The part of a plan that says how one machine stands in for the hospitals."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, cast

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from common.plan_fields import (
    MOST_NAMED,
    Concentration,
    Count,
    Fraction,
    Positive,
    Slug,
    Strict,
    TaskName,
)

#: Most hospitals that a simulation deals to its sites, and names: each one's data are made.
MOST_HOSPITALS: Final = MOST_NAMED
#: Most reference pairs that a simulation makes: all their pictures are in memory, 12 kB each.
MOST_PAIRS: Final = 100_000
_MOST_COMPARED: Final = 1000


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


class How(StrEnum):
    """How pairs are retrieved.

    `hierarchical` is PRIMED's. `dense` and `bm25` ask all questions alike, by one score alone,
    with as many places for pairs. `uniform` asks for the domains by name, equal shares, the same
    for every stage.
    """

    HIERARCHICAL = "hierarchical"
    DENSE = "dense"
    BM25 = "bm25"
    UNIFORM = "uniform"


class SimulatedReference(Strict):
    """The public reference pairs that a simulation makes (docs/retrieval.md)."""

    #: Drawn phantoms and crops of the packaged pictures' training regions, with captions.
    #: A stage trains on at least two.
    pairs: Annotated[int, Field(ge=2, le=MOST_PAIRS)] = 4000
    how: How = How.HIERARCHICAL
    #: Pairs of each question on an earlier class, on a seen domain, and on another.
    task: Count = 20
    domain: Count = 5
    other: Count = 5


class UnseenHospital(Strict):
    """A hospital that trains nothing and only gets the bank, with test questions of its own."""

    name: Slug
    #: The tasks that it asks about; null: every task of the plan.
    tasks: Annotated[tuple[TaskName, ...], Field(min_length=1, max_length=MOST_NAMED)] | None = None


class HospitalDifferences(Strict):
    """How the simulated hospitals differ; each difference is off by default.

    What is drawn for a hospital depends on the plan's seed and the hospital's name.
    """

    #: The hospitals that `deal` gives to the sites, in its order; without `deal` every site is
    #: a hospital of its own, and this is null.
    names: Annotated[tuple[Slug, ...], Field(min_length=1, max_length=MOST_HOSPITALS)] | None = None
    #: Strength of the scanners through which each hospital's training and test pictures are
    #: seen: gamma, noise, blur, colour and resolution.
    scanners: Fraction = 0.0
    #: Concentration of the Dirichlet from which the shares of a task's answers are drawn.
    label_skew: Concentration | None = None
    #: Whether a hospital's test questions are skewed as its training questions are.
    skewed_tests: bool = False
    #: Each hospital's share of a task's training questions; shared anew where a task has fewer.
    size_shares: (
        Annotated[
            Mapping[Slug, Annotated[float, Field(gt=0, le=1)]], Field(max_length=MOST_HOSPITALS)
        ]
        | None
    ) = None
    #: The same shares drawn from a Dirichlet of this concentration.
    size_skew: Concentration | None = None
    #: Share of a hospital's training questions whose answer is replaced by a wrong one.
    noisy_labels: Mapping[Slug, Fraction] = Field({}, max_length=MOST_HOSPITALS)
    unseen: tuple[UnseenHospital, ...] = Field((), max_length=MOST_HOSPITALS)


class Simulation(Strict):
    """How one machine stands in for the hospitals; real sites ignore it."""

    #: A data source by its name (simulation/data_sources.py), checked where a simulation starts.
    data: Slug
    #: Methods run beside the plan's own, on the same data; `local` and `pooled` are the plan's
    #: own method at each hospital alone, and on all hospitals' data in one place.
    compare: tuple[Slug, ...] = Field((), max_length=_MOST_COMPARED)
    #: The learning rate of every stage of some of them, in place of the stage's own.
    learning_rates: Mapping[Slug, Positive] = Field({}, max_length=_MOST_COMPARED)
    #: With `local`: every hospital trains on so many of each task's questions, too.
    curve: tuple[Count, ...] = Field((), max_length=_MOST_COMPARED)
    curve_schedule: CurveSchedule = CurveSchedule.STEPS
    #: Share of each task's usual training questions.
    train_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    #: The same for some tasks, in its place.
    train_fractions: Mapping[TaskName, Annotated[float, Field(gt=0, le=1)]] = Field(
        {}, max_length=MOST_NAMED
    )
    #: Most test questions of a hospital and task; null takes all.
    test_questions: Count | None = None
    label_noise: Fraction = 0.0
    #: How many hospitals' data each of a task's sites holds, in their order: [3] pools at one
    #: site what [1, 1, 1] leaves at three. Null deals one to each.
    deal: Annotated[tuple[Count, ...], Field(min_length=1, max_length=MOST_NAMED)] | None = None
    #: With `validation` sites are scored on questions that are neither for training nor for the
    #: test: for choosing settings, such as a learning rate.
    split: ScoredSplit = ScoredSplit.TEST
    #: Reference pairs for a method that trains on them, too; null makes none.
    reference: SimulatedReference | None = None
    #: How the hospitals differ; null: as far as the data source makes them.
    hospitals: HospitalDifferences | None = None

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
_LEFT_OUT = ("learning_rates", "curve", "reference", "hospitals")
#: Fields on which the hospitals' data do not depend.
NOT_OF_DATA = frozenset({"compare", "learning_rates", "curve", "curve_schedule"})
