"""Checks a bank by reading it; each problem is one sentence."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from common.bank.release import (
    ADAPTER_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    PROTOTYPE_FILE,
    RELEASE_FILE,
    Index,
    IndexEntry,
    Release,
)
from common.documents.bounded import OutOfBounds, read_bytes
from common.durable import WRITING
from common.errors import BankError
from common.identity import canonical_json
from common.plan_fields import BaseModelPin

#: The index as it will be once the release that is being written is in it. It distinguishes a
#: release whose writing was interrupted from a folder that somebody else put there.
INTENT_FILE = f"{WRITING}release.json"
#: Most bytes of an index or a release's document; those of the demo have 2,000.
_MOST_BYTES: Final = 16 * 2**20
_NO_FILE: Final = "found a pipe or a device, expected a file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What is known of a bank from another source; None where nothing is known.

    Attributes:
        base_sha256: digest of the base model.
        signer: public key that must have signed every release.
        head: hash of the last release. A bank that lost its last releases, or that a stranger
            signed again, is consistent in itself and found only by this.
    """

    base_sha256: str | None = None
    signer: str | None = None
    head: str | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """An index with its releases (None where unreadable), and the problems found."""

    index: Index
    releases: tuple[Release | None, ...]
    problems: tuple[str, ...]


def read_index(folder: Path) -> Index:
    """Return the bank's index.

    Raises:
        BankError: there is none, or it was changed.
    """
    file = folder / INDEX_FILE
    return Index.from_bytes(_read(file), str(file))


def read_chain(folder: Path) -> Chain:
    """Read and check the index and all releases, but not their adapters.

    Raises:
        BankError: the index can't be read; other problems are returned.
    """
    index = read_index(folder)
    releases: list[Release | None] = []
    problems: list[str] = []
    parent: str | None = index.genesis
    for position, entry in enumerate(index.releases):
        try:
            release, digest = _read_release(folder, entry)
        except BankError as error:
            problems.append(str(error))
            releases.append(None)
            # The next release can't be compared with one that was changed.
            parent = None
            continue
        problems += _place_problems(folder, position, entry, release)
        problems += _hash_problems(folder, entry, digest)
        problems += _parent_problems(folder, index.base_model, parent, release)
        releases.append(release)
        parent = digest
    return Chain(index, tuple(releases), tuple(problems))


def content_problems(folder: Path, chain: Chain) -> Iterator[str]:
    """Yield problems of the releases' files, and files that do not belong to the bank."""
    for entry, release in zip(chain.index.releases, chain.releases, strict=True):
        home = folder / entry.folder
        own = {ADAPTER_FILE, CONFIG_FILE, RELEASE_FILE}
        if release is not None:
            yield from _file_problems(home / ADAPTER_FILE, release.adapter)
            yield from _file_problems(home / CONFIG_FILE, release.config)
        if release is not None and release.prototype is not None:
            yield from _file_problems(home / PROTOTYPE_FILE, release.prototype)
        # Whether a release that was changed has a prototype is not known.
        if release is None or release.prototype is not None:
            own.add(PROTOTYPE_FILE)
        yield from _unlisted(home, own)
    listed = {entry.folder for entry in chain.index.releases}
    yield from _unlisted(folder, {INDEX_FILE, *listed, *interrupted_folders(folder, chain.index)})


def expectation_problems(folder: Path, chain: Chain, expected: Expected) -> Iterator[str]:
    """Yield how the bank, be it valid in itself, differs from the expected one."""
    base, head = chain.index.base_model, chain.index.head
    if expected.base_sha256 not in (None, base.sha256):
        yield (
            f"{folder / INDEX_FILE}: found the base model {base.name} with digest {base.sha256}, "
            f"expected {expected.base_sha256}"
        )
    if expected.head not in (None, head):
        yield f"{folder / INDEX_FILE}: found the head {head}, expected {expected.head}"
    for release in chain.releases:
        if release is not None and expected.signer not in (None, release.signer):
            yield (
                f"{folder / release.folder / RELEASE_FILE}: signed by {release.signer}, "
                f"expected {expected.signer}"
            )


