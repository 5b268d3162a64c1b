"""The data sources: what can stand in for the hospitals' data in a simulation, found by name.

A source is one module that holds a `DataSource` under the name SOURCE. Those of this repository
are listed here; an installed package adds its own by an entry point of the group
`fedmslora.data_sources`, whose value is `module:SOURCE`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Final, Protocol

from common.errors import PlanError
from common.plan_fields import Modality
from simulation.task_folder.write_task import Question

GROUP: Final = "fedmslora.data_sources"
#: Loaded when they are asked for: the pictures need packages that the phantoms do not.
BUILT_IN: Final[Mapping[str, str]] = {
    "pictures": "simulation.pictures.source:SOURCE",
    "phantoms": "simulation.phantoms.source:SOURCE",
    "classes": "simulation.class_tasks.source:SOURCE",
}


class MakeQuestions(Protocol):
    """Makes the questions of one simulated hospital."""

    def __call__(
        self, task: str, position: int, hospitals: int, seed: int
    ) -> tuple[list[Question], list[Question]]:
        """Return the hospital's training and test questions; equal arguments give equal bytes.

        No image group is in both. Another seed gives other pictures, and no training picture of
        one seed is a test picture of another: a hospital that is to have more of an answer gets
        training questions of several seeds.

        Args:
            task: one of the source's tasks.
            position: which of the task's hospitals this is, from 0.
            hospitals: among how many the task's questions are divided.
            seed: the plan's.
        """
        ...


@dataclass(frozen=True, slots=True)
class DataSource:
    """One kind of simulated data.

    Attributes:
        tasks: the modality of each task, by the name that a plan's stages give as `task`.
        questions: makes a hospital's share of a task.
        validation: the same with validation questions in place of the test's; none of their
            pictures or regions is for training or for the test. None for a source that has none.
    """

    tasks: Mapping[str, Modality]
    questions: MakeQuestions
    validation: MakeQuestions | None = None


def data_source(name: str, plan: str) -> DataSource:
    """Load the source that a plan names as `simulation.data`.

    Args:
        plan: names the plan in an error.

    Raises:
        PlanError: there is none of this name, or it can't be loaded.
    """
    points = {point.name: point for point in entry_points(group=GROUP)}
    points |= {key: EntryPoint(key, value, GROUP) for key, value in BUILT_IN.items()}
    if name not in points:
        known = ", ".join(map(repr, dict.fromkeys((*BUILT_IN, *points))))
        raise PlanError(f"{plan}: simulation.data: found {name!r}, expected one of {known}")
    try:
        source = points[name].load()
    except (ImportError, AttributeError) as error:
        raise PlanError(
            f"{plan}: simulation.data: found {points[name].value} under {name!r}, which can't be "
            f"loaded ({error})"
        ) from None
    if not isinstance(source, DataSource):
        raise PlanError(
            f"{plan}: simulation.data: found {points[name].value} under {name!r}, "
            "expected a DataSource"
        )
    return source
