"""A list of public reference pairs, stage by stage, that a plan can pin by its file's digest.

`fedmslora retrieval list` writes it before the federation, from the plan alone. A site gets a
folder: `list.json`, and under `images/` the listed images, each named by the digest of its bytes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError

from common.errors import DataError
from common.identity import canonical_json, sha256
from common.plan_fields import Strict

LIST_FILE: Final = "list.json"
IMAGE_FOLDER: Final = "images"
_SHA256: Final = r"^[0-9a-f]{64}$"


class ListedPair(Strict):
    """A pair; `image` is its file in the folder's `images/`: SHA-256 of the bytes, and ending."""

    id: Annotated[str, Field(min_length=1)]
    caption: Annotated[str, Field(min_length=1)]
    image: Annotated[str, Field(pattern=r"^[0-9a-f]{64}\.[a-z0-9]{1,5}$")]


class ListedLayer(Strict):
    """The ids of the pairs that the questions of one layer brought, the best question's first."""

    layer: str
    questions: int
    pairs: tuple[str, ...]


class ListedStage(Strict):
    """What a stage gets; no pair is in two layers."""

    stage: str
    layers: tuple[ListedLayer, ...]

    @property
    def ids(self) -> list[str]:
        """The ids of all layers, in their order."""
        return [name for layer in self.layers for name in layer.pairs]


class ReferenceList(Strict):
    """The pairs of every stage of a plan.

    Attributes:
        plan: the plan's name.
        inputs: SHA-256 of what was taken from the plan: names, classes, modalities, seed, and the
            general questions. Not of the plan itself, which pins this list.
        database: the digest of the database that the pairs are from.
        settings: how they were retrieved.
    """

    format: Annotated[int, Field(ge=1, le=1)] = 1
    plan: str
    inputs: Annotated[str, Field(pattern=_SHA256)]
    database: Annotated[str, Field(pattern=_SHA256)]
    settings: Mapping[str, Any]
    pairs: tuple[ListedPair, ...]
    stages: Annotated[tuple[ListedStage, ...], Field(min_length=1)]

    def to_bytes(self) -> bytes:
        """Return the file's bytes; equal lists have equal ones."""
        return (canonical_json(self.model_dump(mode="json")) + "\n").encode()

    @property
    def digest(self) -> str:
        """SHA-256 of the file: what a plan pins, and what sha256sum prints."""
        return sha256(self.to_bytes())

    def pairs_of_stage(self, stage: int) -> list[ListedPair]:
        """Return the pairs of a stage (0-based), layer by layer."""
        by_id = {pair.id: pair for pair in self.pairs}
        return [by_id[name] for name in self.stages[stage].ids]


def read_list(file: Path, pinned: str | None = None) -> ReferenceList:
    """Read a list.

    Args:
        pinned: the digest that the file must have.

    Raises:
        DataError: it can't be read, is another list, or names a pair that it does not have.
    """
    try:
        blob = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"{file}: found no list of reference pairs ({error.strerror}), expected one"
        ) from None
    if pinned is not None and sha256(blob) != pinned:
        raise DataError(
            f"{file}: found the digest {sha256(blob)[:16]}, expected {pinned[:16]}, which the plan "
            "pins"
        )
    try:
        found = ReferenceList.model_validate_json(blob, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{file}: {where}: found no list of reference pairs ({first['msg']}), expected one"
        ) from None
    known = {pair.id for pair in found.pairs}
    named = {name for stage in found.stages for name in stage.ids}
    if lacking := sorted(named - known):
        raise DataError(f"{file}: pairs: found no {lacking[0][:80]!r}, expected every pair named")
    return found


def check_images(folder: Path, pairs: Sequence[ListedPair]) -> None:
    """Check that the listed images are in the folder, byte for byte.

    Raises:
        DataError: one is missing, or is another.
    """
    for name in dict.fromkeys(pair.image for pair in pairs):
        file = folder / IMAGE_FOLDER / name
        try:
            found = sha256(file.read_bytes())
        except OSError as error:
            raise DataError(
                f"{file}: found no image that can be read ({error.strerror}), expected one"
            ) from None
        if found != name.partition(".")[0]:
            raise DataError(f"{file}: found the digest {found[:16]}, expected that of its name")
