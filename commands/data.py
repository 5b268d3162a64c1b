"""`fedmslora data`: import tasks, check them, or partition them among simulated sites."""

# typer 0.20 leaves a type of click's open in its overloads; not ours to fix.
# pyright: reportUnknownMemberType=false

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands import data_import
from commands.options import WORKERS, Json, Workers, whole_numbers
from commands.terminal.data_progress import decoding_progress
from common.printable import counted

if TYPE_CHECKING:
    from rich.table import Table

    from client.data.check import TaskCheck
    from client.data.partition import SiteShare
    from simulation.starter_plan import ImportedTask

app = typer.Typer(
    no_args_is_help=True,
    help="Import or check the data of tasks, or partition it among simulated sites.",
)


@app.callback()
def data() -> None:
    """Import or check the data of tasks, or partition it among simulated sites."""


app.command("import")(data_import.import_source)


@app.command()
def check(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of tasks, or one task's folder.")
    ],
    plan: Annotated[
        Path | None,
        typer.Option(help="A plan: its tasks must be there, with answers that are its classes."),
    ] = None,
    workers: Workers = WORKERS,
    as_json: Json = False,
) -> None:
    """Check tasks in the paper's layout: questions, answers and images.

    Exits with code 2 if a task can't be used as it is. The output contains file names and
    question ids: keep it where the data is.

    Example: fedmslora data check data/MSLoRA_CR
    """
    from client.data.check import check_tasks, missing_published, task_folders
    from client.data.check_plan import check_against, folders_of
    from common.plan.file import load_plan

    asked = None if plan is None else load_plan(plan)
    # The folder's name matters, also if it is given as a dot.
    folders = task_folders(folder.absolute())
    if asked is not None:
        folders = folders_of(asked, folder.absolute(), folders)
    with decoding_progress() as on_images:
        checks = list(check_tasks(folders, workers, on_images))
    if asked is not None:
        checks = [check_against(asked, check) for check in checks]
    missing = [] if asked is not None else missing_published(folders)
    passed = not any(check.errors for check in checks)
    if as_json:
        typer.echo(json.dumps(_document(folder, checks, missing, passed), indent=1))
    else:
        _print_table(checks)
        _print_sentences(checks, missing)
    if not passed:
        typer.echo("The data can't be used as it is: see the errors above.", err=True)
        raise typer.Exit(2)


