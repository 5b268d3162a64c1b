"""Small sources of an import: pictures of one grey each, and what an import makes of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from client.data.task import Example, check_task
from client.importing.importer import import_task
from client.importing.settings import ImportSettings
from client.importing.write import Import


def picture(file: Path, grey: int, **save: Any) -> Path:
    """A picture whose grey no other one has, in the format that its name says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((4, 6, 3), grey, np.uint8)
    pixels[0, 0] = 255 - grey
    Image.fromarray(pixels).save(file, **save)
    return file


def ignored(name: str, done: int, of: int) -> None:
    """Nobody watches."""


def imported(source: Path, out: Path, **settings: Any) -> Import:
    """The import of a source, whose task passes the check of every simulation."""
    found = import_task(source, out, ImportSettings(**settings), ignored)
    check_task(out)
    return found


def questions(out: Path) -> dict[str, list[Example]]:
    """The questions of each side of an imported task."""
    data = check_task(out)
    return {"train": list(data.train), "test": list(data.test)}


def report(out: Path) -> dict[str, Any]:
    """What the import wrote of itself."""
    return json.loads((out / "import.json").read_text("utf-8"))


def sides(out: Path) -> Mapping[str, set[str]]:
    """Which pictures of the source are on each side."""
    placed = report(out)["placed"]
    return {
        side: {row["from"] for row in placed if row["side"] == side} for side in ("train", "test")
    }


def tree(folder: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
