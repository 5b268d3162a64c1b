"""The B's that stay at this site, under a rule that keeps them (docs/adr/0019-own-b.md).

They lie in the site's store, a file for each round of a plan's stage, and never leave it. A round
begins with the B of an earlier one, so that it can be repeated after a crash to the same bytes.
Who removes the folder `own_b` has the site answer with the released B again.
"""

from pathlib import Path
from typing import Final

from client.site.blob_store import disk_errors_as_site_failed, write_atomically
from common.adapter import Adapter, StoredAdapter, to_bytes
from common.durable import DISK, remove_if_there

_FOLDER: Final = "own_b"
_SUFFIX: Final = ".safetensors"


def latest(store: Path, plan: str, stage: int, before: int | None = None) -> StoredAdapter | None:
    """Return the B's of the last round, or of the last one before a round; None where none are.

    Raises:
        BankError: the file is damaged.
    """
    rounds = [number for number in _rounds(store, plan, stage) if before is None or number < before]
    if not rounds:
        return None
    source = f"the site's own B of stage {stage + 1}, round {max(rounds)}"
    return StoredAdapter.in_file(_file(store, plan, stage, max(rounds)), source)


def save(store: Path, plan: str, stage: int, round: int, part: Adapter) -> None:
    """Write a round's B's durably; only they and those that the round began with remain.

    Later ones are of an earlier course of the same stage.

    Raises:
        SiteFailed: the disk is full or can't be written.
    """
    write_atomically(_file(store, plan, stage, round), to_bytes(part))
    found = _rounds(store, plan, stage)
    kept = {round, max((number for number in found if number < round), default=round)}
    with disk_errors_as_site_failed():
        for number in set(found) - kept:
            remove_if_there(_file(store, plan, stage, number), DISK)


def _rounds(store: Path, plan: str, stage: int) -> list[int]:
    files = _file(store, plan, stage, 0).parent.glob(f"[0-9]*{_SUFFIX}")
    return [int(file.stem) for file in files]


def _file(store: Path, plan: str, stage: int, round: int) -> Path:
    return store / _FOLDER / plan[:16] / f"{stage:03d}" / f"{round:04d}{_SUFFIX}"
