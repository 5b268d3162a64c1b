"""`fedmslora simulate` and `fedmslora report`."""
# typer leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false

import json
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer


def simulate(
    plan: Annotated[Path, typer.Argument(help="A plan, for example configs/demo.yaml.")],
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; by default runs/ and the plan's name.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Methods to compare, for example sequential,mslora_cr."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each method, with seeds in a row.")
    ] = 1,
    engine: Annotated[
        str, typer.Option(help="flower: Flower's simulation engine; inprocess: a quick look.")
    ] = "flower",
    data: Annotated[
        Path | None, typer.Option(help="Your own data, SITE/TASK/ in the paper's layout.")
    ] = None,
    base_model: Annotated[Path | None, typer.Option(help="The base model's folder.")] = None,
    json_out: Annotated[
        bool, typer.Option("--json", help="Print report.json, nothing else.")
    ] = False,
) -> None:
    """Run a plan on this machine: every site, every stage, then the report.

    Stopped half-way, the same command goes on behind the last finished round.

    Example: fedmslora simulate configs/demo.yaml --out runs/demo
    """
    from common.errors import PlanError
    from common.plan import load_plan
    from simulation.engines import Engine
    from simulation.run import Wish, simulate

    if engine not in list(Engine):
        raise PlanError(f"--engine: found {engine!r}, expected 'flower' or 'inprocess'")
    signal.signal(signal.SIGTERM, _terminated)
    folder = out or Path("runs") / load_plan(plan).name
    wish = Wish(
        out=folder.resolve(),
        engine=Engine(engine),
        methods=methods.split(",") if methods else None,
        seeds=seeds,
        data=data.resolve() if data else None,
        base_model=base_model.resolve() if base_model else None,
        quiet=json_out,
    )
    try:
        simulate(plan, wish)
    except KeyboardInterrupt:
        typer.echo(f"stopped; the same command goes on from {folder}", err=True)
        # The engine's threads wait for answers that won't come. All that counts is on the
        # disk, so nothing is lost by going now.
        os._exit(130)
    if json_out:
        typer.echo((wish.out / "report.json").read_text(encoding="utf-8"))
    else:
        _say_what_to_do(folder)


def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder, for example runs/demo.")],
    json_out: Annotated[bool, typer.Option("--json", help="Print report.json.")] = False,
) -> None:
    """Draw the report of a run anew from its report.json.

    Example: fedmslora report runs/demo
    """
    from common.report import read_report, to_document, write_report

    reports = read_report(folder)
    write_report(folder, reports)
    if json_out:
        typer.echo(json.dumps(to_document(reports[0]), indent=1))
    else:
        typer.echo(f"report: {folder / 'report.html'}")


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say_what_to_do(folder: Path) -> None:
    typer.echo(f"bank:   {folder / 'bank'}   (fedmslora bank list {folder / 'bank'})")
    typer.echo(f"report: {folder / 'report.html'}")
