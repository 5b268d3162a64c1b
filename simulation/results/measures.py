"""What is measured on a result: scores when learned and at the end, and differences of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from common.plan.plan import Plan
from report.spread import Spread, mean, spread
from simulation.experiments.lab import ExperimentResult
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
TaskScores = Mapping[str, TaskScore]


def never_changes(plan: Plan) -> bool:
    """Return whether the model that answers a task at the end is the one from when it was learned.

    This holds for a sum of adapters, where nothing is added or removed for a known task, and for a
    base model that learns nothing.
    """
    if not plan.method.trains:
        return True
    tasks = range(len(plan.stages))
    return all(
        plan.answering_stages(task, tasks[-1]) == plan.answering_stages(task, task)
        for task in tasks
    )


def judged_when_learned(plan: Plan) -> bool:
    """Return whether tasks have a score when learned; joint training has no stage of one task."""
    return not plan.method.trains_on_all_tasks


def scores_of(result: ExperimentResult, moment: Moment) -> TaskScores:
    """Return each task's score at this moment, without the tasks that were not scored then."""
    if moment is Moment.LEARNED and not judged_when_learned(result.plan):
        return {}
    found: dict[str, TaskScore] = {}
    for task, stage in enumerate(result.plan.stages):
        score = _score(result, task, moment)
        if score is not None:
            found[stage.name] = score
    return found


def _score(result: ExperimentResult, task: int, moment: Moment) -> TaskScore | None:
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


def mean_learned(result: ExperimentResult) -> float | None:
    """Return the mean over tasks of the score when learned."""
    return _mean_score(result, Moment.LEARNED)


def mean_final(result: ExperimentResult) -> float | None:
    """Return the mean over tasks of the score after the last stage."""
    return _mean_score(result, Moment.FINAL)


def _mean_score(result: ExperimentResult, moment: Moment) -> float | None:
    scores = scores_of(result, moment)
    # A mean of some of the tasks would be compared with a mean of all.
    if len(scores) < len(result.plan.stages):
        return None
    return mean([one.score for one in scores.values()])


def earlier_tasks(plan: Plan) -> frozenset[str]:
    """Return the tasks that have a stage after them."""
    return frozenset(stage.name for stage in plan.stages[:-1])


def backward_transfer(result: ExperimentResult) -> float | None:
    """Return the mean over all tasks but the last of final less learned (arXiv 1706.08840).

    None for joint training, and where a score is missing.
    """
    learned, final = (scores_of(result, moment) for moment in Moment)
    tasks = earlier_tasks(result.plan)
    if not tasks or not tasks <= learned.keys() & final.keys():
        return None
    return mean([final[task].score - learned[task].score for task in sorted(tasks)])


def learning_gain(result: ExperimentResult, separate: ExperimentResult) -> float | None:
    """Return the mean score when learned less that of a LoRA for each task alone."""
    learned, alone = mean_learned(result), mean_learned(separate)
    return None if learned is None or alone is None else learned - alone


def aggregation_error(result: ExperimentResult) -> float | None:
    """Return the mean over releases of the relative error of aggregation, where it is known."""
    known = [error for error in result.errors if error is not None]
    return mean(known) if known else None


def over_seeds(cell: Cell, measure: Callable[[ExperimentResult], float | None]) -> Spread | None:
    """Return the measure's spread over the cell's seeds."""
    return spread([measure(result) for _, result in sorted(cell.results.items())])


def gain_over_seeds(cell: Cell, separate: Cell | None) -> Spread | None:
    """Return the learning gain's spread over the seeds that both cells have."""
    if separate is None:
        return None
    both = sorted(cell.results.keys() & separate.results.keys())
    return spread([learning_gain(cell.results[seed], separate.results[seed]) for seed in both])
