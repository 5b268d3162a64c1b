"""A checkpoint: where a round's training stands, on the disk.

Two files in the order's own folder: the tensors in safetensors, named by their digest, and
a JSON that names them. The JSON is renamed into place last, so at every moment it names a
whole state or there is none.
"""
# pyright: reportUnknownMemberType=false

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from common.durable import DISK, Files, remove_if_there, write_file
from common.errors import SiteFailed
from common.identity import canonical_json, sha256

#: What a state belongs to: a checkpoint of anything else is passed over.
Key: TypeAlias = Mapping[str, str | int]

_NAME = "checkpoint.json"
#: What reading a checkpoint raises where it is damaged, or none.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, SafetensorError)


class NotWanted(Exception):
    """The job is no longer wanted; its checkpoint is on the disk."""


def always() -> bool:
    """The job stays wanted."""
    return True


class Checkpoint:
    """The checkpoints of one order's training, in a folder that is made where it is missing."""

    def __init__(
        self,
        folder: Path,
        every_s: float,
        wanted: Callable[[], bool] = always,
        files: Files = DISK,
    ) -> None:
        """A checkpoint is due `every_s` seconds after the last one; 0 is after every step."""
        self.folder = folder
        self.every_s = every_s
        self.wanted = wanted
        self._files = files
        self._last_s = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self._last_s >= self.every_s

    def latest(self) -> str | None:
        """The digest of the last state that was saved; None where there is none."""
        try:
            return str(self._document()["sha256"])
        except _DAMAGED:
            return None

    def load(self, key: Key) -> dict[str, Tensor] | None:
        """The last state that was saved under `key`; None where there is none, or it is damaged."""
        try:
            document = self._document()
            if document["of"] != dict(key):
                return None
            blob = self._state(document["sha256"]).read_bytes()
            return load(blob) if sha256(blob) == document["sha256"] else None
        except _DAMAGED:
            return None

    def save(self, key: Key, state: Mapping[str, Tensor]) -> None:
        """`state` is on the disk, and the one before it is gone.

        Raises:
            SiteFailed: the disk is full or can't be written.
        """
        blob = save(dict(state))
        digest = sha256(blob)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(self._state(digest), blob, self._files)
            document = canonical_json({"of": dict(key), "sha256": digest})
            write_file(self.folder / _NAME, document.encode(), self._files)
            for file in self.folder.iterdir():
                if file not in (self._state(digest), self.folder / _NAME):
                    remove_if_there(file, self._files)
        except OSError as error:
            raise SiteFailed(f"could not write a checkpoint ({error.strerror})") from None
        self._last_s = time.monotonic()

    def check_wanted(self) -> None:
        """Go on.

        Raises:
            NotWanted: the job is no longer wanted.
        """
        if not self.wanted():
            raise NotWanted

    def _document(self) -> dict[str, Any]:
        return json.loads((self.folder / _NAME).read_bytes())

    def _state(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"
