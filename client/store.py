"""The releases that a site holds: files on its own disk, named by their digest."""

import re
from contextlib import suppress
from pathlib import Path

from common.durable import DISK, remove_if_there, write_file, writing
from common.errors import SiteFailed
from common.identity import sha256

_RELEASES = "releases"
_SUFFIX = ".safetensors"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def held(store: Path) -> tuple[str, ...]:
    """The digests of every release in the store, sorted."""
    names = (file.name.removesuffix(_SUFFIX) for file in (store / _RELEASES).glob(f"*{_SUFFIX}"))
    return tuple(sorted(name for name in names if _DIGEST.fullmatch(name)))


def put(store: Path, blob: bytes) -> str:
    """The release is stored, whole and on the disk; its digest.

    Raises:
        SiteFailed: the disk is full or can't be written.
    """
    digest = sha256(blob)
    file = _file(store, digest)
    if not file.exists():
        write_whole(file, blob)
    return digest


def get(store: Path, digest: str) -> bytes:
    """The release with this digest.

    Raises:
        SiteFailed: it is not there, or has changed since it was stored; then it is removed,
            so that the site says it lacks it and gets it again.
    """
    file = _file(store, digest)
    try:
        blob = file.read_bytes()
    except OSError:
        raise SiteFailed(f"found no release {digest[:12]} in the site's store") from None
    if sha256(blob) != digest:
        file.unlink(missing_ok=True)
        raise SiteFailed(
            f"found the digest {sha256(blob)[:12]} in the site's store, expected {digest[:12]}; "
            "the damaged release is removed, so that it will be sent again"
        )
    return blob


def write_whole(file: Path, blob: bytes) -> None:
    """`file` holds `blob`, on the disk; where that fails, it is as it was before.

    Raises:
        SiteFailed: the disk is full or can't be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, blob, DISK)
    except OSError as error:
        with suppress(OSError):
            remove_if_there(writing(file), DISK)
        raise SiteFailed(f"could not write to the site's store ({error.strerror})") from None


def _file(store: Path, digest: str) -> Path:
    assert _DIGEST.fullmatch(digest), digest
    return store / _RELEASES / f"{digest}{_SUFFIX}"
