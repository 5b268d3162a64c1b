"""`fedmslora compare`: two finished runs side by side."""
# typer leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.options import Json

if TYPE_CHECKING:
    from report.compare.model import RunComparison, TaskDifference
    from report.compare.runs import FinishedRun
    from report.learned.intervals import Estimate
    from report.model import RunReport


def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Another run's folder.")],
    json_out: Json = False,
) -> None:
    """Compare two runs: scores by task with intervals, plans, and what may be said.

    Differences are second minus first. To compare methods with paired tests, run them together:
    fedmslora simulate PLAN --methods A,B --seeds 5

    Example: fedmslora compare runs/demo runs/other
    """
    from report.compare.runs import compare_runs

    found = compare_runs(_finished(first), _finished(second))
    if json_out:
        document = {"first": str(first), "second": str(second), **asdict(found)}
        typer.echo(json.dumps(document, indent=1))
        return
    _print(found, (str(first), str(second)))


def _finished(folder: Path) -> "FinishedRun":
    from report.compare.runs import FinishedRun
    from report.json_file import read_report

    reports = read_report(folder)
    own = [report for report in reports if report.method == reports[0].method]
    return FinishedRun(reports=own, plan=_plan_of(folder, own))


def _plan_of(folder: Path, own: "Sequence[RunReport]") -> dict[str, Any]:
    """Return the plan of the reports; empty, and told, where the folder has another one only.

    The plan's own method ran in the folder itself, another in one below it.
    """
    from common.plan.file import load_plan, written_digest

    label, expected = own[0].method, {report.plan.hash for report in own}
    below = (folder / "methods" / label, folder / label)
    files = [one / "plan.json" for one in (folder, *below) if (one / "plan.json").exists()]
    found = {file: written_digest(file) for file in files}
    for file, digest in found.items():
        if digest in expected:
            return json.loads(load_plan(file).canonical())
    if found:
        file, digest = next(iter(found.items()))
        typer.echo(
            f"{file}: found the plan {digest[:12]}, expected {own[0].plan.hash[:12]}, that of "
            "report.json; it is taken for missing",
            err=True,
        )
    return {}


def _print(found: "RunComparison", names: tuple[str, str]) -> None:
    from common.printable import counted

    heads = ("first:  ", "second: ")
    for head, name, method, seeds in zip(heads, names, found.methods, found.seeds, strict=True):
        typer.echo(f"{head}{name} ({method}, {counted(len(seeds), 'seed')})")
    typer.echo(f"\n{'percent':<24}{'first':>7}{'second':>8}  difference")
    for task in found.tasks:
        typer.echo(_line(task))
    for one in found.means:
        gap = one.second - one.first
        name = f"mean of {one.tasks}, {one.metric.replace('_', ' ')}"
        typer.echo(
            f"{name[:23]:<24}{100 * one.first:>7.1f}{100 * one.second:>8.1f}"
            f"  {_gap(gap, one.interval)}"
        )
    for head, tasks in (("first", found.only_first), ("second", found.only_second)):
        if tasks:
            typer.echo(f"only in the {head}: {', '.join(tasks)}")
    if found.plan:
        typer.echo("\nplan: first, second")
        for name, (one, other) in found.plan.items():
            typer.echo(f"  {name}: {_value(one)}, {_value(other)}")
    typer.echo(f"\n{found.may_be_said}")


def _line(task: "TaskDifference") -> str:
    if task.first is None or task.second is None or task.difference is None:
        return f"{task.task[:23]:<24}{'-':>7}{'-':>8}"
    mark = " *" if task.differs else ""
    gap = _gap(task.difference, task.interval)
    return f"{task.task[:23]:<24}{100 * task.first:>7.1f}{100 * task.second:>8.1f}  {gap}{mark}"


def _gap(difference: float, interval: "Estimate | None") -> str:
    from report.format import points

    if interval is None:
        return points(difference)
    return f"{points(difference)} [{points(interval.low)}, {points(interval.high)}]"


def _value(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."
