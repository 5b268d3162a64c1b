"""`fedmslora retrieval`: reference pairs for a plan, before the federation and without patients."""
# typer leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from retrieval.database import Database
    from retrieval.embedders import CaptionVectors, ImageVectors
    from retrieval.pairs import OnProgress

app = typer.Typer(no_args_is_help=True, help="Retrieve public reference pairs for a plan's stages.")

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


@app.callback()
def group() -> None:
    """Retrieve public reference pairs for a plan's stages."""


@app.command("build")
def build(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of image-caption pairs.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The database's folder; by default DIR/index.", show_default=False),
    ] = None,
    caption_vectors: Annotated[
        Path | None,
        typer.Option(help="A .npy file with a vector for each pair's caption, in file order."),
    ] = None,
    image_vectors: Annotated[
        Path | None,
        typer.Option(help="A .npy file with a vector for each pair's image, in file order."),
    ] = None,
    json_out: _Json = False,
) -> None:
    """Build an index of image-caption pairs: dense vectors and BM25, memory-mapped.

    DIR has any of: .jsonl (one object a line), .csv or .tsv (with a header), webdataset's .tar.
    The same command continues a build that was cut off.

    Example: fedmslora retrieval build data/pairs
    """
    from retrieval.build import build as build_database
    from retrieval.database import DEFAULT_NAME
    from retrieval.embedders import GivenVectors
    from retrieval.tfidf_svd import TfidfSvdVectors

    captions: CaptionVectors = (
        GivenVectors(caption_vectors).of_captions() if caption_vectors else TfidfSvdVectors()
    )
    images: ImageVectors | None = GivenVectors(image_vectors).of_images() if image_vectors else None
    place = folder / DEFAULT_NAME if out is None else out
    with _progress() as on_progress:
        database = build_database(folder, place, captions, images, on_progress)
    _show_database(database, json_out)


def _show_database(database: "Database", json_out: bool) -> None:
    facts = database.facts
    document: dict[str, Any] = {
        "database": str(database.folder),
        "digest": facts.digest,
        "pairs": facts.pairs,
        "captions": facts.captions,
        "embedder": dict(facts.embedder),
        "images": None if facts.images is None else dict(facts.images),
    }
    if json_out:
        typer.echo(json.dumps(document, indent=1))
        return
    typer.echo(
        f"{database.folder}: {facts.pairs} pairs, {facts.captions} captions, "
        f"digest {facts.digest[:16]}"
    )


@contextmanager
def _progress() -> Generator["OnProgress"]:
    """Show on stderr what is done and how far it is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    console = Console(stderr=True)
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def on_progress(step: str, done: int, total: int) -> None:
            if step not in bars:
                bars[step] = progress.add_task(step, total=total or None)
                if not console.is_terminal:
                    typer.echo(f"{step} ...", err=True)
            progress.update(bars[step], completed=done)

        yield on_progress
