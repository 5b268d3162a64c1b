"""What is measured on a result: scores when learned and at the end, and differences of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from common.plan.plan import Plan
from report.spread import mean
from simulation.experiments.result_file import ExperimentResult


class Moment(StrEnum):
    """When a task is scored."""

    LEARNED = "when learned"
    FINAL = "at the end"
    #: The mean over the stages before the task's own (ZSCL, arXiv 2303.06628).
    BEFORE = "Transfer"
    #: The mean over all stages.
    THROUGHOUT = "Avg"


@dataclass(frozen=True, slots=True)
class TaskScore:
    """A task's measure in one run, and that of each answer; fractions.

    Attributes:
        answers: empty where not kept.
        pictures: the number of each answer's picture; empty where not kept.
        balanced: the balanced accuracy; None where not kept.
    """

    score: float
    answers: tuple[float, ...]
    pictures: tuple[int, ...] = ()
    balanced: float | None = None


@dataclass(frozen=True, slots=True)
class PictureFree:
    """What is reached without looking at a picture, fractions; None where it is not known."""

    chance: float | None
    majority: float | None


#: By the name of the stage.
TaskScores = Mapping[str, TaskScore]


def never_changes(plan: Plan) -> bool:
    """Return whether the model that answers a task at the end is the one from when it was learned.

    This holds for a sum of adapters, where nothing is added or removed for a known task, and for a
    base model that learns nothing, unless later stages bring more classes to choose from.
    """
    tasks = range(len(plan.stages))
    last = tasks[-1]
    if any(plan.asked_classes(task, last) != plan.asked_classes(task, task) for task in tasks):
        return False
    return not plan.method.trains or all(
        plan.answering_stages(task, last) == plan.answering_stages(task, task) for task in tasks
    )


def has_changed(plan: Plan, results: Sequence[ExperimentResult]) -> bool:
    """Return whether a task's score at the end is other than when learned, as far as is known.

    Of a branch that answers alone, where the task is given, only the scores tell it.
    """
    if never_changes(plan):
        return False
    return not results or any(
        scores_of(result, Moment.LEARNED) != scores_of(result, Moment.FINAL) for result in results
    )


def without_picture(result: ExperimentResult, task: int, moment: Moment) -> PictureFree:
    """Return the measure of a random answer, and of training's commonest one.

    Where a test asks among the classes of several stages, a random answer is one of these; the
    commonest of the task's own would tell the task, so there is none.
    """
    plan, stage = result.plan, result.plan.stages[task]
    after = task if moment is Moment.LEARNED else len(plan.stages) - 1
    asked = plan.asked_classes(task, after)
    if asked != (stage.classes or ()):
        return PictureFree(1 / len(asked), None)
    return PictureFree(
        result.chance[task] if result.chance else None,
        result.majority[task] if result.majority else None,
    )


def judged_when_learned(plan: Plan) -> bool:
    """Return whether tasks have a score when learned; joint training has no stage of one task."""
    return not plan.method.trains_on_all_tasks


def scores_of(result: ExperimentResult, moment: Moment) -> TaskScores:
    """Return each task's score at this moment, without the tasks that were not scored then."""
    if moment is Moment.LEARNED and not judged_when_learned(result.plan):
        return {}
    if moment in _OVER_STAGES:
        return _means_over_stages(result, moment)
    found: dict[str, TaskScore] = {}
    for task, stage in enumerate(result.plan.stages):
        score = _score(result, task, moment)
        if score is not None:
            found[stage.name] = score
    return found


#: Moments that are several.
_OVER_STAGES = (Moment.BEFORE, Moment.THROUGHOUT)


def _means_over_stages(result: ExperimentResult, moment: Moment) -> TaskScores:
    """Return each task's mean over the stages that count; none where a score is missing."""
    found: dict[str, TaskScore] = {}
    for task, stage in enumerate(result.plan.stages):
        rows = result.matrix[:task] if moment is Moment.BEFORE else result.matrix
        known = [score for row in rows if (score := row[task]) is not None]
        if known and len(known) == len(rows):
            found[stage.name] = TaskScore(mean(known), ())
    return found


