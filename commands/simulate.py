"""`fedmslora simulate` and `fedmslora report`."""
# typer leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from commands.options import whole_numbers

if TYPE_CHECKING:
    from simulation.engines import Engine


def simulate(
    plan: Annotated[Path, typer.Argument(help="A plan, for example configs/demo.yaml.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The run's folder; by default runs/NAME, with the plan's name."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="What to compare, for example local,mslora_cr,pooled."),
    ] = None,
    curve: Annotated[
        str | None,
        typer.Option(
            help="With local: each hospital also trains on so many of a task's questions, "
            "for example 10,40,160."
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, max=1000, help="Number of runs of each method, with consecutive seeds."
        ),
    ] = 1,
    engine: Annotated[
        str,
        typer.Option(
            help="flower: Flower's simulation engine; inprocess: one process, for a quick try."
        ),
    ] = "flower",
    data: Annotated[
        Path | None, typer.Option(help="Your own data: SITE/TASK/ in the paper's layout.")
    ] = None,
    base_model: Annotated[
        Path | None,
        typer.Option(
            help="The base model's folder; by default the one that comes with the project."
        ),
    ] = None,
    json_out: Annotated[bool, typer.Option("--json", help="Print only report.json.")] = False,
) -> None:
    """Simulate a plan on this machine: all sites, all stages, and the report.

    If it is interrupted, the same command continues after the last finished round.

    Example: fedmslora simulate configs/demo.yaml --out runs/demo
    """
    with _stoppable():
        from common.plan.file import load_plan

        # A mistake in the plan is reported before the slow imports.
        name = load_plan(plan).name
        folder = out or Path("runs") / name
        chosen = _engine(engine)
        from simulation.run import SimulationOptions, simulate

        options = SimulationOptions(
            out=folder.resolve(),
            engine=chosen,
            methods=None if methods is None else [name.strip() for name in methods.split(",")],
            seeds=seeds,
            data=data.resolve() if data else None,
            base_model=base_model.resolve() if base_model else None,
            quiet=json_out,
            curve=None if curve is None else _numbers(curve),
        )
        simulate(plan, options)
    if json_out:
        typer.echo((folder / "report.json").read_text(encoding="utf-8"), nl=False)
    else:
        _print_results(folder)


def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder, for example runs/demo.")],
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help=r"Also write the numbers there for TensorBoard ('.\[tensorboard]').",
        ),
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help=r"Also log the numbers to this MLflow server ('.\[mlflow]').",
        ),
    ] = None,
    json_out: Annotated[bool, typer.Option("--json", help="Print report.json.")] = False,
) -> None:
    """Recreate the page, the charts and metrics.csv of a run from its report.json.

    Example: fedmslora report runs/demo
    """
    from report.answers.examples import read_examples
    from report.hospitals.json_part import read_hospitals
    from report.json_file import read_report
    from report.methods import read_tests
    from report.write import write_report

    runs, hospitals = read_report(folder), read_hospitals(folder)
    write_report(folder, runs, read_tests(folder), hospitals, read_examples(folder))
    if tensorboard is not None:
        from report.metrics.trackers import write_tensorboard

        with _optional("tensorboard"):
            write_tensorboard(tensorboard, runs)
    if mlflow is not None:
        from report.metrics.trackers import log_mlflow

        with _optional("mlflow"):
            log_mlflow(mlflow, runs)
    if json_out:
        typer.echo((folder / "report.json").read_text(encoding="utf-8"), nl=False)
    else:
        _print_comparison(folder)
        typer.echo(f"report: {folder / 'report.html'}")


@contextmanager
def _optional(extra: str) -> Generator[None]:
    """Refuse, by the name of the extra, where an optional package is not installed."""
    from common.errors import StateError

    try:
        yield
    except ModuleNotFoundError as error:
        raise StateError(
            f"--{extra}: found no package {error.name!r}, expected it: "
            f"pip install --editable '.[{extra}]'"
        ) from None


def _numbers(text: str) -> list[int]:
    from common.errors import PlanError

    if (numbers := whole_numbers(text)) is None:
        raise PlanError(f"--curve: found {text[:60]!r}, expected whole numbers such as 10,40,160")
    return numbers


def _engine(name: str) -> "Engine":
    from common.errors import PlanError
    from simulation.engines import Engine

    if name not in list(Engine):
        known = " or ".join(repr(str(engine)) for engine in Engine)
        raise PlanError(f"--engine: found {name!r}, expected {known}")
    return Engine(name)


def _print_comparison(folder: Path) -> None:
    """Print what every hospital gains, and the comparison of methods, where there are."""
    from report.hospitals.json_part import read_hospitals
    from report.json_file import read_report
    from report.methods import read_tests
    from report.terminal import comparison_text, hospitals_text

    reports, hospitals = read_report(folder), read_hospitals(folder)
    if hospitals is not None:
        typer.echo(hospitals_text(hospitals) + "\n")
    if len(reports) > 1:
        typer.echo(comparison_text(reports, read_tests(folder)) + "\n")


def _print_results(folder: Path) -> None:
    _print_comparison(folder)
    if (folder / "bank").exists():
        typer.echo(f"bank:   {folder / 'bank'}   (fedmslora bank list {folder / 'bank'})")
    typer.echo(f"report: {folder / 'report.html'}")


@contextmanager
def _stoppable() -> Generator[None]:
    """Let Ctrl-C or SIGTERM in the body end the process with one sentence and exit code 130."""
    before = {number: signal.signal(number, _stop) for number in _STOPS}
    try:
        yield
    except KeyboardInterrupt:
        _leave()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_STOPS = (signal.SIGINT, signal.SIGTERM)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    # The first one lets the engine shut down; a second does not wait for that.
    for number in _STOPS:
        signal.signal(number, _leave)
    raise KeyboardInterrupt


def _leave(_signal: int = signal.SIGINT, _frame: FrameType | None = None) -> NoReturn:
    typer.echo("Stopped. The same command continues from here.", err=True)
    _end_children()
    # The engine's threads may wait for answers that won't come. The run's state is on the disk,
    # so nothing is lost by exiting now.
    os._exit(130)


def _end_children() -> None:
    """Kill every process that an engine started, however far its start had come."""
    with suppress(ImportError):
        import psutil

        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
