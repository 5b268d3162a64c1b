"""`fedmslora bench`: ours and the plain way, side by side in one process."""
# typer leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false

import json
import sys
from contextlib import redirect_stdout
from typing import Annotated

import click
import typer

app = typer.Typer(no_args_is_help=True, help="Measure ours against the plain way, side by side.")

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
_Repeats = Annotated[int, typer.Option(min=1, help="Timings of each; the median counts.")]
_Tasks = Annotated[int, typer.Option(min=1, help="Earlier tasks.")]


@app.callback()
def _only_results(context: typer.Context) -> None:
    # Only the result goes to stdout: DeepSpeed, where it is installed, logs to it.
    context.obj = sys.stdout
    context.with_resource(redirect_stdout(sys.stderr))


@app.command()
def step(tasks: _Tasks = 7, repeats: _Repeats = 5, json_out: _Json = False) -> None:
    """A training step with earlier adapters folded, against the paper's loop over tasks.

    Example: fedmslora bench step --json
    """
    from benchmarks.step import run

    _show(run(tasks, repeats).to_json(), json_out)


@app.command()
def regularizer(tasks: _Tasks = 7, repeats: _Repeats = 5, json_out: _Json = False) -> None:
    """The regularizer's batched analytic gradient, against autograd of the paper's loop.

    Example: fedmslora bench regularizer --json
    """
    from benchmarks.regularizer import run

    _show(run(tasks, repeats).to_json(), json_out)


@app.command()
def packing(repeats: _Repeats = 3, json_out: _Json = False) -> None:
    """The questions of a picture behind one prefix, against one question a sequence.

    Example: fedmslora bench packing --json
    """
    from benchmarks.packing import run

    _show(run(repeats).to_json(), json_out)


@app.command()
def evaluate(tasks: _Tasks = 7, repeats: _Repeats = 2, json_out: _Json = False) -> None:
    """The answers to a whole test set, against one question at a time with all adapters apart.

    Example: fedmslora bench evaluate --json
    """
    from benchmarks.evaluate import run

    _show(run(tasks, repeats).to_json(), json_out)


@app.command()
def features(repeats: _Repeats = 5, json_out: _Json = False) -> None:
    """An epoch's pictures: features read from the site's disk, against decoding every time.

    Example: fedmslora bench features --json
    """
    from benchmarks.features import run

    _show(run(repeats).to_json(), json_out)


@app.command()
def aggregate(
    repeats: Annotated[int, typer.Option(min=1, help="Timings of each; the median counts.")] = 3,
    json_out: _Json = False,
) -> None:
    """Exact aggregation of the 7B's 224 layers, against forming the dense products.

    Two to four minutes on two cores, 1 GB of disk, 2 GB of memory.

    Example: fedmslora bench aggregate --json
    """
    from benchmarks.aggregate import run

    _show(run(repeats).to_json(), json_out)


@app.command("round")
def round_(
    sites: Annotated[int, typer.Option(min=1, help="Sites, each of them real processes.")] = 2,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds; the first does not count.")] = 5,
    json_out: _Json = False,
) -> None:
    """A federated round of real processes, against the training of its slowest site alone.

    Example: fedmslora bench round --sites 3 --json
    """
    from benchmarks.round import run

    _show(run(sites, rounds), json_out)


@app.command()
def wire(
    sites: Annotated[
        str, typer.Option(help="Numbers of sites to measure; Flower's own way with the first.")
    ] = "2",
    megabytes: Annotated[int, typer.Option(min=10, help="Size of an adapter in bf16.")] = 30,
    json_out: _Json = False,
) -> None:
    """A real coordinator with sites that answer at once: wire bytes, memory; against FedAvg.

    Example: fedmslora bench wire --sites 2,4,8 --megabytes 300 --json
    """
    from benchmarks.wire import run
    from common.errors import PlanError

    counts = [int(word) for word in sites.split(",") if word.strip().isdigit()]
    if not counts or min(counts) < 2:
        raise PlanError(f"--sites: found {sites!r}, expected numbers from 2 on, as in 2,4,8")
    _show(run(counts, megabytes), json_out)


def _show(result: dict[str, object], json_out: bool) -> None:
    stdout = click.get_current_context().obj
    if json_out:
        typer.echo(json.dumps(result, indent=1), stdout)
        return
    typer.echo(
        f"{result['name']}: ours {result['ours']:.4g} s, theirs {result['theirs']:.4g} s, "
        f"ratio {result['ratio']:.3g}, largest relative difference {result['equal_to']:.2g}",
        stdout,
    )
    for key in ("growth", "memory", "settings"):
        if key in result:
            typer.echo(f"  {key}: {result[key]}", stdout)
