"""`fedmslora bench`: time our implementations against straightforward ones."""
# typer leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false

import json
import sys
from contextlib import redirect_stdout
from typing import Annotated, Final, TextIO

import typer

from commands.options import Json, whole_numbers

app = typer.Typer(
    no_args_is_help=True, help="Time our implementations against straightforward ones."
)

_Repeats = Annotated[
    int,
    typer.Option(min=1, max=1000, help="Timings of each implementation; the median is reported."),
]
_Tasks = Annotated[int, typer.Option(min=1, max=1000, help="Number of earlier tasks.")]
_MOST_SITES: Final = 1000


@app.command()
def step(tasks: _Tasks = 7, repeats: _Repeats = 5, json_out: Json = False) -> None:
    """Time a training step with folded earlier adapters against the paper's loop over tasks.

    Example: fedmslora bench step --json
    """
    with _only_the_result():
        from benchmarks.step import run

        result = run(tasks, repeats).to_json()
    _show(result, json_out)


@app.command()
def regularizer(tasks: _Tasks = 7, repeats: _Repeats = 5, json_out: Json = False) -> None:
    """Time the regularizer's batched analytic gradient against autograd of the paper's loop.

    Example: fedmslora bench regularizer --json
    """
    with _only_the_result():
        from benchmarks.regularizer import run

        result = run(tasks, repeats).to_json()
    _show(result, json_out)


@app.command()
def packing(repeats: _Repeats = 3, json_out: Json = False) -> None:
    """Time an image's questions packed behind one prefix against one question a sequence.

    Example: fedmslora bench packing --json
    """
    with _only_the_result():
        from benchmarks.packing import run

        result = run(repeats).to_json()
    _show(result, json_out)


@app.command()
def evaluate(tasks: _Tasks = 7, repeats: _Repeats = 2, json_out: Json = False) -> None:
    """Time batched answers to a test set against one question at a time with unmerged adapters.

    Example: fedmslora bench evaluate --json
    """
    with _only_the_result():
        from benchmarks.evaluate import run

        result = run(tasks, repeats).to_json()
    _show(result, json_out)


@app.command()
def features(repeats: _Repeats = 5, json_out: Json = False) -> None:
    """Time an epoch with cached image features against decoding every image each time.

    Example: fedmslora bench features --json
    """
    with _only_the_result():
        from benchmarks.features import run

        result = run(repeats).to_json()
    _show(result, json_out)


@app.command()
def aggregate(repeats: _Repeats = 3, json_out: Json = False) -> None:
    """Time exact aggregation of the 7B's 224 layers against forming the dense products.

    Takes 2 to 4 minutes on two cores, 1 GB of disk and 2 GB of memory.

    Example: fedmslora bench aggregate --json
    """
    with _only_the_result():
        from benchmarks.aggregate import run

        result = run(repeats).to_json()
    _show(result, json_out)


@app.command("round")
def round_(
    sites: Annotated[
        int,
        typer.Option(min=1, max=_MOST_SITES, help="Number of sites, each with its own processes."),
    ] = 2,
    rounds: Annotated[
        int, typer.Option(min=2, max=1000, help="Number of rounds; the first is not timed.")
    ] = 5,
    json_out: Json = False,
) -> None:
    """Time a federated round of real processes against the training of its slowest site.

    Example: fedmslora bench round --sites 3 --json
    """
    with _only_the_result():
        from benchmarks.round import run

        result = run(sites, rounds)
    _show(result, json_out)


@app.command()
def wire(
    sites: Annotated[
        str,
        typer.Option(help="Numbers of sites, such as 2,4,8; FedAvg of Flower runs with the first."),
    ] = "2",
    megabytes: Annotated[
        int, typer.Option(min=10, max=100_000, help="Size of an adapter in bf16.")
    ] = 30,
    json_out: Json = False,
) -> None:
    """Measure traffic and memory of a real coordinator against Flower's FedAvg.

    Example: fedmslora bench wire --sites 2,4,8 --megabytes 300 --json
    """
    from common.errors import PlanError

    counts = whole_numbers(sites)
    if counts is None or not all(1 < count <= _MOST_SITES for count in counts):
        raise PlanError(
            f"--sites: found {sites[:60]!r}, expected numbers from 2 to {_MOST_SITES}, as in 2,4,8"
        )
    with _only_the_result():
        from benchmarks.wire import run

        result = run(counts, megabytes)
    _show(result, json_out)


@app.command()
def retrieval(
    vectors: Annotated[
        int, typer.Option(min=1, max=1_000_000_000, help="Number of vectors.")
    ] = 1_000_000,
    repeats: _Repeats = 5,
    json_out: Json = False,
) -> None:
    """Time a search of the retrieval index against one matrix product over the same bytes.

    With a million vectors some 5 minutes, 5 GB of disk and 4 GB of memory.

    Example: fedmslora bench retrieval --json
    """
    with _only_the_result():
        from benchmarks.retrieval.search import IndexSizes, run

        result = run(repeats, IndexSizes(vectors=vectors, captions=vectors)).to_json()
    _show(result, json_out)


@app.command()
def serve(repeats: _Repeats = 5, json_out: Json = False) -> None:
    """Time a picture's questions to `fedmslora serve`, all at once against one after another.

    Example: fedmslora bench serve --json
    """
    with _only_the_result():
        from benchmarks.serving.questions import run

        result = run(repeats).to_json()
    _show(result, json_out)


def _only_the_result() -> redirect_stdout[TextIO]:
    """Redirect what libraries print to stderr; DeepSpeed logs to stdout."""
    return redirect_stdout(sys.stderr)


def _show(result: dict[str, object], json_out: bool) -> None:
    if json_out:
        typer.echo(json.dumps(result, indent=1))
        return
    typer.echo(
        f"{result['name']}: ours {result['ours']:.4g} s, reference {result['theirs']:.4g} s, "
        f"ratio {result['ratio']:.3g}, largest relative difference {result['equal_to']:.2g}"
    )
    for key in ("growth", "memory", "settings"):
        if key in result:
            typer.echo(f"  {key}: {result[key]}")
