"""What is measured on a result: scores when learned and at the end, and differences of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import fsum
from statistics import stdev

from common.plan import Plan
from simulation.experiments.lab import Result
from simulation.results.cells import Cell


class Moment(StrEnum):
    """When a task is scored."""

    LEARNED = "when learned"
    FINAL = "at the end"


@dataclass(frozen=True, slots=True)
class TaskScore:
    """A task's measure in one run, and that of each answer (empty where not kept); fractions."""

    score: float
    answers: tuple[float, ...]


#: By the name of the stage.
Scores = Mapping[str, TaskScore]


def never_changes(plan: Plan) -> bool:
    """Whether a task is answered at the end by the very model that was there when it was learned.

    So it is for a sum of adapters, from which nothing is taken and to which nothing is added
    for a task that is known; and for a base model that learns nothing.
    """
    if not plan.method.trains:
        return True
    tasks = range(len(plan.stages))
    return all(
        plan.answering_stages(task, tasks[-1]) == plan.answering_stages(task, task)
        for task in tasks
    )


def judged_when_learned(plan: Plan) -> bool:
    """False for joint training: no stage of it has a task of its own."""
    return not plan.method.trains_on_all_tasks


def scores_of(result: Result, moment: Moment) -> Scores:
    """Each task's score at this moment; a task that was not scored then is left out."""
    if moment is Moment.LEARNED and not judged_when_learned(result.plan):
        return {}
    found: dict[str, TaskScore] = {}
    for task, stage in enumerate(result.plan.stages):
        score = _score(result, task, moment)
        if score is not None:
            found[stage.name] = score
    return found


def _score(result: Result, task: int, moment: Moment) -> TaskScore | None:
    last = len(result.plan.stages) - 1
    learned = TaskScore(result.learned[task], result.answers[task])
    if moment is Moment.LEARNED:
        return learned
    final = result.final[task]
    if final is not None:
        if result.final_answers:
            return TaskScore(final, result.final_answers[task])
        return TaskScore(final, result.answers[task] if task == last else ())
    return learned if never_changes(result.plan) else None


def mean_learned(result: Result) -> float | None:
    """The mean over tasks of the score when learned."""
    return _mean_score(result, Moment.LEARNED)


def mean_final(result: Result) -> float | None:
    """The mean over tasks of the score after the last stage."""
    return _mean_score(result, Moment.FINAL)


def _mean_score(result: Result, moment: Moment) -> float | None:
    scores = scores_of(result, moment)
    # A mean of some of the tasks would be compared with a mean of all.
    if len(scores) < len(result.plan.stages):
        return None
    return mean([one.score for one in scores.values()])


def earlier_tasks(plan: Plan) -> frozenset[str]:
    """The tasks that have a stage after them."""
    return frozenset(stage.name for stage in plan.stages[:-1])


def backward_transfer(result: Result) -> float | None:
    """Mean over all tasks but the last of final less learned (arXiv 1706.08840); not of joint."""
    learned, final = (scores_of(result, moment) for moment in Moment)
    tasks = earlier_tasks(result.plan)
    if not tasks or not tasks <= learned.keys() & final.keys():
        return None
    return mean([final[task].score - learned[task].score for task in sorted(tasks)])


def learning_gain(result: Result, separate: Result) -> float | None:
    """Mean over tasks of the score when learned less that of a LoRA of the task's own."""
    learned, alone = mean_learned(result), mean_learned(separate)
    return None if learned is None or alone is None else learned - alone


def aggregation_error(result: Result) -> float | None:
    """Mean over releases of the relative error of aggregation, where it is known."""
    known = [error for error in result.errors if error is not None]
    return mean(known) if known else None


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation (n - 1; None of a single value) over seeds."""

    mean: float
    deviation: float | None
    count: int


def spread(values: Sequence[float | None]) -> Spread | None:
    """Of the values that are there; None without any."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = stdev(known) if len(known) > 1 else None
    return Spread(mean(known), deviation, len(known))


def over_seeds(cell: Cell, measure: Callable[[Result], float | None]) -> Spread | None:
    """The measure's spread over the cell's seeds."""
    return spread([measure(result) for _, result in sorted(cell.results.items())])


def gain_over_seeds(cell: Cell, separate: Cell | None) -> Spread | None:
    """The learning gain's spread over the seeds that both cells have."""
    if separate is None:
        return None
    both = sorted(cell.results.keys() & separate.results.keys())
    return spread([learning_gain(cell.results[seed], separate.results[seed]) for seed in both])


def mean(values: Sequence[float]) -> float:
    """The mean of at least one value."""
    return fsum(values) / len(values)
