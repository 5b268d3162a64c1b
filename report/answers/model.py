"""What single answers show, where they are at hand: in a simulation, or at the site itself.

None of it crosses the wire; a coordinator's report of real sites has scores alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from common.plan.plan import Metric
from report.learned.intervals import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """A score minus the better of the base model's and the majority answer's.

    Attributes:
        estimate: with a 95 % interval.
        strict: with an interval at 5 % divided by the number of tasks (Bonferroni).
    """

    estimate: Estimate
    strict: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFigures:
    """One site's own questions of a task, and its score after the last stage that asked them."""

    site: str
    questions: int
    pictures: int
    score: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """How often each true answer got which answer.

    Attributes:
        question: its text; None for all closed questions of a task together.
        truths: the rows: true answers, the commonest first; equal ones after normalization are one.
        answers: the columns: the same, and the other answers that were given, the rarest summed
            up under OTHERS.
        counts: shape (truths, answers).
    """

    question: str | None
    truths: tuple[str, ...]
    answers: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        shape = f"({len(self.truths)}, {len(self.answers)})"
        if len(self.counts) != len(self.truths) or any(
            len(row) != len(self.answers) for row in self.counts
        ):
            raise ValueError(f"counts: found another shape than {shape}, truths and answers")
        if any(min(row, default=0) < 0 or sum(row) == 0 for row in self.counts):
            raise ValueError("counts: found a negative number or a truth without an answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFigures:
    """One task's answers.

    Attributes:
        task: its stage's name.
        scores: by moment (LEARNED, LAST, ROUTED), in the task's measure; without what was not
            evaluated.
        gains: likewise, but of ROUTED.
        by_site: empty with a measure that single answers don't give.
        confusion: of the closed questions with few answers, after the last stage.
    """

    task: str
    questions: int
    pictures: int
    scores: Mapping[str, Estimate]
    gains: Mapping[str, Gain]
    by_site: tuple[SiteFigures, ...]
    confusion: tuple[Confusion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFigures:
    """A run's answers.

    Attributes:
        mean_gains: by measure, and by moment (LEARNED, LAST), over all tasks of the measure.
    """

    tasks: tuple[TaskFigures, ...]
    mean_gains: Mapping[Metric, Mapping[str, Estimate]]


#: Moments: after the task's own stage, after the last one, and there with the stage chosen for
#: each picture. And what knows nothing: the base model, and the commonest training answer.
LEARNED, LAST, ROUTED, BASE, MAJORITY = "learned", "last", "routed", "base", "majority"
#: The column of a confusion table for the rarest answers that are no true answer.
OTHERS = "others"
