"""What differs between simulated hospitals, and how those without training data fare."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HospitalTask:
    """What one simulated hospital holds of a task.

    Attributes:
        train, test: numbers of questions.
        wrong_labels: training questions that were given a wrong answer on purpose.
        answers: the training questions by answer, the commonest first; of a hospital that
            trains nothing the test questions.
    """

    hospital: str
    task: str
    train: int
    test: int
    wrong_labels: int
    answers: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedHospital:
    """One simulated hospital, as it was drawn.

    Attributes:
        unseen: whether it trains nothing and only gets the bank.
        scanner: its settings by name; None where pictures are left as they are.
    """

    name: str
    unseen: bool
    scanner: Mapping[str, float] | None
    tasks: tuple[HospitalTask, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HospitalScores:
    """The scores at one hospital, on its own test questions. T is the number of stages.

    Attributes:
        questions: its test questions of each stage's task; 0 where it has none.
        zero_shot: the base model's score. Shape (T,); None where it was not asked.
        last: the score after the last stage, each in the measure of its stage. Shape (T,).
    """

    hospital: str
    questions: tuple[int, ...]
    zero_shot: tuple[float | None, ...]
    last: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnseenReport:
    """How the bank fares at hospitals that trained nothing, and beside them at those that did."""

    hospitals: tuple[HospitalScores, ...]
    sites: tuple[HospitalScores, ...]
