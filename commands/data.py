"""`fedmslora data`: look through folders of tasks before anything is trained on them."""

# typer 0.20 leaves a type of click's open in its overloads; not ours to fix.
# pyright: reportUnknownMemberType=false

import json
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from client.data_check import TaskCheck, Told

app = typer.Typer(no_args_is_help=True, help="The data of tasks, before training on it.")


@app.callback()
def data() -> None:
    """The data of tasks, before training on it."""


@app.command()
def check(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folders of tasks, or one task's folder.")
    ],
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that decode pictures; each needs memory.")
    ] = min(8, os.cpu_count() or 1),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.")
    ] = False,
) -> None:
    """Look for everything that is wrong with tasks in the paper's layout, pictures included.

    It ends with code 2 if a task can't be used as it is. What it prints names files and
    questions' ids: keep it where the data is.

    Example: fedmslora data check data/MSLoRA_CR
    """
    from client.data_check import absent, check_tasks, task_folders

    # What a folder is called matters, also where it is given as a dot.
    folders = task_folders(folder.absolute())
    with _progress() as told:
        checks = list(check_tasks(folders, workers, told))
    missing = absent(folders)
    passed = not any(check.errors for check in checks)
    if as_json:
        typer.echo(json.dumps(_document(folder, checks, missing, passed), indent=1))
    else:
        _print_table(checks)
        _print_sentences(checks, missing)
    if not passed:
        typer.echo("The data can't be used as it is: see the errors.", err=True)
        raise typer.Exit(2)


def _document(
    folder: Path, checks: Sequence["TaskCheck"], missing: Sequence[str], passed: bool
) -> dict[str, Any]:
    from client.data_check import PUBLISHED

    tasks: list[dict[str, Any]] = []
    for check in checks:
        known, name = PUBLISHED.get(check.folder.name), check.folder.name
        paper = None if known is None else {"closed": known.closed, "open": known.open}
        tasks.append({"name": name, "paper": paper, **asdict(check), "folder": str(check.folder)})
    return {"folder": str(folder), "passed": passed, "absent": list(missing), "tasks": tasks}


def _print_table(checks: Sequence["TaskCheck"]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    widest = max(len(check.folder.name) for check in checks)
    table.add_column("task", overflow="fold", min_width=min(widest, 16))
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for check in checks:
        fields: dict[str, Any] = asdict(check)
        counts = [str(fields[field]) for field in _COLUMNS.values()]
        # rich would take brackets for its own marks.
        table.add_row(check.folder.name.replace("[", r"\["), *counts)
    Console().print(table)


#: What the table calls the fields of a check.
_COLUMNS = {
    "train": "train",
    "closed": "closed",
    "open": "open",
    "images": "images",
    "missing": "missing",
    "broken": "unreadable",
    "shared": "shared",
    "no\noption": "optionless",
    "same\nid": "repeated",
}


def _print_sentences(checks: Sequence["TaskCheck"], missing: Sequence[str]) -> None:
    from client.data import LISTED_MISTAKES

    for check in checks:
        for label, sentences in (("error", check.errors), ("note", check.notes)):
            for sentence in sentences[:LISTED_MISTAKES]:
                typer.echo(f"{check.folder.name}: {label}: {sentence}")
            if (more := len(sentences) - LISTED_MISTAKES) > 0:
                typer.echo(f"{check.folder.name}: and {more} more {label}s")
    if missing:
        typer.echo(f"Not here, of the paper's eight: {', '.join(missing)}")


@contextmanager
def _progress() -> Generator["Told"]:
    """On stderr, how many pictures of each task have been decoded, or are going to be."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

    columns = TextColumn("{task.fields[name]}"), BarColumn(), MofNCompleteColumn()
    console = Console(stderr=True)
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def told(name: str, done: int, total: int) -> None:
            if done == 0 and not console.is_terminal:
                typer.echo(f"{name}: {total} pictures to decode", err=True)
            if name not in bars:
                bars[name] = progress.add_task("", total=total, name=name)
            progress.update(bars[name], completed=done)

        yield told
