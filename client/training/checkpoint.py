"""Checkpoints of a round's training on the disk.

A checkpoint is two files in the order's own folder: the tensors in safetensors, named by
their digest, and a JSON that names them. The JSON is renamed into place last, so that at
every moment it names a complete state, or there is none.
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

#: Identifies the training that a state belongs to; a checkpoint with another key is ignored.
CheckpointKey: TypeAlias = Mapping[str, str | int]

_NAME = "checkpoint.json"
#: Raised on reading a checkpoint that is damaged or missing.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, SafetensorError)


class JobCancelled(Exception):
    """The job was cancelled; its checkpoint is on the disk."""


def never_cancelled() -> bool:
    """Return True: the job is never cancelled."""
    return True


class Checkpoint:
    """The checkpoints of one order's training, in a folder that is made if missing."""

    def __init__(
        self,
        folder: Path,
        every_s: float,
        still_requested: Callable[[], bool] = never_cancelled,
        files: Files = DISK,
    ) -> None:
        """Make a checkpoint due `every_s` seconds after the last one; 0 means after every step.

        `still_requested` says at each checkpoint whether the job is still to be done.
        """
        self.folder = folder
        self.every_s = every_s
        self._still_requested = still_requested
        self._files = files
        self._last_s = time.monotonic()

    def due(self) -> bool:
        """Return whether it is time for a checkpoint."""
        return time.monotonic() - self._last_s >= self.every_s

    def latest(self) -> str | None:
        """Return the digest of the last saved state; None if there is none."""
        try:
            return str(self._document()["sha256"])
        except _DAMAGED:
            return None

    def load(self, key: CheckpointKey) -> dict[str, Tensor] | None:
        """Return the last state saved under `key`; None if there is none, or it is damaged."""
        try:
            document = self._document()
            if document["of"] != dict(key):
                return None
            blob = self._tensors(document["sha256"]).read_bytes()
            return load(blob) if sha256(blob) == document["sha256"] else None
        except _DAMAGED:
            return None

    def save(self, key: CheckpointKey, state: Mapping[str, Tensor]) -> None:
        """Write `state` to the disk, and remove the one before it.

        Raises:
            SiteFailed: the disk is full or can't be written.
        """
        blob = save(dict(state))
        digest = sha256(blob)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(self._tensors(digest), blob, self._files)
            document = canonical_json({"of": dict(key), "sha256": digest})
            write_file(self.folder / _NAME, document.encode(), self._files)
            for file in self.folder.iterdir():
                if file not in (self._tensors(digest), self.folder / _NAME):
                    remove_if_there(file, self._files)
        except OSError as error:
            raise SiteFailed(f"could not write a checkpoint ({error.strerror})") from None
        self._last_s = time.monotonic()

    def raise_if_cancelled(self) -> None:
        """Check that the job is still requested.

        Raises:
            JobCancelled: it is not.
        """
        if not self._still_requested():
            raise JobCancelled

    def _document(self) -> dict[str, Any]:
        return json.loads((self.folder / _NAME).read_bytes())

    def _tensors(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"
