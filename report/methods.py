"""The comparison of methods as values: mean and spread over seeds, cost, and paired tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import fmean
from typing import Any, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from common.errors import DataError
from common.plan.plan import Metric
from report.json_file import REPORT_FILE, read_document
from report.model import RunReport, kinds, metrics_by_kind
from report.spread import Spread, spread

#: The metrics of the whole run in which methods are compared (report.continual_metrics).
SHOWN = ("last", "bwt", "forgetting", "learning_gain")
#: The same where tasks were scored before they arrived, too.
OVER_STAGES = ("transfer", "avg")
#: Those of them that are scores, and not differences.
LEVELS = ("last", *OVER_STAGES)
#: The name that a test gives to the score of a task right after its own stage.
LEARNED = "learned"
#: The measure of a test that pools the answers of all tasks.
EXACT_MATCH = "exact_match"


class Test(StrEnum):
    """The statistical test of a comparison (report.significance)."""

    # Keep pytest from collecting it.
    __test__ = False

    MCNEMAR = "mcnemar"
    BOOTSTRAP = "bootstrap"
    T = "t"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """A test of the first method of a comparison against another one, in one score.

    Attributes:
        method: the other method.
        score: `learned`, right after each task's own stage, or a name of SHOWN or OVER_STAGES.
        measure: the measure of the tasks that count, or EXACT_MATCH for all tasks' answers.
        difference: first minus other; a fraction.
        low, high: the bootstrap's 95 % interval of the difference.
        own_only, other_only: McNemar's counts: answers that are right in one method only.
        deviation: of the differences over seeds, for Student's t.
        pairs: number of paired questions, or of paired seeds for Student's t.
        p_holm: p adjusted for all methods that are compared in this score.
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
    """The cost of one run of a method, a mean over seeds; None where a seed was not measured.

    Attributes:
        steps: optimizer steps, summed over sites.
        training_seconds: the sites' own training time, summed over sites.
        seconds: duration of the whole run, evaluation included.
        peak_memory_bytes: the largest over seeds.
    """

    steps: float | None
    training_seconds: float | None
    seconds: float | None
    bytes_up: float
    bytes_down: float
    peak_memory_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSummary:
    """A method over its seeds; `metrics[kind][name]` is over the tasks with measure `kind`."""

    method: str
    seeds: tuple[int, ...]
    metrics: Mapping[Metric, Mapping[str, Spread | None]]
    cost: MethodCost


def summaries(reports: Sequence[RunReport]) -> list[MethodSummary]:
    """Return a summary of every method, in their order of appearance."""
    methods = list(dict.fromkeys(report.method for report in reports))
    return [summary([run for run in reports if run.method == method]) for method in methods]


def summary(runs: Sequence[RunReport]) -> MethodSummary:
    """Return the summary of one method's runs."""
    measured = [metrics_by_kind(run) for run in runs]
    return MethodSummary(
        method=runs[0].method,
        seeds=tuple(run.seed for run in runs),
        metrics={
            kind: {
                name: spread([getattr(one[kind], name) for one in measured])
                for name in (*SHOWN, *OVER_STAGES)
            }
            for kind in kinds(runs[0])
        },
        cost=_mean_cost(runs),
    )


def shown(rows: Sequence[MethodSummary]) -> tuple[str, ...]:
    """Return the metrics to show: those over all stages only where some method has them."""
    known = {
        name
        for row in rows
        for found in row.metrics.values()
        for name in OVER_STAGES
        if found[name] is not None
    }
    return (*SHOWN, *(name for name in OVER_STAGES if name in known))


def _mean_cost(runs: Sequence[RunReport]) -> MethodCost:
    costs = [run.cost for run in runs]
    peaks = [cost.peak_memory_bytes for cost in costs if cost.peak_memory_bytes is not None]
    return MethodCost(
        steps=_mean_if_all([cost.steps for cost in costs]),
        training_seconds=_mean_if_all([cost.training_seconds for cost in costs]),
        seconds=_mean_if_all([cost.seconds for cost in costs]),
        bytes_up=fmean(sum(s.bytes_up for s in cost.sites.values()) for cost in costs),
        bytes_down=fmean(sum(s.bytes_down for s in cost.sites.values()) for cost in costs),
        peak_memory_bytes=max(peaks, default=None),
    )


def _mean_if_all(values: Sequence[float | None]) -> float | None:
    """Return the mean, or None if a value is missing."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def methods_document(reports: Sequence[RunReport], tests: Sequence[PairedTest]) -> dict[str, Any]:
    """Return the field `methods` of report.json."""
    return {
        "against": reports[0].method,
        "summary": _SUMMARIES.dump_python(summaries(reports), mode="json"),
        "tests": _TESTS.dump_python(list(tests), mode="json"),
    }


def read_tests(folder: Path) -> list[PairedTest]:
    """Read the paired tests of a report's folder; a report of a single run has none.

    Raises:
        DataError: there is no report, or its tests have other fields.
    """
    try:
        return _METHODS.validate_python(read_document(folder).get("methods", {})).get("tests", [])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("methods", *first["loc"]))
        raise DataError(f"{folder / REPORT_FILE}, {where}: {first['msg']}") from None


class _Methods(TypedDict):
    """The part of the field `methods` that is read; the rest is derived from the runs."""

    tests: NotRequired[list[PairedTest]]


_METHODS: TypeAdapter[_Methods] = TypeAdapter(_Methods)
_SUMMARIES: TypeAdapter[list[MethodSummary]] = TypeAdapter(list[MethodSummary])
_TESTS: TypeAdapter[list[PairedTest]] = TypeAdapter(list[PairedTest])
