"""The banks that a site has seen: a plan's bank may only be appended to.

Each plan has a folder with an empty file `POSITION-DIGEST` for each release, and
`prototype-POSITION-DIGEST` for each prototype: by sending ever new prototypes a coordinator could
find out what the test images look like. A file name appears whole or not at all, and none is ever
removed, so that no crash and no late process takes a release back. If a coordinator starts a plan
anew with another bank, the site refuses its orders until its admin removes the plan's folder.
"""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from client.site.failures import OrderRefused
from common.durable import DISK
from common.exchange import Order, Reason, ReleaseRef
from common.work import Work

#: In a site's store.
CHAIN_FOLDER = "chain"
_PROTOTYPE = "prototype-"
_NAME = re.compile(rf"({_PROTOTYPE})?([0-9]+)-([0-9a-f]{{64}})")


def new_in_bank(store: Path, order: Order) -> Collection[str]:
    """Check that the order's bank is a prefix of the known one or continues it.

    Nothing is changed. An order to train alone names no release, and may come while its stage is
    released.

    Returns:
        the names of the files that would remember what is new in it.

    Raises:
        OrderRefused: BANK, where it is neither; RELEASED, to train a stage that is released.
    """
    if order.work is Work.TRAIN_ALONE:
        return ()
    folder = store / CHAIN_FOLDER / order.plan
    known, prototypes = _read_known(folder, ""), _read_known(folder, _PROTOTYPE)
    for position, ref in enumerate(order.releases):
        if ref.stage != position:
            raise OrderRefused(
                Reason.BANK,
                f"order: found stage {ref.stage + 1} as release {position + 1}, expected the "
                "stages in their order",
            )
        _check_same(ref, known, "release", folder)
    for ref in order.prototypes:
        _check_same(ref, prototypes, "the prototype of release", folder)
    released = max([*known, len(order.releases) - 1])
    if order.work is Work.TRAIN and order.stage <= released:
        raise OrderRefused(
            Reason.RELEASED,
            f"order: found stage {order.stage + 1} to train, expected one after stage "
            f"{released + 1}, which is released; if the plan was started anew, remove {folder}",
        )
    new = [f"{ref.stage}-{ref.sha256}" for ref in order.releases if ref.stage not in known]
    new += [
        f"{_PROTOTYPE}{ref.stage}-{ref.sha256}"
        for ref in order.prototypes
        if ref.stage not in prototypes
    ]
    return new


def check_bank(store: Path, order: Order) -> None:
    """Check the order's bank as `new_in_bank` does, and remember it durably.

    A refused order changes nothing; but of two banks that come at the same moment neither is
    taken, and the folder shows both.

    Raises:
        OrderRefused: as in `new_in_bank`.
    """
    names, folder = new_in_bank(store, order), store / CHAIN_FOLDER / order.plan
    if not names:
        return
    folder.mkdir(parents=True, exist_ok=True)
    DISK.sync(folder.parent)
    DISK.sync(folder.parent.parent)
    for name in names:
        os.close(os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600))
    DISK.sync(folder)
    new_in_bank(store, order)


def _check_same(ref: ReleaseRef, known: Mapping[int, set[str]], what: str, folder: Path) -> None:
    if known.get(ref.stage, {ref.sha256}) != {ref.sha256}:
        raise OrderRefused(
            Reason.BANK,
            f"order: found {what} {ref.stage + 1} to be {ref.sha256[:12]}, expected "
            f"{', '.join(sorted(name[:12] for name in known[ref.stage]))}; if the plan was "
            f"started anew, remove {folder}",
        )


def _read_known(folder: Path, prefix: str) -> dict[int, set[str]]:
    """Return the digests by stage of all files with this prefix of their name.

    A stage has more than one digest only if somebody tampered with the folder.
    """
    known: dict[int, set[str]] = {}
    for file in folder.glob("*"):
        name = _NAME.fullmatch(file.name)
        if name is not None and (name[1] or "") == prefix:
            known.setdefault(int(name[2]), set()).add(name[3])
    return known
