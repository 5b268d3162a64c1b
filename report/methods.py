"""Methods side by side, as values: mean and spread over seeds, cost, and the paired tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import fmean
from typing import Any, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from common.errors import DataError
from common.plan import Metric
from report.json_file import REPORT_FILE, read_document
from report.model import RunReport, kinds, metrics_by_kind
from report.spread import Spread, spread

#: The metrics of the whole run in which methods are compared (report.continual_metrics).
SHOWN = ("last", "bwt", "forgetting", "learning_gain")
#: What a test calls the score of a task right after its own stage.
LEARNED = "learned"
#: The measure of a test that pools the answers of all tasks.
EXACT_MATCH = "exact_match"


class Test(StrEnum):
    """How two methods were compared (report.significance)."""

    # Not a test of pytest's.
    __test__ = False

    MCNEMAR = "mcnemar"
    BOOTSTRAP = "bootstrap"
    T = "t"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """The first method of a comparison against another one, in one score.

    Attributes:
        method: the other one.
        score: `learned`, right after each task's own stage, or a name of SHOWN.
        measure: of the tasks that count, or EXACT_MATCH for the answers of all tasks.
        difference: the first less the other; a fraction.
        low, high: the bootstrap's 95 % interval of the difference.
        own_only, other_only: McNemar's counts, the answers that only one has right.
        deviation: of the differences over seeds, for t.
        pairs: what was paired: questions, or seeds for t.
        p_holm: adjusted for all the methods that this score is compared with.
    """

    method: str
    test: Test
    score: str
    measure: str
    difference: float
    low: float | None = None
    high: float | None = None
    own_only: int | None = None
    other_only: int | None = None
    deviation: float | None = None
    pairs: int
    p: float
    p_holm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodCost:
    """What one run of a method cost, the mean over its seeds; None where a seed doesn't tell.

    Attributes:
        steps: optimizer steps of all sites together.
        training_seconds: the sites' own time for them, likewise.
        seconds: of the whole run, with scoring.
        peak_memory_bytes: the largest of all seeds.
    """

    steps: float | None
    training_seconds: float | None
    seconds: float | None
    bytes_up: float
    bytes_down: float
    peak_memory_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSummary:
    """A method over its seeds: `metrics[kind][name]`, over the tasks of each measure apart."""

    method: str
    seeds: tuple[int, ...]
    metrics: Mapping[Metric, Mapping[str, Spread | None]]
    cost: MethodCost


def summaries(reports: Sequence[RunReport]) -> list[MethodSummary]:
    """Every method, in the order in which the methods came."""
    methods = list(dict.fromkeys(report.method for report in reports))
    return [_summary([run for run in reports if run.method == method]) for method in methods]


def _summary(runs: Sequence[RunReport]) -> MethodSummary:
    measured = [metrics_by_kind(run) for run in runs]
    return MethodSummary(
        method=runs[0].method,
        seeds=tuple(run.seed for run in runs),
        metrics={
            kind: {name: spread([getattr(one[kind], name) for one in measured]) for name in SHOWN}
            for kind in kinds(runs[0])
        },
        cost=_cost(runs),
    )


def _cost(runs: Sequence[RunReport]) -> MethodCost:
    costs = [run.cost for run in runs]
    peaks = [cost.peak_memory_bytes for cost in costs if cost.peak_memory_bytes is not None]
    return MethodCost(
        steps=_mean([cost.steps for cost in costs]),
        training_seconds=_mean([cost.training_seconds for cost in costs]),
        seconds=_mean([cost.seconds for cost in costs]),
        bytes_up=fmean(sum(s.bytes_up for s in cost.sites.values()) for cost in costs),
        bytes_down=fmean(sum(s.bytes_down for s in cost.sites.values()) for cost in costs),
        peak_memory_bytes=max(peaks, default=None),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def methods_document(reports: Sequence[RunReport], tests: Sequence[PairedTest]) -> dict[str, Any]:
    """The field `methods` of report.json."""
    return {
        "against": reports[0].method,
        "summary": _SUMMARIES.dump_python(summaries(reports), mode="json"),
        "tests": _TESTS.dump_python(list(tests), mode="json"),
    }


def read_tests(folder: Path) -> list[PairedTest]:
    """The paired tests of a report's folder; none in a report of a single run.

    Raises:
        DataError: there is no report, or its tests are not ones of ours.
    """
    try:
        return _METHODS.validate_python(read_document(folder).get("methods", {})).get("tests", [])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("methods", *first["loc"]))
        raise DataError(f"{folder / REPORT_FILE}, {where}: {first['msg']}") from None


class _Methods(TypedDict):
    """What of the field `methods` is read back; the rest follows from the runs."""

    tests: NotRequired[list[PairedTest]]


_METHODS: TypeAdapter[_Methods] = TypeAdapter(_Methods)
_SUMMARIES: TypeAdapter[list[MethodSummary]] = TypeAdapter(list[MethodSummary])
_TESTS: TypeAdapter[list[PairedTest]] = TypeAdapter(list[PairedTest])
