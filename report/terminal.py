"""The comparison of methods as text, for a terminal."""

from collections.abc import Iterator, Sequence

from common.plan.plan import Metric
from common.printable import counted
from report.format import (
    DASH,
    duration,
    known_size,
    mean_spread,
    p_value,
    points,
    readable,
    signed_spread,
    whole,
)
from report.hospitals.model import HospitalsReport
from report.hospitals.words import (
    gain_headline,
    how_measured,
    table_heads,
    table_rows,
    who_gains,
    worth_sentences,
)
from report.methods import LEVELS, MethodSummary, PairedTest, shown, summaries
from report.model import RunReport, kinds
from report.options.rows import OptionRow, option_rows
from report.tests_table import HEADS, comparison_rows

_OPTIONS = ("free: learned", "end", "among options: learned", "end", "answered an option")
_COST = ("steps", "training", "whole run", "sent", "received", "peak memory")


def comparison_text(reports: Sequence[RunReport], tests: Sequence[PairedTest]) -> str:
    """Return tables: every method's metrics, its cost, and the tests against the first method."""
    rows = summaries(reports)
    parts = [_metrics_table(rows, kind, len(tasks)) for kind, tasks in kinds(reports[0]).items()]
    if among := option_rows(reports):
        parts.append(_table(["closed questions", *_OPTIONS], [_option_cells(row) for row in among]))
    parts.append(_table(["cost of a run", *_COST], [_cost_cells(row) for row in rows]))
    if tests:
        parts.append(_tests_table(reports[0].method, tests))
    return "\n\n".join(parts)


def hospitals_text(report: HospitalsReport) -> str:
    """Return a table with a row for each hospital, which gains nothing, and what it is worth."""
    rows = [[f"{row.name} ({row.note})", *row.cells] for row in table_rows(report)]
    sentences = [who_gains(report), how_measured(report), *worth_sentences(report)]
    table = _table(["hospital", *table_heads(report)], rows)
    return "\n".join([gain_headline(report), "", table, *filter(None, sentences)])


def _metrics_table(rows: Sequence[MethodSummary], kind: Metric, tasks: int) -> str:
    seeds = counted(len(rows[0].seeds), "seed")
    corner = f"{readable(kind.value)}, {counted(tasks, 'task')}, {seeds}"
    names = shown(rows)
    heads = [corner, *(readable(name) for name in names)]
    return _table(heads, [[row.method, *_metric_cells(row, kind, names)] for row in rows])


def _metric_cells(row: MethodSummary, kind: Metric, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        found = row.metrics[kind][name]
        yield mean_spread(found) if name in LEVELS else signed_spread(found)


def _option_cells(row: OptionRow) -> list[str]:
    free, among = (row.free_learned, row.free_last), (row.among_learned, row.among_last)
    return [row.method, *map(mean_spread, (*free, *among, row.listed_last))]


def _cost_cells(row: MethodSummary) -> list[str]:
    cost = row.cost
    return [
        row.method,
        whole(cost.steps),
        duration(cost.training_seconds),
        duration(cost.seconds),
        known_size(cost.bytes_up),
        known_size(cost.bytes_down),
        known_size(cost.peak_memory_bytes),
    ]


def _tests_table(first: str, tests: Sequence[PairedTest]) -> str:
    rows = [
        [f"{row.method}, {readable(row.measure)}", *map(_test_cell, row.cells)]
        for row in comparison_rows(tests)
    ]
    note = "Differences in points; p adjusted for all methods of a column (Holm)"
    return f"{_table([f'{first} minus', *HEADS], rows)}\n{note}"


def _test_cell(test: PairedTest | None) -> str:
    return DASH if test is None else f"{points(test.difference)}, p {p_value(test.p_holm)}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out columns as wide as their widest cell; the first left-aligned, the others right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (heads, *rows)
    ]
    return "\n".join(lines)
