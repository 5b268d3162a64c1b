"""The comparison of methods as text, for a terminal."""

from collections.abc import Iterator, Sequence

from common.plan import Metric
from report.format import (
    NOTHING,
    byte_size,
    chance,
    counted,
    duration,
    mean_spread,
    points,
    signed_spread,
    whole,
    words,
)
from report.methods import SHOWN, MethodSummary, PairedTest, summaries
from report.model import RunReport, kinds
from report.tests_table import HEADS, versus

_COST = ("steps", "training", "whole run", "sent", "received", "peak memory")


def comparison_text(reports: Sequence[RunReport], tests: Sequence[PairedTest]) -> str:
    """Mean and spread of every method, what each costs, and the tests against the first."""
    rows = summaries(reports)
    parts = [_kind(rows, kind, len(tasks)) for kind, tasks in kinds(reports[0]).items()]
    parts.append(_table(["cost of a run", *_COST], [_cost(row) for row in rows]))
    if tests:
        parts.append(_tests(reports[0].method, tests))
    return "\n\n".join(parts)


def _kind(rows: Sequence[MethodSummary], kind: Metric, tasks: int) -> str:
    seeds = len(rows[0].seeds)
    over = f", {counted(tasks, 'task')}, {counted(seeds, 'seed')}"
    heads = [words(kind.value) + over, *(words(name) for name in SHOWN)]
    return _table(heads, [[row.method, *_metrics(row, kind)] for row in rows])


def _metrics(row: MethodSummary, kind: Metric) -> Iterator[str]:
    for name in SHOWN:
        found = row.metrics[kind][name]
        yield mean_spread(found) if name == "last" else signed_spread(found)


def _cost(row: MethodSummary) -> list[str]:
    cost = row.cost
    return [
        row.method,
        whole(cost.steps),
        duration(cost.training_seconds),
        duration(cost.seconds),
        byte_size(cost.bytes_up),
        byte_size(cost.bytes_down),
        byte_size(cost.peak_memory_bytes),
    ]


def _tests(own: str, tests: Sequence[PairedTest]) -> str:
    rows = [
        [f"{row.method}, {words(row.measure)}", *map(_cell, row.cells)] for row in versus(tests)
    ]
    return _table([f"{own} less", *HEADS], rows) + "\np adjusted for all methods of a column (Holm)"


def _cell(test: PairedTest | None) -> str:
    return NOTHING if test is None else f"{points(test.difference)}, p {chance(test.p_holm)}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (heads, *rows)
    ]
    return "\n".join(lines)
