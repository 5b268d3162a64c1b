"""A site's store of blobs, each a file named by its SHA-256: plans, releases, adapters.

Several processes write here at once, and any of them may be killed or stopped at any
moment: nothing is locked, every file appears whole by a rename.
"""

import hashlib
import re
import secrets
import time
from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from client.data.file_stamp import FileStamp, file_stamp
from common.durable import DISK, WRITING, Files, remove_if_there
from common.errors import SiteFailed
from common.identity import sha256

_BLOBS = "blobs"
_DIGEST = re.compile(r"[0-9a-f]{64}")

#: Unneeded blobs and half-written files are kept for so long: a process that has just received
#: one, or was stopped while writing it, may still need it.
GRACE_S = 3600.0


def stored_digests(store: Path) -> tuple[str, ...]:
    """Return the digests of all blobs in the store, sorted."""
    names = (file.name for file in (store / _BLOBS).glob("*"))
    return tuple(sorted(name for name in names if _DIGEST.fullmatch(name)))


def missing(store: Path, digests: Iterable[str]) -> tuple[str, ...]:
    """Return those of `digests` that are not in the store, each once, in their order."""
    asked = dict.fromkeys(digests)
    return tuple(d for d in asked if not (_DIGEST.fullmatch(d) and _file(store, d).exists()))


def stamp(store: Path, digest: str) -> FileStamp | None:
    """Return the stamp of the blob's file; None where there is no such blob."""
    return file_stamp(_file(store, digest)) if _DIGEST.fullmatch(digest) else None


def stored_file(store: Path, digest: str) -> Path:
    """Return the file of the blob with this digest, whether it is there or not, unchecked."""
    if not _DIGEST.fullmatch(digest):
        raise SiteFailed("an order names a blob by something that is not a SHA-256 digest")
    return _file(store, digest)


def put(store: Path, blob: bytes, files: Files = DISK) -> str:
    """Store the blob durably; return its digest.

    Raises:
        SiteFailed: the disk is full or can't be written.
    """
    digest = sha256(blob)
    file = _file(store, digest)
    if not file.exists():
        write_atomically(file, blob, files)
    return digest


def get(store: Path, digest: str) -> bytes:
    """Return the blob with this digest.

    Raises:
        SiteFailed: it is missing, or has changed since it was stored; then it is removed, so that
            the site reports it as missing and receives it again.
    """
    with _opened(store, digest) as file:
        blob = file.read()
    _check(store, digest, sha256(blob))
    return blob


def verified_file(store: Path, digest: str) -> Path:
    """Return the file of the blob with this digest, once its content is checked as in `get`."""
    with _opened(store, digest) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    _check(store, digest, found)
    return _file(store, digest)


@contextmanager
def _opened(store: Path, digest: str) -> Generator[BufferedReader]:
    if not _DIGEST.fullmatch(digest):
        raise SiteFailed("an order names a blob by something that is not a SHA-256 digest")
    try:
        with _file(store, digest).open("rb") as file:
            yield file
    except OSError:
        raise SiteFailed(f"found no blob {digest[:12]} in the site's store") from None


def _check(store: Path, digest: str, found: str) -> None:
    if found != digest:
        _file(store, digest).unlink(missing_ok=True)
        raise SiteFailed(
            f"found the digest {found[:12]} in the site's store, expected {digest[:12]}; "
            "the damaged blob is removed, so that it will be sent again"
        )


def keep_only(store: Path, digests: Collection[str], grace_s: float = GRACE_S) -> None:
    """Remove all blobs but `digests`, and half-written files, if older than `grace_s`."""
    for digest in stored_digests(store):
        if digest not in digests and _age_s(_file(store, digest)) > grace_s:
            _file(store, digest).unlink(missing_ok=True)
    remove_leftovers(store / _BLOBS, grace_s)


def write_atomically(file: Path, blob: bytes, files: Files = DISK) -> None:
    """Write `blob` to `file` durably; after a failure it holds the old content or the new.

    The temporary name is this call's own, so that two processes may write the same file.

    Raises:
        SiteFailed: the disk is full or can't be written.
    """
    temporary = file.with_name(f"{WRITING}{file.name}.{secrets.token_hex(4)}")
    with disk_errors_as_site_failed():
        try:
            make_folders(file.parent, files)
            files.write(temporary, blob)
            files.sync(temporary)
            files.rename(temporary, file)
            files.sync(file.parent)
        except OSError:
            with suppress(OSError):
                remove_if_there(temporary, files)
            raise


@contextmanager
def disk_errors_as_site_failed() -> Generator[None]:
    """Turn an OSError of the body into a SiteFailed without a path."""
    try:
        yield
    except OSError as error:
        raise SiteFailed(f"could not write to the site's store ({error.strerror})") from None


def make_folders(folder: Path, files: Files = DISK) -> None:
    """Make `folder` and its parents, durably, where they are missing.

    Raises:
        OSError: the disk is full or can't be written.
    """
    if folder.is_dir():
        return
    make_folders(folder.parent, files)
    with suppress(FileExistsError):  # another process was first
        files.make_folder(folder)
    files.sync(folder.parent)


def remove_leftovers(folder: Path, grace_s: float = GRACE_S) -> None:
    """Remove half-written files and folders from `folder` that are older than `grace_s`."""
    for path in folder.glob(f"{WRITING}*"):
        if _age_s(path) > grace_s:
            with suppress(FileNotFoundError):  # its writer has just finished or removed it
                DISK.remove(path)


def _age_s(path: Path) -> float:
    """Return the seconds since it was last written; 0 where it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _file(store: Path, digest: str) -> Path:
    return store / _BLOBS / digest
