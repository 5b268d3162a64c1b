"""Every number of a run as one row each, and as a CSV file beside the report."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields

from report.learned.intervals import Estimate
from report.learned.rows import TaskScores, task_scores
from report.learned.verdict import question_count
from report.model import RunReport

METRICS_FILE = "metrics.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow:
    """One number of a run; the fields are the columns of the file, empty where they don't apply.

    Attributes:
        kind: score, routed (score with the stage chosen by picture), zero_shot, majority, measure
            (another measure than the plan's, right after the task's stage), loss, bytes_up or
            bytes_down.
        after: the stage after which it was measured; of losses and bytes the stage itself.
        value: a fraction, a loss in nats, or a number of bytes.
        low, high: a 95 % interval, of the scores when learned and at the end.
        questions: test questions of the task.
    """

    kind: str
    method: str
    seed: int
    after: str = ""
    round: int | str = ""
    task: str = ""
    site: str = ""
    metric: str = ""
    value: float
    low: float | str = ""
    high: float | str = ""
    questions: int | str = ""


def metric_rows(report: RunReport) -> Iterator[MetricRow]:
    """Yield every number of a run."""
    yield from _scores(report)
    yield from _baselines(report)
    yield from _by_site(report)
    yield from _measures(report)
    yield from _training(report)


def metrics_csv(reports: Sequence[RunReport]) -> str:
    """Return all runs' numbers as CSV, with a line of headings."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(MetricRow)])
    for report in reports:
        writer.writerows(astuple(row) for row in metric_rows(report))
    return text.getvalue()


def _scores(report: RunReport) -> Iterator[MetricRow]:
    tasks = task_scores(report)
    last = len(report.stages) - 1
    matrices = {"score": report.scores}
    if report.routed is not None:
        matrices["routed"] = report.routed.scores
    for kind, matrix in matrices.items():
        for after, row in enumerate(matrix):
            for task, value in enumerate(row):
                if value is None:
                    continue
                span = _span(tasks[task], kind, (after, task), last)
                yield _row(report, _Place(kind, task, report.stages[after].name), value, span)


def _baselines(report: RunReport) -> Iterator[MetricRow]:
    for kind, values in (("zero_shot", report.zero_shot), ("majority", report.majority)):
        for task, value in enumerate(values):
            if value is not None:
                yield _row(report, _Place(kind, task), value)


def _span(scores: TaskScores, kind: str, place: tuple[int, int], last: int) -> Estimate | None:
    after, task = place
    if kind == "routed":
        return scores.routed.interval if after == last else None
    if after == last:
        return scores.last.interval
    return scores.learned.interval if after == task else None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a number of a task was measured."""

    kind: str
    task: int
    after: str = ""
    site: str = ""


def _row(
    report: RunReport,
    place: _Place,
    value: float,
    span: Estimate | None = None,
    questions: int | None = None,
) -> MetricRow:
    stage = report.stages[place.task]
    count = question_count(report, place.task) if questions is None else questions
    return MetricRow(
        kind=place.kind,
        method=report.method,
        seed=report.seed,
        after=place.after,
        task=stage.name,
        site=place.site,
        metric=stage.metric.value,
        value=value,
        low="" if span is None else span.low,
        high="" if span is None else span.high,
        questions="" if count is None else count,
    )


def _by_site(report: RunReport) -> Iterator[MetricRow]:
    for one in report.by_site:
        for after, row in enumerate(one.scores):
            for task, value in enumerate(row):
                if value is not None:
                    place = _Place("score", task, report.stages[after].name, one.site)
                    yield _row(report, place, value, None, one.questions[task])


def _measures(report: RunReport) -> Iterator[MetricRow]:
    for stage, measured in zip(report.stages, report.task_metrics, strict=False):
        for name, value in measured.items():
            if name != stage.metric.value:
                yield MetricRow(
                    kind="measure",
                    method=report.method,
                    seed=report.seed,
                    after=stage.name,
                    task=stage.name,
                    metric=name,
                    value=value,
                )


def _training(report: RunReport) -> Iterator[MetricRow]:
    method, seed = report.method, report.seed
    for point in report.curves:
        if point.loss is not None:
            yield MetricRow(
                kind="loss",
                method=method,
                seed=seed,
                after=point.stage,
                round=point.round,
                site=point.site,
                value=point.loss,
            )
    for site, cost in sorted(report.cost.sites.items()):
        for one in cost.by_round:
            for kind, count in (("bytes_up", one.bytes_up), ("bytes_down", one.bytes_down)):
                yield MetricRow(
                    kind=kind,
                    method=method,
                    seed=seed,
                    after=one.stage,
                    round=one.round,
                    site=site,
                    value=count,
                )
