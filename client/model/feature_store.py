"""Features of pictures on the site's disk, for the epochs and the processes to come.

What is in here is a patient's: features tell of a picture. So it stays in the site's own store,
only its owner reads it, and no name of a file or of a person is in it. Each entry is one file
named by a digest (client/model/preprocess.py, `key_of`): its own SHA-256, then the tensor in
safetensors. Nothing depends on an entry: a damaged one is thrown away, and a disk that is full
or gone means that the tower looks again.
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

#: What stays free on the disk: two checkpoints of the 7B at rank 64, and one adapter.
MIN_FREE_BYTES: Final = 5 * 2**30
#: An entry that nobody has asked for so long goes, so that removed pictures don't stay.
MAX_UNUSED_S: Final = 30 * 24 * 3600.0
#: A half-written file may still be somebody's for so long.
_GRACE_S: Final = 3600.0
#: So often at most old entries are looked for where nothing is written.
_TIDY_S: Final = 24 * 3600.0
#: Between two counts of the folder a process writes at most such a part of the limit.
_PARTS: Final = 16
_NAME: Final = "features"
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_FOLDER_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_GIB: Final = 2**30

log = logging.getLogger("fedmslora.features")


def write_private(file: Path, blob: bytes) -> None:
    """A new file that only its owner reads. Not synced: readers check the digest."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(blob)


class FeatureStore:
    """Features by key, the least recently used go first; `load` may run on any thread.

    Several processes may use one folder: an entry appears whole by a rename. Each process
    beyond the first may be over the limit by a sixteenth of it, and none for long.
    """

    def __init__(
        self,
        folder: Path,
        limit_bytes: int,
        spare_bytes: int = MIN_FREE_BYTES,
        write: Write = write_private,
    ) -> None:
        """`folder` is made with the first entry; `spare_bytes` stay free on its disk."""
        self._folder = folder
        self._part_bytes = limit_bytes // _PARTS
        # The room that a count leaves for what is written until the next one.
        self._held_bytes = limit_bytes - self._part_bytes
        self._spare_bytes = spare_bytes
        self._write = write
        self._may_write = 0
        self._tidied_s: float | None = None
        self._on = True

    def load(self, key: str) -> Tensor | None:
        """The features as they were saved, to the last bit; None where there are none."""
        file = self._file(key)
        try:
            blob = file.read_bytes()
        except OSError:
            return None
        features = _opened(key, blob)
        with suppress(OSError):  # another process may have removed it
            if features is None:
                file.unlink()
            else:
                os.utime(file)  # the last time of use, by which the oldest go
        return features

    def save(self, key: str, features: Tensor) -> None:
        """They are kept, unless they are a sixteenth of all; a full disk ends the keeping."""
        blob = _closed(key, features) if self._on else b""
        if not self._on or len(blob) > self._part_bytes:
            return
        try:
            if len(blob) > self._may_write:
                self._tidy()
            self._put(self._file(key), blob)
            self._may_write -= len(blob)
        except OSError as error:
            self._turn_off(f"the site's store can't be written ({error.strerror})")

    def tidy_if_due(self) -> None:
        """Nothing is there that nobody has asked for in a month, and not more than may be."""
        last_s = self._tidied_s
        if last_s is not None and time.monotonic() - last_s < _TIDY_S:
            return
        try:
            self._tidy()
        except OSError as error:
            self._turn_off(f"the site's store can't be written ({error.strerror})")

    def _put(self, file: Path, blob: bytes) -> None:
        self._folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        file.parent.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        if shutil.disk_usage(file.parent).free - len(blob) < self._spare_bytes:
            gib = self._spare_bytes / _GIB
            return self._turn_off(f"less than {gib:g} GiB are free where the site's store is")
        temporary = file.with_name(f"{WRITING}{file.name}.{secrets.token_hex(4)}")
        try:
            self._write(temporary, blob)
            DISK.rename(temporary, file)
        except OSError:
            with suppress(OSError):
                remove_if_there(temporary, DISK)
            raise

    def _tidy(self) -> None:
        """What is too old is gone, and of the rest the oldest: there is room for a part."""
        self._tidied_s = time.monotonic()
        held = 0
        # The youngest first: whatever no longer fits is older.
        for unused_s, size, file in sorted(_files(self._folder)):
            if file.name.startswith(WRITING):
                gone = unused_s > _GRACE_S
            else:
                gone = unused_s > MAX_UNUSED_S or held + size > self._held_bytes
            if gone:
                file.unlink(missing_ok=True)
            else:
                held += size
        self._may_write = self._part_bytes

    def _turn_off(self, why: str) -> None:
        if self._on:
            log.warning(
                "image features are no longer kept on the disk until the next start: %s", why
            )
        self._on = False

    def _file(self, key: str) -> Path:
        return self._folder / key[:2] / key


def open_feature_store(store: Path, gib: float) -> FeatureStore | None:
    """Open the features in a site's store, of at most `gib` GiB; with 0 remove all, open none."""
    if gib == 0:
        _remove_all(store / _NAME)
        return None
    return FeatureStore(store / _NAME, int(gib * _GIB))


def _remove_all(folder: Path) -> None:
    """No entry is left in the folder, nor behind it where it is a link; else the log says so."""
    try:
        for _, _, file in _files(folder):
            file.unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror
        log.warning("image features that were kept can't be removed (%s): see store/features", why)
        return
    for emptied in (*folder.glob("??"), folder):
        with suppress(OSError):  # a link, or what somebody else has put there
            emptied.rmdir()


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """Seconds since its last use, bytes and name of every entry, and of every half of one.

    What goes meanwhile is left out, and so is what nobody here has written. A time to come is
    of a clock that was wrong, and as far away as one that is past.
    """
    found: list[tuple[float, int, Path]] = []
    now = time.time()
    parts = [part for part in _listed(folder) if len(part.name) == 2 and part.is_dir()]
    for file in (file for part in parts for file in _listed(part) if _is_named(file)):
        with suppress(FileNotFoundError):
            status = file.lstat()
            if stat.S_ISREG(status.st_mode):
                found.append((abs(now - status.st_mtime), status.st_size, file))
    return found


def _listed(folder: Path) -> list[Path]:
    """What is in the folder; nothing where there is none.

    Raises:
        OSError: it is no folder, or another's.
    """
    with suppress(FileNotFoundError):
        return list(folder.iterdir())
    return []


def _is_named(file: Path) -> bool:
    """Whether it has the name of an entry, or of a half of one, and is where that belongs."""
    key = file.name.removeprefix(WRITING).partition(".")[0]
    return _KEY.fullmatch(key) is not None and key.startswith(file.parent.name)


def _closed(key: str, features: Tensor) -> bytes:
    blob = save({_NAME: features.contiguous()})
    return _digest(key, blob) + blob


def _opened(key: str, blob: bytes) -> Tensor | None:
    """The tensor in an entry; None where it is another's, or not as it was written."""
    length = sha256().digest_size
    tensors = memoryview(blob)[length:]
    if blob[:length] != _digest(key, tensors):
        return None
    try:
        return load(bytes(tensors))[_NAME]
    except (SafetensorError, KeyError):
        return None


def _digest(key: str, blob: bytes | memoryview) -> bytes:
    whole = sha256(key.encode())
    whole.update(blob)
    return whole.digest()
