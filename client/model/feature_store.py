"""The image features of a site on its disk, for later epochs and processes.

Features are patient data, because they describe an image. So they stay in the site's own
store, only its owner can read them, and they contain no name of a file or a person. Each entry
is one file named by a digest (client/model/preprocess.py, `feature_key`): the entry's SHA-256,
then the tensor in safetensors. Entries are optional: a damaged one is removed, and without a
writable disk the tower computes the features again.
"""

import logging
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeAlias

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from common.durable import DISK, WRITING, remove_if_there

Write: TypeAlias = Callable[[Path, bytes], None]

#: Room that is left on the disk: for two checkpoints of the 7B at rank 64, and one adapter.
MIN_FREE_BYTES: Final = 5 * 2**30
#: An entry not used for so long is removed, so that the features of removed images are, too.
MAX_UNUSED_S: Final = 30 * 24 * 3600.0
#: A temporary file younger than this may still be written by another process.
_GRACE_S: Final = 3600.0
#: How often old entries are looked for if nothing is written.
_EVICTION_PERIOD_S: Final = 24 * 3600.0
#: Between two evictions a process writes at most this part of the limit.
_FRACTION: Final = 16
_NAME: Final = "features"
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_FOLDER_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_GIB: Final = 2**30

log = logging.getLogger("fedmslora.features")


def write_private(file: Path, blob: bytes) -> None:
    """Write a new file that only its owner can read. Not synced: readers check the digest."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(blob)


class FeatureStore:
    """Features by key, the least recently used evicted first; `load` may run on any thread.

    Several processes may use one folder: an entry is renamed into place when complete. Each
    process beyond the first may exceed the limit by a sixteenth of it, until its next eviction.
    """

    def __init__(
        self,
        folder: Path,
        limit_bytes: int,
        spare_bytes: int = MIN_FREE_BYTES,
        write: Write = write_private,
    ) -> None:
        """Leave `spare_bytes` free on the disk; `folder` is made with the first entry."""
        self._folder = folder
        #: What may be written between two evictions.
        self._batch_bytes = limit_bytes // _FRACTION
        #: What an eviction keeps.
        self._kept_bytes = limit_bytes - self._batch_bytes
        self._spare_bytes = spare_bytes
        self._write = write
        self._budget_bytes = 0
        self._evicted_s: float | None = None
        self._enabled = True

    def load(self, key: str) -> Tensor | None:
        """Return the features bit by bit as they were saved; None if there are none."""
        file = self._file(key)
        try:
            blob = file.read_bytes()
        except OSError:
            return None
        features = _decode(key, blob)
        with suppress(OSError):  # another process may have removed it
            if features is None:
                file.unlink()
            else:
                os.utime(file)  # the time of last use, for the eviction
        return features

    def save(self, key: str, features: Tensor) -> None:
        """Save the features, unless they exceed a sixteenth of the limit or the disk is full."""
        blob = _encode(key, features) if self._enabled else b""
        if not self._enabled or len(blob) > self._batch_bytes:
            return
        try:
            if len(blob) > self._budget_bytes:
                self._evict()
            self._put(self._file(key), blob)
            self._budget_bytes -= len(blob)
        except OSError as error:
            self._disable(f"the site's store can't be written ({error.strerror})")

    def evict_if_due(self) -> None:
        """Remove entries not used for a month, and the oldest above the limit, once a day."""
        last_s = self._evicted_s
        if last_s is not None and time.monotonic() - last_s < _EVICTION_PERIOD_S:
            return
        try:
            self._evict()
        except OSError as error:
            self._disable(f"the site's store can't be written ({error.strerror})")

    def _put(self, file: Path, blob: bytes) -> None:
        self._folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        file.parent.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        if shutil.disk_usage(file.parent).free - len(blob) < self._spare_bytes:
            gib = self._spare_bytes / _GIB
            return self._disable(f"less than {gib:g} GiB are free where the site's store is")
        temporary = file.with_name(f"{WRITING}{file.name}.{secrets.token_hex(4)}")
        try:
            self._write(temporary, blob)
            DISK.rename(temporary, file)
        except OSError:
            with suppress(OSError):
                remove_if_there(temporary, DISK)
            raise

    def _evict(self) -> None:
        """Remove entries that are too old, and of the rest the oldest above `_kept_bytes`."""
        self._evicted_s = time.monotonic()
        kept = 0
        # The most recently used first: what no longer fits was used longer ago.
        for unused_s, size, file in sorted(_files(self._folder)):
            if file.name.startswith(WRITING):
                evicted = unused_s > _GRACE_S
            else:
                evicted = unused_s > MAX_UNUSED_S or kept + size > self._kept_bytes
            if evicted:
                file.unlink(missing_ok=True)
            else:
                kept += size
        self._budget_bytes = self._batch_bytes

    def _disable(self, why: str) -> None:
        if self._enabled:
            log.warning(
                "image features are no longer stored on the disk until the next start: %s", why
            )
        self._enabled = False

    def _file(self, key: str) -> Path:
        return self._folder / key[:2] / key


def open_feature_store(store: Path, gib: float) -> FeatureStore | None:
    """Open the features in a site's store, of at most `gib` GiB; with 0 remove all, open none."""
    if gib == 0:
        _remove_all(store / _NAME)
        return None
    return FeatureStore(store / _NAME, int(gib * _GIB))


def _remove_all(folder: Path) -> None:
    """Remove all entries, also behind a link; log a warning if that fails.

    The folder itself stays, with its owner: a container's engine would make it anew as root's.
    """
    try:
        for _, _, file in _files(folder):
            file.unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror
        log.warning("stored image features can't be removed (%s): see store/features", why)
        return
    for emptied in folder.glob("??"):
        with suppress(OSError):  # a link, or not empty because of others' files
            emptied.rmdir()


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """Return seconds since last use, bytes and path of every entry and temporary file.

    Files that vanish meanwhile, and files of other programs, are left out. A time in the
    future comes from a wrong clock, and counts like one in the past.
    """
    found: list[tuple[float, int, Path]] = []
    now = time.time()
    subfolders = [sub for sub in _listed(folder) if len(sub.name) == 2 and sub.is_dir()]
    for file in (file for sub in subfolders for file in _listed(sub) if _is_entry(file)):
        with suppress(FileNotFoundError):
            status = file.lstat()
            if stat.S_ISREG(status.st_mode):
                found.append((abs(now - status.st_mtime), status.st_size, file))
    return found


def _listed(folder: Path) -> list[Path]:
    """Return the contents of the folder; nothing if it does not exist.

    Raises:
        OSError: it is no folder, or not readable.
    """
    with suppress(FileNotFoundError):
        return list(folder.iterdir())
    return []


def _is_entry(file: Path) -> bool:
    """Return whether it is named like an entry, or its temporary file, in the right subfolder."""
    key = file.name.removeprefix(WRITING).partition(".")[0]
    return _KEY.fullmatch(key) is not None and key.startswith(file.parent.name)


def _encode(key: str, features: Tensor) -> bytes:
    blob = save({_NAME: features.contiguous()})
    return _digest(key, blob) + blob


def _decode(key: str, blob: bytes) -> Tensor | None:
    """Return the tensor of an entry; None if the entry is damaged or belongs to another key."""
    length = sha256().digest_size
    tensors = memoryview(blob)[length:]
    if blob[:length] != _digest(key, tensors):
        return None
    try:
        return load(bytes(tensors))[_NAME]
    except (SafetensorError, KeyError):
        return None


def _digest(key: str, blob: bytes | memoryview) -> bytes:
    digest = sha256(key.encode())
    digest.update(blob)
    return digest.digest()
