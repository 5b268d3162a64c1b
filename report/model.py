"""The report of a run: its values, and what follows from them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from common.plan import Metric
from common.plan_fields import Modality
from report.continual_metrics import MatrixMetrics, matrix_metrics

#: The method whose stages learn all tasks at once, and the metrics that it has not.
_JOINT = "joint"
_OF_OWN_STAGES = ("aia", "bwt", "forgetting", "fwt", "learning_gain", "transfer")


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
    """What one site sent and received in one round of a stage (rounds count from 1)."""

    stage: str
    round: int
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCost:
    """What one site sent (up) and received (down) in the whole run."""

    bytes_up: int
    bytes_down: int
    by_round: tuple[RoundCost, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the run cost; None where it was not measured.

    Attributes:
        seconds: from the first start to the last answer, without pauses between starts.
        steps: optimizer steps of all sites together.
        training_seconds: the sites' own time for them, likewise.
    """

    sites: Mapping[str, SiteCost]
    seconds: float | None
    peak_memory_bytes: int | None
    steps: int | None = None
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
    """The digests of what the run was made of, and of what it made."""

    base_model: str
    bank_head: str | None
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """How the same tasks did where each picture chose its stage; all of shape (T, T).

    Attributes:
        scores: as `RunReport.scores`; None where it was not evaluated.
        stage: the share of task j's test pictures that went to its own stage, after stage i.
        modality: the share that went to a stage of its modality.
    """

    scores: tuple[tuple[float | None, ...], ...]
    stage: tuple[tuple[float | None, ...], ...]
    modality: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """One method's run of a plan with one seed. T is the number of stages.

    Attributes:
        scores: `scores[i][j]` is task j's score after stage i, a fraction in the measure
            of stage j; None where it was not evaluated. Shape (T, T).
        zero_shot: the base model's score on each task. Shape (T,).
        majority: the score of the constant answer that training suggests. Shape (T,).
        single_task: the score of a model trained on that task alone, where it was measured.
        task_metrics: every measure of a task (common.metrics), after its own stage. Length T.
        aggregation_error: of each release, the share of the sites' mean update that the
            adapter could not hold (relative Frobenius norm); None where unknown.
        routed: what came of the router; None where the plan has none.
        versions: package name -> version.
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
    cost: Cost
    aggregation_error: tuple[float | None, ...]
    curves: tuple[LossPoint, ...]
    provenance: Provenance
    versions: Mapping[str, str]
    routed: Routed | None = None

    def __post_init__(self) -> None:
        count = len(self.stages)
        if count == 0:
            raise ValueError("stages: found none, expected at least one")
        lengths = {
            "scores": [len(self.scores), *map(len, self.scores)],
            "zero_shot": [len(self.zero_shot)],
            "majority": [len(self.majority)],
            "routed": [count if self.routed is None else len(self.routed.scores)],
            "single_task": [count if self.single_task is None else len(self.single_task)],
        }
        for name, found in lengths.items():
            if set(found) != {count}:
                raise ValueError(f"{name}: found {found} entries, expected {count}, one a stage")


def kinds(report: RunReport) -> dict[Metric, tuple[int, ...]]:
    """The tasks (0-based) of each measure: only these may be averaged."""
    found: dict[Metric, tuple[int, ...]] = {}
    for task, stage in enumerate(report.stages):
        found[stage.metric] = (*found.get(stage.metric, ()), task)
    return found


def learned_score(report: RunReport, task: int) -> float | None:
    """The score right after the task's own stage; None of a method that knows no such stage."""
    return report.scores[task][task] if judged_when_learned(report) else None


def judged_when_learned(report: RunReport) -> bool:
    """False for joint training, which draws from all tasks in every stage."""
    return report.method != _JOINT


def metrics_by_kind(report: RunReport) -> dict[Metric, MatrixMetrics]:
    """The continual-learning metrics over the tasks of each measure apart.

    Of joint training only those that don't ask when a task was learned.
    """
    found = {
        kind: matrix_metrics(report.scores, report.zero_shot, report.single_task, tasks)
        for kind, tasks in kinds(report).items()
    }
    if judged_when_learned(report):
        return found
    return {kind: _at_once(metrics) for kind, metrics in found.items()}


def _at_once(metrics: MatrixMetrics) -> MatrixMetrics:
    why = f"a stage of each task's own, which {_JOINT} has not"
    missing = dict(metrics.missing) | dict.fromkeys(_OF_OWN_STAGES, why)
    return replace(metrics, **dict.fromkeys(_OF_OWN_STAGES), missing=missing)