@app.command()
def partition(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of tasks, or one task's folder.")
    ],
    out: Annotated[Path, typer.Argument(help="A new or empty folder; gets SITE/TASK/.")],
    sites: Annotated[str, typer.Option(help="The sites' names, as in a plan: a,b,c")],
    weights: Annotated[
        str | None,
        typer.Option(help="Each site's share of the questions, such as 5,1,1; by default equal."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of the random partition.")] = 0,
    copy: Annotated[
        bool,
        typer.Option(
            "--copy", help="Hard-link or copy the images instead of linking them symbolically."
        ),
    ] = False,
    workers: Workers = WORKERS,
    as_json: Json = False,
) -> None:
    """Partition tasks in the paper's layout among sites, to simulate a federation.

    All questions about an image, of training and test, go to the same site, also if the image
    has several files; of imported tasks all about a patient. With --copy, OUT can be moved to
    another machine. For imported tasks whose modality is known OUT also gets a plan, plan.yaml.

    Example: fedmslora data partition data/MSLoRA_CR data/sites3 --sites a,b,c
    """
    from client.data.check import task_folders
    from client.data.partition import PartitionSettings, partition_tasks

    names = tuple(name.strip() for name in sites.split(","))
    settings = PartitionSettings(
        sites=names, weights=_weights(weights, len(names)), seed=seed, copy=copy
    )
    # The folder's name matters, also if it is given as a dot.
    folders = task_folders(folder.absolute())
    # A mistake in what an import wrote is found before anything is partitioned.
    imported = _imported_tasks(folders)
    with decoding_progress() as on_images:
        shares = partition_tasks(folders, out, settings, workers, on_images)
    plan = None if imported is None else _write_plan(imported, len(folders), out, names)
    if as_json:
        document = {"folder": str(folder), "out": str(out), "seed": seed}
        document |= {"plan": str(plan)} if plan else {}
        document |= {"sites": names, "weights": settings.weights, "shares": [*map(asdict, shares)]}
        typer.echo(json.dumps(document, indent=1))
    else:
        _print_shares(shares)
        if plan is not None:
            typer.echo(f"plan: {plan}   (fedmslora simulate {plan} --data {out})")


# The old name of `data partition`.
app.command("deal", hidden=True)(partition)


def _imported_tasks(folders: Sequence[Path]) -> "list[ImportedTask] | None":
    """Return the tasks whose modality an import has said; None where they are not all imported."""
    # A site's image has no simulation.
    imported = all((folder / "import.json").exists() for folder in folders)
    if not imported or find_spec("simulation") is None:
        return None
    from simulation.starter_plan import imported_task

    return [task for folder in folders if (task := imported_task(folder)) is not None]


def _write_plan(
    tasks: "Sequence[ImportedTask]", wanted: int, out: Path, sites: Sequence[str]
) -> Path | None:
    """Write a plan for the tasks, if an import has said the modality of each of those wanted."""
    from common.durable import DISK, write_file
    from simulation.starter_plan import starter_plan

    if len(tasks) < wanted:
        typer.echo(
            "No plan was written: the modality of a task is not known (data import --modality).",
            err=True,
        )
        return None
    plan = out / "plan.yaml"
    write_file(plan, starter_plan(out.resolve().name, tasks, sites).encode(), DISK)
    return plan


def _weights(given: str | None, sites: int) -> tuple[int, ...]:
    from common.errors import DataError

    if given is None:
        return (1,) * sites
    if (weights := whole_numbers(given)) is None:
        raise DataError(
            f"--weights: found {given[:60]!r}, expected whole numbers from 1 on, such as 5,1,1"
        )
    return tuple(weights)


def _document(
    folder: Path, checks: Sequence["TaskCheck"], missing: Sequence[str], passed: bool
) -> dict[str, Any]:
    from client.data.check import PUBLISHED

    tasks: list[dict[str, Any]] = []
    for check in checks:
        known, name = PUBLISHED.get(check.folder.name), check.folder.name
        paper = None if known is None else {"closed": known.closed, "open": known.open}
        tasks.append({"name": name, "paper": paper, **asdict(check), "folder": str(check.folder)})
    return {"folder": str(folder), "passed": passed, "absent": list(missing), "tasks": tasks}


def _print_table(checks: Sequence["TaskCheck"]) -> None:
    from rich.console import Console

    from commands.terminal.fitting_table import FittingTable

    table = _table([check.folder.name for check in checks], _COLUMNS)
    for check in checks:
        fields: dict[str, Any] = asdict(check)
        counts = [str(fields[field]) for field in _COLUMNS.values()]
        table.add_row(_escaped(check.folder.name), *counts)
    Console().print(FittingTable(table))


def _print_shares(shares: Sequence["SiteShare"]) -> None:
    from rich.console import Console

    from commands.terminal.fitting_table import FittingTable

    table = _table([share.task for share in shares], ["site", "train", "test", "images"])
    for share in shares:
        counts = map(str, (share.train, share.test, share.images))
        table.add_row(_escaped(share.task), share.site, *counts)
    Console().print(FittingTable(table))


def _table(tasks: Sequence[str], columns: Iterable[str]) -> "Table":
    """Return an empty table whose first column is wide enough for the names of `tasks`."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("task", overflow="fold", min_width=min(max(map(len, tasks)), 16))
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _escaped(name: str) -> str:
    # rich would read brackets as markup.
    return name.replace("[", r"\[")


#: The table's columns: heading and field of a check.
_COLUMNS = {
    "train": "train",
    "closed": "closed",
    "open": "open",
    "images": "images",
    "missing": "missing",
    "broken": "unreadable",
    "in\nboth": "shared",
    "no\noption": "optionless",
    "same\nid": "repeated",
}


def _print_sentences(checks: Sequence["TaskCheck"], missing: Sequence[str]) -> None:
    from client.data.task import LISTED_MISTAKES

    for check in checks:
        for label, sentences in (("error", check.errors), ("note", check.notes)):
            for sentence in sentences[:LISTED_MISTAKES]:
                typer.echo(f"{check.folder.name}: {label}: {sentence}")
            if (more := len(sentences) - LISTED_MISTAKES) > 0:
                typer.echo(f"{check.folder.name}: and {counted(more, f'more {label}')}")
    if missing:
        typer.echo(f"Missing of the paper's eight tasks: {', '.join(missing)}")
