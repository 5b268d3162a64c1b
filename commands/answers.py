"""`fedmslora answers`: files of answers scored as the paper does, compared, and averaged."""
# typer leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from report.answer_averages import Average, Tables
    from report.compare_answers import AnswerComparison

app = typer.Typer(
    no_args_is_help=True, help="Score files of answers as the paper does, compare, average."
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.callback()
def answers() -> None:
    """Score files of answers as the paper does, compare two, average many."""


@app.command()
def score(
    files: Annotated[list[Path], typer.Argument(help="Files of answers, one JSON object a line.")],
    json_out: Json = False,
) -> None:
    """Print the paper's metrics of each file, percentages.

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
    second: Annotated[Path, typer.Argument(help="Another one, to the same questions.")],
    json_out: Json = False,
) -> None:
    """Test whether two files of answers to the same questions differ by more than chance.

    McNemar's exact test where an answer is right or wrong, a paired bootstrap for all scores.

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
    typer.echo("Differences are second less first, in points, with their 95 % bootstrap interval.")
    for one in found:
        typer.echo(_compared(one))


@app.command()
def average(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE_OR_FOLDER...", help="Files of answers, or folders with such beneath."
        ),
    ],
    json_out: Json = False,
) -> None:
    """Average the paper's metrics over the tasks of each run, percentages.

    A file lies in its task's folder (its name is the task's), and that one in its run's
    folder. Of several runs the tasks that all of them have are averaged, too, and each is
    compared with the first.

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
        _print_averages(tables, own, over)
        return
    for run, found in own.items():
        typer.echo(f"{run} ({len(tables[run])} tasks)")
        _say_averages(found, own)
    if over:
        typer.echo(f"\nOver the {len(shared)} tasks that all runs have: {', '.join(shared)}")
        for run, found in over.items():
            typer.echo(run)
            _say_averages(found, over)


def _compared(one: "AnswerComparison") -> str:
    """A line of `compare`."""
    boot, test = one.bootstrap, one.mcnemar
    interval = f"{boot.difference:+.3f} [{boot.low:+.3f}, {boot.high:+.3f}]"
    name = f"{one.kind} ({one.questions}), {one.score}"
    figures = f"{name:<34}{one.first:>9.6g} -> {one.second:<9.6g}{interval:>26}"
    if test is None:
        return f"{figures}  p = {boot.p:.2g} (bootstrap)"
    only = f"only first right {test.first_only}, only second {test.second_only}"
    return f"{figures}  p = {test.p:.2g} (McNemar; {only})"


def _say_averages(found: "Sequence[Average]", runs: "Mapping[str, list[Average]]") -> None:
    for one in found:
        difference = _difference(one, runs)
        change = "" if difference is None else f"{difference:+.2f}"
        what = f"{len(one.tasks)} tasks" + (f", {one.cells} figures" * (len(one.scores) > 1))
        typer.echo(
            f"  {one.average:<51}{one.value:>8.2f}{change:>8}  {what}: {', '.join(one.tasks)}"
        )


def _difference(one: "Average", runs: "Mapping[str, list[Average]]") -> float | None:
    """From the first run's average of this name, where it is over the same tasks."""
    first = next(iter(runs.values()))
    same = [
        other.value
        for other in first
        if other.average == one.average and set(other.tasks) == set(one.tasks) and other is not one
    ]
    return one.value - same[0] if same else None


def _print_averages(
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