def interrupted_folders(folder: Path, index: Index) -> tuple[str, ...]:
    """Return the folder of a release whose writing was interrupted before the index listed it."""
    file = folder / INTENT_FILE
    try:
        intent = Index.from_bytes(_read(file), str(file))
    except BankError:
        # No release was being written, or not even this file was complete; then no folder was
        # renamed yet.
        return ()
    if intent.releases[:-1] != index.releases or intent.genesis != index.genesis:
        return ()
    return tuple(entry.folder for entry in intent.releases[len(index.releases) :])


def is_endless(file: Path) -> bool:
    """Return whether it is a pipe, a device or a link to one, whose reading may not end."""
    return file.exists() and not (file.is_file() or file.is_dir())


def _read_release(folder: Path, entry: IndexEntry) -> tuple[Release, str]:
    """Read a release and check its signature; return it and its hash."""
    file = folder / entry.folder / RELEASE_FILE
    try:
        blob = _read(file)
    except BankError as error:
        raise BankError(f"{folder / INDEX_FILE}: lists {entry.folder}, but {error}") from None
    return _signed_release(blob, str(file))


@lru_cache(maxsize=1024)
def _signed_release(blob: bytes, source: str) -> tuple[Release, str]:
    """Return the release of these bytes and its hash; cached, as equal bytes give equal results."""
    release = Release.from_bytes(blob, source)
    if not release.is_signed:
        raise BankError(
            f"{source}: its signature does not match its content, so one of them was changed"
        )
    return release, release.hash


def clear_release_cache() -> None:
    """Clear the cache of checked signatures."""
    _signed_release.cache_clear()


def _place_problems(
    folder: Path, position: int, entry: IndexEntry, release: Release
) -> Iterator[str]:
    """Yield how the index and a signed release disagree on its place."""
    file = folder / entry.folder / RELEASE_FILE
    if release.folder != entry.folder:
        yield (
            f"{file}: found the release {release.folder} in it, expected {entry.folder}: "
            "folders were exchanged or renamed"
        )
    elif release.stage != position:
        yield (
            f"{folder / INDEX_FILE}: found {entry.folder} at position {position}, expected it at "
            f"{release.stage}: releases were re-ordered or removed"
        )


def _hash_problems(folder: Path, entry: IndexEntry, digest: str) -> Iterator[str]:
    """Yield whether the index lists another hash than the release has."""
    if digest != entry.hash:
        yield (
            f"{folder / INDEX_FILE}: lists {entry.folder} with hash {entry.hash}, "
            f"{folder / entry.folder / RELEASE_FILE} has {digest}"
        )


def _parent_problems(
    folder: Path, base_model: BaseModelPin, parent: str | None, release: Release
) -> Iterator[str]:
    """Yield how a signed release does not continue the one before it."""
    file = folder / release.folder / RELEASE_FILE
    if parent not in (None, release.parent):
        yield (
            f"{file}: continues {release.parent}, expected {parent}, the one before it: "
            "releases were changed, re-ordered or removed"
        )
    if release.base_model != base_model:
        found, own = (canonical_json(pin.model_dump()) for pin in (release.base_model, base_model))
        yield f"{file}: made on the base model {found}, expected {own}"


def _file_problems(file: Path, expected: str) -> Iterator[str]:
    try:
        if is_endless(file):
            yield f"{file}: {_NO_FILE}"
            return
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        yield f"{file}: can't be read ({error.strerror})"
        return
    if found != expected:
        yield f"{file}: found the digest {found}, expected {expected}: its bytes were changed"


def _unlisted(folder: Path, own: set[str]) -> Iterator[str]:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name not in own and not path.name.startswith(WRITING):
            yield f"{path}: found, but no release of this bank lists it"


def _read(file: Path) -> bytes:
    try:
        if is_endless(file):
            raise BankError(f"{file}: {_NO_FILE}")
        return read_bytes(file, _MOST_BYTES)
    except OutOfBounds as error:
        raise BankError(f"{file}: {error}") from None
    except OSError as error:
        raise BankError(f"{file}: can't be read ({error.strerror})") from None
