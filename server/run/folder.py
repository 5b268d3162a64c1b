"""The folder of a run, the same for a simulation and a coordinator."""

import hashlib
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.durable import DISK, WRITING, Files, write_file
from common.errors import StateError
from common.identity import sha256
from common.process.file_lock import file_lock, is_locked

_SUFFIX = ".safetensors"
_LOCK = "running.lock"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run of one plan."""

    root: Path

    @property
    def bank(self) -> Path:
        """The releases."""
        return self.root / "bank"

    @property
    def plan(self) -> Path:
        """The plan that is run, with every default written out."""
        return self.root / "plan.json"

    @property
    def journal(self) -> Path:
        """The accepted answers and the closed rounds."""
        return self.root / "journal.sqlite"

    @property
    def blobs(self) -> Path:
        """Adapters that are not released: updates of open rounds, aggregates of open stages."""
        return self.root / "blobs"

    @property
    def key(self) -> Path:
        """The coordinator's signing key."""
        return self.root / "signing.key"

    @property
    def progress(self) -> Path:
        """The progress events."""
        return self.root / "progress"


@dataclass(frozen=True, slots=True)
class Blobs:
    """Blobs in files named by their SHA-256; a file that is there is complete."""

    folder: Path
    files: Files = DISK

    def path(self, digest: str) -> Path:
        """Return the file of the blob with this digest, whether it is there or not."""
        return self.folder / f"{digest}{_SUFFIX}"

    def put(self, blob: bytes) -> str:
        """Write the blob to the disk, if it is not there undamaged, and return its digest.

        Raises:
            OSError: the disk is full or fails; then no file of the blob's name is there.
        """
        digest = sha256(blob)
        if not self.is_intact(digest):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(self.path(digest), blob, self.files)
        return digest

    def get(self, digest: str) -> bytes:
        """Return the blob with this digest.

        Raises:
            StateError: it is gone or damaged.
        """
        found = "other bytes than its name says"
        try:
            blob = self.path(digest).read_bytes()
            if sha256(blob) == digest:
                return blob
        except OSError as error:
            found = f"no file that can be read ({error.strerror})"
        raise StateError(
            f"{self.path(digest)}: found {found}, expected an adapter that the run needs; "
            "restore it from a backup, or begin anew in another folder"
        )

    def is_intact(self, digest: str) -> bool:
        """Return whether the blob with this digest is there, and undamaged."""
        try:
            with self.path(digest).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == digest
        except OSError:
            return False

    def keep_only(self, digests: Collection[str]) -> None:
        """Delete every other blob, and what is half-written."""
        kept = {self.path(digest) for digest in digests}
        for file in self.folder.glob(f"*{_SUFFIX}"):
            if file not in kept or file.name.startswith(WRITING):
                self.files.remove(file)


@contextmanager
def run_lock(folder: RunFolder, on_wait: Callable[[], None]) -> Generator[None]:
    """Hold the lock on the run's folder during the body; wait while another process holds it.

    A coordinator whose process was lost starts a new one. The old one may only have been
    stopped and could continue: it holds the lock until it has ended.

    Args:
        on_wait: called once, if another process holds the lock.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.root / _LOCK, on_wait=on_wait):
        yield


def is_running(folder: RunFolder) -> bool:
    """Return whether a process, which may be stopped, holds the lock on the run's folder."""
    return is_locked(folder.root / _LOCK)
