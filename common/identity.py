"""What identifies a thing: canonical JSON, digests, seeds, and the digest of this code."""

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Final

#: Folder of the checkout, image or App Bundle that this code is in.
ROOT: Final = Path(__file__).resolve().parent.parent

#: The packages whose code decides what a site computes and what a coordinator counts.
CODE_ROOMS = ("common", "server", "client")


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def sha256(blob: bytes) -> str:
    """The SHA-256 digest of `blob`, as 64 hexadecimal digits."""
    return hashlib.sha256(blob).hexdigest()


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, the same on every machine.

    Every random generator of the project is seeded from (plan seed, stage, round, site)
    through here, so that any round can be redone alone.
    """
    digest = hashlib.sha256(canonical_json(list(parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def files_digest(root: Path, files: Iterable[Path]) -> str:
    """One digest over the relative names and the bytes of `files`."""
    whole = hashlib.sha256()
    for file in sorted(files):
        whole.update(f"{file.relative_to(root).as_posix()}\0".encode())
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()


@cache
def code_digest() -> str:
    """Digest of the code that runs here, tables included; orders carry it, sites compare it."""
    kinds = ("*.py", "*.json")
    files = [file for room in CODE_ROOMS for kind in kinds for file in (ROOT / room).rglob(kind)]
    return files_digest(ROOT, files)[:16]
