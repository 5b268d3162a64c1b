"""Vectors of images and texts by a CLIP: the base model of the plan that the pairs are for."""
# pyright: reportUnknownMemberType=false

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import torch

from client.backbones.clip import ClipBackbone
from client.backbones.registry import load_backbone
from client.model.base_digest import base_digest
from client.model.clip.model import ClipModel
from common.errors import DataError, ModelError
from common.plan_fields import Precision
from retrieval.dense_index import Vectors
from retrieval.embedders import Identity
from retrieval.pair_table import PairTable
from retrieval.pairs import ImageLocation

NAME: Final = "clip"
#: Images and texts of one forward pass.
_BATCH: Final = 64


class ClipVectors:
    """A CLIP without adapters."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Load the model.

        Raises:
            ModelError: it can't be loaded, or is no CLIP.
        """
        backbone = load_backbone(folder, Precision.FP32, device)
        if not isinstance(backbone, ClipBackbone):
            raise ModelError(f"{folder}: found a {backbone.kind}, expected a CLIP")
        self._folder = folder
        self.model: ClipModel = backbone.model
        self.identity: Identity = {"name": NAME, "sha256": base_digest(folder)}

    def check_made(self, made_by: Identity | None, database: Path) -> None:
        """Check that a database's vectors were made by this model.

        Raises:
            DataError: they were not.
        """
        if made_by != self.identity:
            found = "no model" if made_by is None else str(made_by.get("sha256", made_by["name"]))
            raise DataError(
                f"{database}: found vectors that were made by {found[:16]}, expected the base "
                f"model {self._folder} of the digest {str(self.identity['sha256'])[:16]}"
            )

    def of_images(self) -> "ClipImageVectors":
        """Return it as what fills a database with vectors of images."""
        return ClipImageVectors(self)

    def of_captions(self) -> "ClipCaptionVectors":
        """Return it as what fills a database with vectors of captions."""
        return ClipCaptionVectors(self)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return the text tower's embeddings, (texts, width), of length 1."""
        parts = [
            self.model.text_embeddings(texts[start : start + _BATCH]).cpu().numpy()
            for start in range(0, len(texts), _BATCH)
        ]
        return np.concatenate(parts)

    @torch.inference_mode()
    def embed_images(self, files: Sequence[Path]) -> Vectors:
        """Return the image tower's embeddings, (files, width), of length 1.

        Raises:
            DataError: an image can't be read.
        """
        return self.model.image_embeddings(self.model.pixel_values(files)).cpu().numpy()


class ClipImageVectors:
    """See `ImageVectors`."""

    def __init__(self, clip: ClipVectors) -> None:
        self._clip = clip

    @property
    def identity(self) -> Identity:
        """The digest of the model."""
        return self._clip.identity

    def prepare(self, table: PairTable) -> None:
        """Do nothing: every image is embedded when it is asked for."""

    def vectors(self, table: PairTable, folder: Path, first: int, end: int) -> Vectors:
        """See `ImageVectors`."""
        parts: list[Vectors] = []
        for start in range(first, end, _BATCH):
            images = table.images(start, min(start + _BATCH, end))
            with TemporaryDirectory() as name:
                files = [
                    _as_file(image, folder, Path(name) / str(number))
                    for number, image in enumerate(images)
                ]
                parts.append(self._clip.embed_images(files))
        return np.concatenate(parts)


class ClipCaptionVectors:
    """See `CaptionVectors`."""

    def __init__(self, clip: ClipVectors) -> None:
        self._clip = clip

    @property
    def identity(self) -> Identity:
        """The digest of the model."""
        return self._clip.identity

    def prepare(self, table: PairTable, folder: Path) -> None:
        """Do nothing: nothing is learned from the captions."""

    def vectors(self, table: PairTable, first: int, end: int) -> Vectors:
        """See `CaptionVectors`."""
        return self._clip.embed(list(table.caption_texts(first, end)))


def _as_file(image: ImageLocation, folder: Path, temporary: Path) -> Path:
    """Return the image's own file; of one in a tar a copy."""
    if image.start is None:
        return folder / image.file
    file = temporary.with_name(f"{temporary.name}-{image.name}")
    file.write_bytes(image.read(folder))
    return file
