"""A report as JSON values, and `report.json` in a report's folder."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from common.documents.bounded import parse_json, read_text
from common.errors import DataError
from common.printable import printable
from report.classes.rows import class_metrics
from report.continual_metrics import METRICS, MatrixMetrics
from report.model import RunReport, metrics_by_kind

REPORT_FILE = "report.json"

_RUN: TypeAdapter[RunReport] = TypeAdapter(RunReport)


def to_document(report: RunReport) -> dict[str, Any]:
    """Return the report as JSON values; numbers that are not finite become null."""
    values: dict[str, Any] = json.loads(_RUN.dump_json(report))
    by_kind = metrics_by_kind(report)
    only = next(iter(by_kind.values())) if len(by_kind) == 1 else None
    derived = {
        "metrics": {name: None if only is None else _finite(only, name) for name in METRICS},
        "metrics_by_kind": {
            kind.value: {name: _finite(metrics, name) for name in METRICS}
            for kind, metrics in by_kind.items()
        },
        "class_metrics": {
            measure: {name: _finite(metrics, name) for name in METRICS}
            for measure, metrics in class_metrics(report).items()
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
    """Parse what `to_document` wrote; derived values are computed anew.

    Raises:
        DataError: a field is missing or wrong; the first one is named.
    """
    try:
        return _RUN.validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the report"
        raise DataError(f"{source}, {where}: {first['msg']}") from None


def read_report(folder: Path) -> list[RunReport]:
    """Read the runs of a report's folder, the one that the page shows in full first.

    Raises:
        DataError: there is no report, or it is not one of ours.
    """
    file, document = folder / REPORT_FILE, read_document(folder)
    runs: Any = document.get("comparison", [document])
    if not isinstance(runs, list) or not runs:
        found = printable(repr(cast(object, runs)), 80)
        raise DataError(f"{file}, comparison: found {found}, expected a list of runs")
    reports = [from_document(run, str(file)) for run in cast(list[Any], runs)]
    check_comparable(reports, str(file))
    return reports


#: Most bytes of a report: many runs with all their curves have some MB.
_MOST_BYTES = 2**28


def read_document(folder: Path) -> dict[str, Any]:
    """Read report.json as JSON values.

    Raises:
        DataError: there is none, or it is not an object.
    """
    file = folder / REPORT_FILE
    try:
        document: Any = parse_json(read_text(file, _MOST_BYTES))
    except OSError as error:
        raise DataError(f"{file}: can't be read as a report ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error})") from None
    if not isinstance(document, dict):
        raise DataError(f"{file}: found a {type(document).__name__}, expected a report")
    return cast(dict[str, Any], document)


def check_comparable(reports: Sequence[RunReport], source: str) -> None:
    """Check that all runs have the same stages and measures.

    Raises:
        DataError: there is no run, or they differ.
    """
    if not reports:
        raise DataError(f"{source}: found no run, expected at least one")
    first = [(stage.name, stage.metric) for stage in reports[0].stages]
    for report in reports[1:]:
        other = [(stage.name, stage.metric) for stage in report.stages]
        if other != first:
            raise DataError(
                f"{source}: {report.method} (seed {report.seed}) ran the stages "
                f"{_stages(report)}, expected those of {reports[0].method}: {_stages(reports[0])}"
            )


def _stages(report: RunReport) -> str:
    return ", ".join(f"{stage.name} ({stage.metric})" for stage in report.stages)


def _finite(metrics: MatrixMetrics, name: str) -> float | None:
    value: float | None = getattr(metrics, name)
    return value if value is None or math.isfinite(value) else None
