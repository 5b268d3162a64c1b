"""`fedmslora answers`: score files of answers with the paper's metrics, compare, average."""
# typer leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.options import Json
from common.printable import counted

if TYPE_CHECKING:
    from report.answer_averages import Average, Tables
    from report.compare_answers import AnswerComparison

app = typer.Typer(
    no_args_is_help=True,
    help="Score files of answers with the paper's metrics, compare two, average over tasks.",
)


@app.callback()
def answers() -> None:
    """Score files of answers with the paper's metrics, compare two, average over tasks."""


@app.command()
def score(
    files: Annotated[list[Path], typer.Argument(help="Files of answers (JSON Lines).")],
    json_out: Json = False,
) -> None:
    """Print the paper's metrics of each file, in percent.

    Example: fedmslora answers score results/CXP/answers.jsonl
    """
    from common.metrics import paper_metrics, read_answers

    scored = {str(file): paper_metrics(read_answers(file)) for file in files}
    if json_out:
        entries = [{"file": file, "metrics": metrics} for file, metrics in scored.items()]
        typer.echo(json.dumps({"files": entries}, indent=1))
        return
    for file, metrics in scored.items():
        typer.echo(file)
        for name, value in metrics.items():
            typer.echo(f"  {name:<20}{value:>10.6g}")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A file of answers.")],
    second: Annotated[
        Path, typer.Argument(help="Another file, with answers to the same questions.")
    ],
    json_out: Json = False,
) -> None:
    """Test whether two files of answers to the same questions differ significantly.

    McNemar's exact test for scores that are right or wrong, a paired bootstrap for the others.

    Example: fedmslora answers compare each/CXP/answer-file.jsonl cr/CXP/answer-file.jsonl
    """
    from common.metrics import read_answers
    from report.compare_answers import compare_answers, pair_answers

    pairs = pair_answers(read_answers(first), read_answers(second), (str(first), str(second)))
    found = compare_answers(pairs)
    if json_out:
        document: dict[str, Any] = {"first": str(first), "second": str(second)}
        document |= {"questions": len(pairs), "scores": [asdict(one) for one in found]}
        typer.echo(json.dumps(document, indent=1))
        return
    typer.echo(f"first:  {first}\nsecond: {second}")
    typer.echo("Differences: second minus first, in points, with the 95 % bootstrap interval.")
    for one in found:
        typer.echo(_comparison_line(one))


@app.command()
def average(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE_OR_FOLDER...",
            help="Files of answers, or folders that contain such files.",
        ),
    ],
    json_out: Json = False,
) -> None:
    """Average the paper's metrics over the tasks of each run, in percent.

    Files are found as RUN/TASK/answers.jsonl or RUN/TASK/answer-file.jsonl. With several runs,
    the tasks that all of them have are averaged as well, and each run is compared with the
    first.

    Example: fedmslora answers average MSLoRA_CR/results/finetune_lora_each-64-64_llava_med_v1.5
    MSLoRA_CR/results
    """
    from common.metrics import paper_metrics, read_answers
    from report.answer_averages import averages, common_tasks, find_runs

    tables = {
        run: {task: paper_metrics(read_answers(file)) for task, file in tasks.items()}
        for run, tasks in find_runs(paths).items()
    }
    own = {run: averages(tasks) for run, tasks in tables.items()}
    shared = common_tasks(list(tables.values())) if len(tables) > 1 else ()
    over = {run: averages(tasks, shared) for run, tasks in tables.items()} if shared else {}
    if json_out:
        _print_json(tables, own, over)
        return
    for run, found in own.items():
        typer.echo(f"{run} ({counted(len(tables[run]), 'task')})")
        _print_run(found, own)
    if over:
        tasks = counted(len(shared), "task")
        typer.echo(f"\nOver the {tasks} that all runs have: {', '.join(shared)}")
        for run, found in over.items():
            typer.echo(run)
            _print_run(found, over)


def _comparison_line(one: "AnswerComparison") -> str:
    boot, test = one.bootstrap, one.mcnemar
    interval = f"{boot.difference:+.3f} [{boot.low:+.3f}, {boot.high:+.3f}]"
    name = f"{one.kind} ({one.questions}), {one.score}"
    figures = f"{name:<34}{one.first:>9.6g} -> {one.second:<9.6g}{interval:>26}"
    if test is None:
        return f"{figures}  p = {boot.p:.2g} (bootstrap)"
    only = f"right only in the first: {test.first_only}, only in the second: {test.second_only}"
    return f"{figures}  p = {test.p:.2g} (McNemar; {only})"


def _print_run(found: "Sequence[Average]", runs: "Mapping[str, list[Average]]") -> None:
    for one in found:
        difference = _difference(one, runs)
        change = "" if difference is None else f"{difference:+.2f}"
        over = counted(len(one.tasks), "task")
        if len(one.scores) > 1:
            over += f", {counted(one.cells, 'value')}"
        typer.echo(
            f"  {one.average:<51}{one.value:>8.2f}{change:>8}  {over}: {', '.join(one.tasks)}"
        )


def _difference(one: "Average", runs: "Mapping[str, list[Average]]") -> float | None:
    """Return the difference from the first run's average over the same tasks, if it has one."""
    first = next(iter(runs.values()))
    same = [
        other.value
        for other in first
        if other.average == one.average and set(other.tasks) == set(one.tasks) and other is not one
    ]
    return one.value - same[0] if same else None


def _print_json(
    tables: "Mapping[str, Tables]",
    own: "Mapping[str, list[Average]]",
    over: "Mapping[str, list[Average]]",
) -> None:
    def entries(runs: "Mapping[str, list[Average]]", run: str) -> list[dict[str, Any]]:
        found = runs.get(run, [])
        return [asdict(one) | {"difference": _difference(one, runs)} for one in found]

    runs = [
        {
            "run": run,
            "tasks": tasks,
            "averages": entries(own, run),
            "common_tasks": entries(over, run),
        }
        for run, tasks in tables.items()
    ]
    typer.echo(json.dumps({"runs": runs}, indent=1))