def _score(result: ExperimentResult, task: int, moment: Moment) -> TaskScore | None:
    last = len(result.plan.stages) - 1
    pictures = result.pictures[task] if result.pictures else ()
    balanced = result.balanced[task] if result.balanced else None
    score = _exact(result.answers[task], result.learned[task])
    learned = TaskScore(score, result.answers[task], pictures, balanced)
    if moment is Moment.LEARNED:
        return learned
    final = result.final[task]
    if final is not None:
        if result.final_answers:
            answers = result.final_answers[task]
            at_end = result.final_balanced[task] if result.final_balanced else None
            return TaskScore(_exact(answers, final), answers, pictures, at_end)
        # The last task is learned at the end.
        return learned if task == last else TaskScore(final, ())
    return learned if never_changes(result.plan) else None


def _exact(answers: Sequence[float], reported: float) -> float:
    """Return the mean over the answers; without them what the run reported.

    A site rounds the mean of a token measure before it leaves (client/orders/leaving_figures.py),
    by up to half a question; a hospital alone reports to nobody, and earlier code did not round.
    """
    return mean(answers) if answers else reported


def tuning_score(result: ExperimentResult | None) -> float | None:
    """Return what a learning rate is chosen by: the mean over tasks at the end, as reported.

    What forgets is so judged at the rate at which it is best in the end. Where the end was not
    scored, it is the mean when learned. All rates of a setting are rounded alike.
    """
    if result is None:
        return None
    kept = never_changes(result.plan)
    ends = [
        learned if final is None and kept else final
        for learned, final in zip(result.learned, result.final, strict=True)
    ]
    known = [score for score in ends if score is not None]
    if len(known) == len(ends):
        return mean(known)
    return mean(result.learned) if judged_when_learned(result.plan) else None


def mean_learned(result: ExperimentResult) -> float | None:
    """Return the mean over tasks of the score when learned."""
    return _mean_score(result, Moment.LEARNED)


def mean_final(result: ExperimentResult) -> float | None:
    """Return the mean over tasks of the score after the last stage."""
    return _mean_score(result, Moment.FINAL)


def mean_transfer(result: ExperimentResult) -> float | None:
    """Return Transfer: the mean over all tasks but the first of their means before they arrived."""
    scores = scores_of(result, Moment.BEFORE)
    names = [stage.name for stage in result.plan.stages[1:]]
    return mean([scores[name].score for name in names]) if names == [*scores] else None


def mean_throughout(result: ExperimentResult) -> float | None:
    """Return Avg: the mean over tasks and stages."""
    return _mean_score(result, Moment.THROUGHOUT)


def _mean_score(result: ExperimentResult, moment: Moment) -> float | None:
    scores = scores_of(result, moment)
    # A mean of some of the tasks would be compared with a mean of all.
    if len(scores) < len(result.plan.stages):
        return None
    return mean([one.score for one in scores.values()])


def mean_among(result: ExperimentResult) -> float | None:
    """Return the mean over tasks of closed questions' accuracy among their options, at the end."""
    known = [score for score in result.among if score is not None]
    return mean(known) if known else None


def mean_unseen(result: ExperimentResult) -> float | None:
    """Return the mean over tasks of the score at the end at hospitals that trained nothing."""
    known = [score for score in result.unseen if score is not None]
    return mean(known) if known else None


def earlier_tasks(plan: Plan) -> frozenset[str]:
    """Return the tasks that have a stage after them."""
    return frozenset(stage.name for stage in plan.stages[:-1])


def backward_transfer(result: ExperimentResult) -> float | None:
    """Return the mean over all tasks but the last of final less learned (arXiv 1706.08840).

    None for joint training, and where a score is missing.
    """
    learned, final = (scores_of(result, moment) for moment in (Moment.LEARNED, Moment.FINAL))
    tasks = earlier_tasks(result.plan)
    if not tasks or not tasks <= learned.keys() & final.keys():
        return None
    return mean([final[task].score - learned[task].score for task in sorted(tasks)])


def aggregation_error(result: ExperimentResult) -> float | None:
    """Return the mean over releases of the relative error of aggregation, where it is known."""
    known = [error for error in result.errors if error is not None]
    return mean(known) if known else None
