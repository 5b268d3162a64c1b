"""Writes the reference pairs of a plan's stages, and the folder that the sites get."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from common.durable import DISK, write_file
from common.errors import DataError
from common.identity import sha256
from common.plan.reference_list import (
    IMAGE_FOLDER,
    LIST_FILE,
    ListedLayer,
    ListedPair,
    ListedStage,
    ReferenceList,
    check_images,
)
from retrieval.database import Database
from retrieval.pair_table import StoredPair
from retrieval.pairs import OnProgress
from retrieval.questions import inputs_digest
from retrieval.stage_lists import ListOrigin, StageList

_PROGRESS_EVERY = 500


def reference_list(
    origin: ListOrigin, stages: Sequence[StageList], on_progress: OnProgress
) -> ReferenceList:
    """Return the list of these stages; reads the listed images, for their digests.

    Raises:
        DataError: an image can't be read.
    """
    database = origin.database
    numbers = list(dict.fromkeys(number for stage in stages for number in stage.pairs))
    stored = {pair.number: pair for pair in database.table.stored(numbers)}
    pairs: list[ListedPair] = []
    for done, pair in enumerate(stored.values(), start=1):
        blob = pair.image.read(database.pair_folder)
        name = f"{sha256(blob)}{_ending(pair)}"
        pairs.append(ListedPair(id=pair.id, caption=pair.caption, image=name))
        if done % _PROGRESS_EVERY == 0 or done == len(stored):
            on_progress("images", done, len(stored))
    return ReferenceList(
        plan=origin.plan.name,
        inputs=inputs_digest(origin.plan, origin.general),
        database=database.facts.digest,
        settings=origin.settings.to_json(),
        pairs=tuple(pairs),
        stages=tuple(_listed(stage, stored) for stage in stages),
    )


def write_list(file: Path, listed: ReferenceList) -> None:
    """Write the list, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, listed.to_bytes(), DISK)


def write_reference_folder(folder: Path, listed: ReferenceList, database: Database) -> None:
    """Write what the sites get: the list, and the images that it names.

    Images that are there already are left, so a copy that was cut off goes on.

    Raises:
        DataError: an image can't be read, or is not what it was when the list was made.
    """
    images = folder / IMAGE_FOLDER
    images.mkdir(parents=True, exist_ok=True)
    names = {pair.id: pair.image for pair in listed.pairs}
    for pair in database.table.by_id(list(names)):
        file = images / names[pair.id]
        if not file.exists():
            write_file(file, pair.image.read(database.pair_folder), DISK)
    check_images(folder, listed.pairs)
    write_file(folder / LIST_FILE, listed.to_bytes(), DISK)


def _listed(stage: StageList, stored: Mapping[int, StoredPair]) -> ListedStage:
    by_layer: dict[str, list[str]] = {layer: [] for layer in stage.questions}
    for number, layer in stage.pairs.items():
        by_layer[layer].append(stored[number].id)
    return ListedStage(
        stage=stage.stage,
        layers=tuple(
            ListedLayer(layer=str(layer), questions=count, pairs=tuple(by_layer[layer]))
            for layer, count in stage.questions.items()
        ),
    )


def _ending(pair: StoredPair) -> str:
    ending = PurePosixPath(pair.image.name).suffix.lower()
    if not ending[1:].isalnum() or not ending.isascii() or len(ending) > 6:
        raise DataError(
            f"pair {pair.id[:80]!r}: found an image named {pair.image.name[:80]!r}, expected a "
            "name with an ending such as .png"
        )
    return ending
