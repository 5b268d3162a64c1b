"""The report of a run: values, `report.json`, and the folder with pictures and page."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import TypeAdapter, ValidationError

from common.durable import DISK, remove_if_there, write_file, writing
from common.errors import DataError, StateError
from common.matrix import METRICS, MatrixMetrics, matrix_metrics
from common.plan import Metric, Modality

if TYPE_CHECKING:
    from common.report_methods import PairedTest

REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
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


def to_document(report: RunReport) -> dict[str, Any]:
    """The report as JSON values; numbers that are not finite become null."""
    values: dict[str, Any] = json.loads(_RUN.dump_json(report))
    by_kind = metrics_by_kind(report)
    alone = next(iter(by_kind.values())) if len(by_kind) == 1 else None
    derived = {
        "metrics": {name: None if alone is None else _value(alone, name) for name in METRICS},
        "metrics_by_kind": {
            kind.value: {name: _value(metrics, name) for name in METRICS}
            for kind, metrics in by_kind.items()
        },
        "metrics_missing": {kind.value: dict(metrics.missing) for kind, metrics in by_kind.items()},
    }
    document: dict[str, Any] = {}
    for key, value in values.items():
        document[key] = value
        if key == "single_task":
            document |= derived
    return document


def from_document(document: Mapping[str, Any], source: str) -> RunReport:
    """The report that `to_document` wrote; what it derives is derived anew.

    Raises:
        DataError: a field is missing or wrong; the first one is named.
    """
    try:
        return _RUN.validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the report"
        raise DataError(f"{source}, {where}: {first['msg']}") from None


def write_report(
    folder: Path, reports: Sequence[RunReport], tests: "Sequence[PairedTest]" = ()
) -> None:
    """Write report.json, the pictures and report.html of one or several runs of a plan.

    The first run is the one that is told; with more (other methods or seeds), the document
    has all of them under `comparison`, and under `methods` what they come to: mean and spread
    over seeds, cost, and the paired `tests`. Equal reports give equal bytes.

    Raises:
        DataError: the runs have different stages, so there is nothing to compare.
        StateError: the folder can't be written.
    """
    # Drawing loads matplotlib, half a second that readers of a report don't need.
    from common.report_methods import methods_document
    from common.report_page import page
    from common.report_plots import draw

    _check_comparable(reports, str(folder / REPORT_FILE))
    _make(folder)
    document = to_document(reports[0])
    if len(reports) > 1:
        document["comparison"] = [to_document(report) for report in reports]
        document["methods"] = methods_document(reports, tests)
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    pictures = draw(reports)
    files = {REPORT_FILE: text.encode()}
    files |= {picture.file: picture.png for picture in pictures}
    files[PAGE_FILE] = page(reports, pictures, tests).encode()
    for name, content in files.items():
        _write(folder / name, content)


def read_report(folder: Path) -> list[RunReport]:
    """The runs of a report's folder, the one that is told first.

    Raises:
        DataError: there is no report, or it is not one of ours.
    """
    file, whole = folder / REPORT_FILE, read_document(folder)
    parts: Any = whole.get("comparison", [whole])
    if not isinstance(parts, list) or not parts:
        raise DataError(f"{file}, comparison: found {parts!r}, expected a list of runs")
    reports = [from_document(part, str(file)) for part in cast(list[Any], parts)]
    _check_comparable(reports, str(file))
    return reports


def read_document(folder: Path) -> dict[str, Any]:
    """report.json as JSON values.

    Raises:
        DataError: there is none, or it is not an object.
    """
    file = folder / REPORT_FILE
    try:
        document: Any = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: can't be read as a report ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error})") from None
    if not isinstance(document, dict):
        raise DataError(f"{file}: found a {type(document).__name__}, expected a report")
    return cast(dict[str, Any], document)


_RUN: TypeAdapter[RunReport] = TypeAdapter(RunReport)


def _value(metrics: MatrixMetrics, name: str) -> float | None:
    value: float | None = getattr(metrics, name)
    return value if value is None or math.isfinite(value) else None


def _check_comparable(reports: Sequence[RunReport], source: str) -> None:
    if not reports:
        raise DataError(f"{source}: found no run, expected at least one")
    told = [(stage.name, stage.metric) for stage in reports[0].stages]
    for report in reports[1:]:
        other = [(stage.name, stage.metric) for stage in report.stages]
        if other != told:
            raise DataError(
                f"{source}: {report.method} (seed {report.seed}) ran the stages "
                f"{_names(report)}, expected those of {reports[0].method}: {_names(reports[0])}"
            )


def _names(report: RunReport) -> str:
    return ", ".join(f"{stage.name} ({stage.metric})" for stage in report.stages)


def _make(folder: Path) -> None:
    """The folder is there; found out before anything is drawn."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(f"{folder}: the report can't be written ({error.strerror})") from None


def _write(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    try:
        write_file(file, content, DISK)
    except OSError as error:
        with suppress(OSError):
            remove_if_there(writing(file), DISK)
        raise StateError(f"{file}: the report can't be written ({error.strerror})") from None
