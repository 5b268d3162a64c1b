"""How far the decoding of images has come, on stderr."""

# typer 0.20 leaves a type of click's open in its overloads; not ours to fix.
# pyright: reportUnknownMemberType=false

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from common.printable import counted

if TYPE_CHECKING:
    from client.data.check import OnImagesDecoded


@contextmanager
def decoding_progress() -> Generator["OnImagesDecoded"]:
    """Show on stderr how many images of each task have been decoded."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

    columns = TextColumn("{task.fields[name]}"), BarColumn(), MofNCompleteColumn()
    console = Console(stderr=True)
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def on_images(name: str, done: int, total: int) -> None:
            if done == 0 and not console.is_terminal:
                typer.echo(f"{name}: decoding {counted(total, 'image')}", err=True)
            if name not in bars:
                bars[name] = progress.add_task("", total=total, name=name)
            progress.update(bars[name], completed=done)

        yield on_images
