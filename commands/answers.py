"""`fedmslora answers`: the paper's metrics of answer files."""
# typer leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Score files of answers as the paper does.")


@app.callback()
def answers() -> None:
    """Score files of answers as the paper does."""


@app.command()
def score(
    files: Annotated[list[Path], typer.Argument(help="Files of answers, one JSON object a line.")],
    json_out: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
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
