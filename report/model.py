"""The report of a run: its values, and metrics that follow from them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, TypeAlias

from pydantic import Field

from common.metrics import CLASS_METRICS
from common.plan.plan import Metric
from common.plan_fields import Modality
from report.answers.model import AnswerFigures
from report.continual_metrics import MatrixMetrics, matrix_metrics
from report.heterogeneity.model import SimulatedHospital, UnseenReport
from report.sites.model import SiteParts, SiteScores

#: Joint training learns all tasks in every stage, so these metrics are not defined for it.
_OF_OWN_STAGES = ("aia", "bwt", "forgetting", "fwt", "learning_gain", "transfer")

#: A number of bytes or steps that 64 bits hold: a larger one can't be shown, and is no count.
Int64: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]
#: Shape (T, T); None where it was not evaluated.
ScoreMatrix: TypeAlias = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFacts:
    """Which plan was run."""

    name: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFacts:
    """One stage of the plan, and the measure that enters the score matrix."""

    name: str
    modality: Modality
    task: str
    sites: tuple[str, ...]
    metric: Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundCost:
    """Bytes that one site sent and received in one round of a stage; rounds count from 1."""

    stage: str
    round: int
    bytes_up: Int64
    bytes_down: Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCost:
    """Bytes that one site sent (up) and received (down) in the whole run."""

    bytes_up: Int64
    bytes_down: Int64
    by_round: tuple[RoundCost, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """The cost of a run; None where it was not measured.

    Attributes:
        seconds: from the first start to the last answer, without the time between an
            interruption and the next start.
        steps: optimizer steps, summed over sites.
        training_seconds: the sites' own training time, summed over sites.
    """

    sites: Mapping[str, SiteCost]
    seconds: float | None
    peak_memory_bytes: Int64 | None
    steps: Int64 | None = None
    training_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPoint:
    """A site's mean training loss of one round; None where it was not finite."""

    stage: str
    round: int
    site: str
    loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Digests of what the run used (base model, code) and of what it released (bank)."""

    base_model: str
    bank_head: str | None
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """Results where the router chose a stage for each image; all of shape (T, T).

    Attributes:
        scores: as `RunReport.scores`; None where it was not evaluated.
        stage: the share of task j's test images routed to its own stage, after stage i.
        modality: the share routed to a stage of its modality.
        known: the share that the router calls known; None in reports from before it was asked.
        confidence: the router's mean confidence; None as above.
    """

    scores: tuple[tuple[float | None, ...], ...]
    stage: tuple[tuple[float | None, ...], ...]
    modality: tuple[tuple[float | None, ...], ...]
    known: tuple[tuple[float | None, ...], ...] | None = None
    confidence: tuple[tuple[float | None, ...], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoresAmongOptions:
    """Scores of the closed questions whose options the sites know; all of shape (T, T).

    Task j after stage i, a fraction; None where it was not evaluated, or has no such question.

    Attributes:
        among: the share whose likeliest option is the true answer.
        free: the share whose free answer is the true one.
        listed: the share whose free answer is one of the options, right or wrong.
    """

    among: tuple[tuple[float | None, ...], ...]
    free: tuple[tuple[float | None, ...], ...]
    listed: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScores:
    """Tasks with classes, by measure: accuracy, balanced accuracy (mean class recall), AUC.

    Task j after stage i, a fraction, mean over sites weighted by their questions; None where it was
    not evaluated, has no classes, or the measure is not defined.

    Attributes:
        zero_shot: the base model's, asked among the same classes.
        majority: the commonest training answer's, of each task. Length T.
        auc_by_site: each site's own AUC. The AUC of all sites' questions together would also
            compare scores between sites, and is neither these nor their mean.
    """

    scores: Mapping[str, ScoreMatrix]
    zero_shot: Mapping[str, ScoreMatrix]
    majority: Mapping[str, tuple[float | None, ...]]
    auc_by_site: Mapping[str, ScoreMatrix]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """One method's run of a plan with one seed. T is the number of stages.

    Attributes:
        scores: `scores[i][j]` is task j's score after stage i, a fraction in the measure
            of stage j; None where it was not evaluated. Shape (T, T).
        zero_shot: the base model's score on each task. Shape (T,).
        majority: the score of each question's commonest training answer. Shape (T,).
        single_task: the score of a model trained on that task alone, where it was measured.
        task_metrics: every measure of a task (common.metrics), after its own stage. Length T.
        aggregation_error: for each release, the relative Frobenius norm of the sites' mean
            update minus the released adapter; None where unknown.
        routed: results with the router; None where the plan has none.
        options: closed questions scored among their options; None where the plan does not ask.
        classes: measures of tasks with classes; None where there is none.
        all_tasks_at_once: whether every stage trains on all tasks, so that none has its own.
        versions: package name -> version.
        simulated: how simulated hospitals were made to differ; None where they were not.
        unseen: scores at hospitals that trained nothing; None where there is none.
        sites: what each site says of itself, and what its updates did; None where not known.
        by_site: each site's own scores; empty where not known.
        finished: the day of the last release, as YYYY-MM-DD in UTC.
        answers: what single answers show; None of real sites, whose answers stay with them.
    """

    plan: PlanFacts
    method: str
    seed: int
    stages: tuple[StageFacts, ...]
    scores: tuple[tuple[float | None, ...], ...]
    zero_shot: tuple[float | None, ...]
    majority: tuple[float | None, ...]
    single_task: tuple[float | None, ...] | None = None
    task_metrics: tuple[Mapping[str, float], ...]
    cost: RunCost
    aggregation_error: tuple[float | None, ...]
    curves: tuple[LossPoint, ...]
    provenance: Provenance
    versions: Mapping[str, str]
    routed: Routed | None = None
    options: ScoresAmongOptions | None = None
    classes: ClassScores | None = None
    all_tasks_at_once: bool = False
    simulated: tuple[SimulatedHospital, ...] | None = None
    unseen: UnseenReport | None = None
    sites: SiteParts | None = None
    by_site: tuple[SiteScores, ...] = ()
    answers: AnswerFigures | None = None
    finished: str | None = None

    def __post_init__(self) -> None:
        count = len(self.stages)
        if count == 0:
            raise ValueError("stages: found none, expected at least one")
        for name, values in _one_a_stage(self):
            if len(values) != count:
                raise ValueError(
                    f"{name}: found {len(values)} entries, expected {count}, one a stage"
                )
        if self.classes is not None:
            _check_measures(self.classes)


def _one_a_stage(report: RunReport) -> Iterator[tuple[str, Sequence[object]]]:
    """Yield what has an entry for each stage, by its field: rows, matrices and their rows."""
    for name, matrix in _matrices(report):
        yield name, matrix
        yield from ((name, row) for row in matrix)
    yield from _rows("", report, "zero_shot", "majority", "single_task")
    if report.answers is not None:
        yield "answers.tasks", report.answers.tasks
    if report.classes is not None:
        yield from (("classes.majority", row) for row in report.classes.majority.values())
    for site in report.by_site:
        yield from _rows("by_site.", site, "questions", "zero_shot", "majority")
    if report.unseen is not None:
        for hospital in (*report.unseen.hospitals, *report.unseen.sites):
            yield from _rows("unseen.", hospital, "questions", "zero_shot", "last")


def _matrices(report: RunReport) -> Iterator[tuple[str, ScoreMatrix]]:
    yield "scores", report.scores
    for name, part in (("routed", report.routed), ("options", report.options)):
        for field in () if part is None else fields(part):
            matrix: ScoreMatrix | None = getattr(part, field.name)
            if matrix is not None:
                yield f"{name}.{field.name}", matrix
    if report.classes is not None:
        for name in ("scores", "zero_shot", "auc_by_site"):
            by_measure: Mapping[str, ScoreMatrix] = getattr(report.classes, name)
            yield from ((f"classes.{name}", matrix) for matrix in by_measure.values())
    yield from (("by_site.scores", site.scores) for site in report.by_site)


def _rows(prefix: str, part: object, *names: str) -> Iterator[tuple[str, Sequence[object]]]:
    for name in names:
        row: Sequence[object] | None = getattr(part, name)
        if row is not None:
            yield prefix + name, row


def _check_measures(classes: ClassScores) -> None:
    """Check that each part has the measures of a task with classes.

    Raises:
        ValueError: one is missing.
    """
    for name in ("scores", "zero_shot", "majority"):
        found: Mapping[str, object] = getattr(classes, name)
        if missing := [measure for measure in CLASS_METRICS if measure not in found]:
            raise ValueError(f"classes.{name}: found no {missing[0]}, expected it")


def kinds(report: RunReport) -> dict[Metric, tuple[int, ...]]:
    """Return the tasks (0-based) of each measure; only tasks of one measure are averaged."""
    found: dict[Metric, tuple[int, ...]] = {}
    for task, stage in enumerate(report.stages):
        found[stage.metric] = (*found.get(stage.metric, ()), task)
    return found


def learned_score(report: RunReport, task: int) -> float | None:
    """Return the score right after the task's own stage; None for joint training."""
    return report.scores[task][task] if judged_when_learned(report) else None


def judged_when_learned(report: RunReport) -> bool:
    """Return whether a task has a stage of its own, as in all methods but joint training."""
    return not report.all_tasks_at_once


def metrics_by_kind(report: RunReport) -> dict[Metric, MatrixMetrics]:
    """Return the continual-learning metrics over the tasks of each measure.

    For joint training, only those that don't depend on when a task was learned.
    """
    found = {
        kind: matrix_metrics(report.scores, report.zero_shot, report.single_task, tasks)
        for kind, tasks in kinds(report).items()
    }
    if judged_when_learned(report):
        return found
    why = f"a stage of each task's own, which {report.method} has not"
    missing = dict.fromkeys(_OF_OWN_STAGES, why)
    return {
        kind: replace(
            metrics, **dict.fromkeys(_OF_OWN_STAGES), missing=dict(metrics.missing) | missing
        )
        for kind, metrics in found.items()
    }
