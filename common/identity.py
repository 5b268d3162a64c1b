"""Identity: canonical JSON, digests of bytes and files, and seeds."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

#: Folder of the checkout, image or App Bundle that this code is in.
ROOT: Final = Path(__file__).resolve().parent.parent


def canonical_json(value: object) -> str:
    """Return JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def sha256(blob: bytes) -> str:
    """Return the SHA-256 digest of `blob`, as 64 hexadecimal digits."""
    return hashlib.sha256(blob).hexdigest()


def seed_for(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part, the same on every machine.

    Every random generator of the project is seeded from (plan seed, stage, round, site)
    through here, so that any round can be redone alone.
    """
    digest = hashlib.sha256(canonical_json(list(parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def files_digest(root: Path, files: Iterable[Path]) -> str:
    """Return one SHA-256 digest over the relative names and the bytes of `files`."""
    whole = hashlib.sha256()
    for file in sorted(files):
        whole.update(f"{file.relative_to(root).as_posix()}\0".encode())
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()
