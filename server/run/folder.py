"""Where a run keeps what it made: one folder, the same for a simulation and a coordinator."""

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
        """The answers that were accepted, and the rounds that were closed."""
        return self.root / "journal.sqlite"

    @property
    def blobs(self) -> Path:
        """Adapters on their way: updates of the open round, aggregates of the open stage."""
        return self.root / "blobs"

    @property
    def key(self) -> Path:
        """The coordinator's signing key."""
        return self.root / "signing.key"

    @property
    def progress(self) -> Path:
        """What is going on, for whoever watches."""
        return self.root / "progress"


@dataclass(frozen=True, slots=True)
class Blobs:
    """Adapters in files named by their SHA-256. What is there is whole."""

    folder: Path
    files: Files = DISK

    def path(self, digest: str) -> Path:
        """Where the blob with this digest is, or would be."""
        return self.folder / f"{digest}{_SUFFIX}"

    def put(self, blob: bytes) -> str:
        """The blob is on the disk; its digest.

        Raises:
            OSError: the disk is full or fails; then no file of the blob's name is there.
        """
        digest = sha256(blob)
        if not self.path(digest).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(self.path(digest), blob, self.files)
        return digest

    def get(self, digest: str) -> bytes:
        """The blob with this digest.

        Raises:
            StateError: it is gone or damaged.
        """
        try:
            blob = self.path(digest).read_bytes()
        except OSError as error:
            raise StateError(f"{self.path(digest)}: can't be read ({error.strerror})") from None
        if sha256(blob) != digest:
            raise StateError(f"{self.path(digest)}: found other bytes than its name says")
        return blob

    def keep_only(self, digests: Collection[str]) -> None:
        """No blob but these is left, and nothing half-written."""
        kept = {self.path(digest) for digest in digests}
        for file in self.folder.glob(f"*{_SUFFIX}"):
            if file not in kept or file.name.startswith(WRITING):
                self.files.remove(file)


@contextmanager
def alone(folder: RunFolder, waiting: Callable[[], None]) -> Generator[None]:
    """Hold the run's folder for this process; wait while another holds it.

    A coordinator whose process was lost starts a new one. The old one may only have been
    stopped, and would go on where it was: it keeps the lock until it has ended.

    Args:
        waiting: called once, if another process holds the folder.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.root / _LOCK, on_wait=waiting):
        yield


def held(folder: RunFolder) -> bool:
    """Whether a process holds the run's folder, be it stopped."""
    return is_locked(folder.root / _LOCK)
