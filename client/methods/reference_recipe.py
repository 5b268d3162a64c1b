"""Public reference pairs in the training of a CLIP: a step's batch, and a teacher's embeddings.

Legend of shapes: N reference pairs of a batch, E width of the common space.
"""
# torch leaves parts of its interface untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from client.methods.interface import Assignment
from client.model.clip.model import ClipModel
from client.model.clip.towers import ClipTowers
from common.adapter import AdapterSource, to_bytes
from common.errors import SiteFailed
from common.identity import canonical_json, seed_for, sha256
from common.plan.reference_list import IMAGE_FOLDER, LIST_FILE, ListedPair, read_list
from common.plan_fields import Composition

#: Pairs that the teacher embeds at a time.
_TEACHER_BATCH: Final = 64
#: The latest teacher's embeddings of each model that is in memory, and what they are of.
_EMBEDDED: WeakKeyDictionary[ClipTowers, tuple[str, tuple[Tensor, Tensor]]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, eq=False)
class ReferencePairs:
    """The pairs of a stage; equal captions have equal numbers."""

    files: tuple[Path, ...]
    captions: tuple[str, ...]
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)


class ReferenceBatch:
    """The reference pairs of the step that is made, as student and as teacher embed them."""

    def __init__(
        self, model: ClipModel, pairs: ReferencePairs, teacher: tuple[Tensor, Tensor]
    ) -> None:
        """Start without pairs; `teacher` are the teacher's embeddings of all pairs."""
        self._model, self._teacher = model, teacher
        self.pairs = pairs
        self._drawn: Sequence[int] = ()
        self._pixels = torch.empty(0)

    def take(self, drawn: Sequence[int], pixels_N3SS: Tensor) -> None:
        """Take the pairs of these numbers, whose images have these `pixel_values`."""
        self._drawn, self._pixels = drawn, pixels_N3SS

    @property
    def captions(self) -> list[int]:
        """The number of each pair's caption."""
        return [self.pairs.numbers[number] for number in self._drawn]

    def of_student(self) -> tuple[Tensor, Tensor]:
        """Return the embeddings of images and captions, (N, E) each, with their graph.

        A caption that several pairs of the batch share is embedded once.
        """
        images_NE = self._model.image_embeddings(self._pixels)
        texts = {self.pairs.numbers[number]: self.pairs.captions[number] for number in self._drawn}
        places = {number: place for place, number in enumerate(texts)}
        unique_UE = self._model.text_embeddings(list(texts.values()))
        return images_NE, unique_UE[[places[number] for number in self.captions]]

    def of_teacher(self) -> tuple[Tensor, Tensor]:
        """Return the teacher's embeddings of images and captions, (N, E) each."""
        images, captions = (
            part[list(self._drawn)].to(self._model.device) for part in self._teacher
        )
        return images, captions


def reference_pairs(assignment: Assignment) -> ReferencePairs:
    """Return the stage's reference pairs that the site has.

    Raises:
        SiteFailed: its site file names no folder of them, or the list has too few for the stage.
        DataError: the list is another than the plan pins.
    """
    settings, folder = assignment.plan.method, assignment.reference
    if folder is None:
        raise SiteFailed(
            f"site {assignment.site}, reference: found no folder, expected that of the plan's "
            f"reference pairs: the method {settings.name!r} trains on them, too"
        )
    listed = read_list(folder / LIST_FILE, settings.pinned_reference)
    found = [stage.stage for stage in listed.stages]
    names = [stage.name for stage in assignment.plan.stages]
    # A hospital alone has a plan of its own stages, and the list of the whole federation.
    if [name for name in found if name in names] != names:
        raise SiteFailed(
            f"{folder / LIST_FILE}: found the stages {found}, expected {names} among them"
        )
    pairs: list[ListedPair] = listed.pairs_of_stage(found.index(names[assignment.stage]))
    if len(pairs) < 2:
        raise SiteFailed(
            f"{folder / LIST_FILE}: found {len(pairs)} pairs of the stage "
            f"{assignment.task.name!r}, expected at least 2"
        )
    numbers: dict[str, int] = {}
    return ReferencePairs(
        files=tuple(folder / IMAGE_FOLDER / pair.image for pair in pairs),
        captions=tuple(pair.caption for pair in pairs),
        numbers=tuple(numbers.setdefault(pair.caption, len(numbers)) for pair in pairs),
    )


def teacher_embeddings(
    model: ClipModel, teacher: Sequence[AdapterSource], pairs: ReferencePairs
) -> tuple[Tensor, Tensor]:
    """Return the teacher's embeddings of the pairs' images and captions, (pairs, E) each, CPU.

    They are made once a stage in a process that goes on: no second model is in memory.
    """
    parts = [to_bytes(adapter) for adapter in teacher]
    # An image's file is named by its bytes.
    named = [
        [file.name, caption] for file, caption in zip(pairs.files, pairs.captions, strict=True)
    ]
    key = sha256(b"".join([*parts, canonical_json(named).encode()]))
    known = _EMBEDDED.get(model.towers)
    if known is None or known[0] != key:
        known = _EMBEDDED[model.towers] = (key, _embedded(model, teacher, pairs))
    return known[1]


@torch.no_grad()
def _embedded(
    model: ClipModel, teacher: Sequence[AdapterSource], pairs: ReferencePairs
) -> tuple[Tensor, Tensor]:
    model.adapted.freeze_adapters(teacher, Composition.FOLD)
    parts = [slice(at, at + _TEACHER_BATCH) for at in range(0, len(pairs), _TEACHER_BATCH)]
    images = [model.image_embeddings(model.pixel_values(pairs.files[part])) for part in parts]
    unique = list(dict.fromkeys(pairs.captions))
    texts = [
        model.text_embeddings(unique[at : at + _TEACHER_BATCH])
        for at in range(0, len(unique), _TEACHER_BATCH)
    ]
    return torch.cat(images).cpu(), torch.cat(texts).cpu()[list(pairs.numbers)]


def draw_pairs(assignment: Assignment, chosen: Sequence[int], pairs: int) -> list[int]:
    """Return the numbers of the reference pairs of a step, none twice.

    Drawn from the step's own examples, so that a round that was cut off draws them again.
    """
    seed = seed_for(
        assignment.plan.seed, "reference", assignment.stage, assignment.round, assignment.site,
        ",".join(map(str, chosen)),
    )  # fmt: skip
    count = min(assignment.plan.method.reference_pairs, pairs)
    return np.random.default_rng(seed).choice(pairs, count, replace=False).tolist()
