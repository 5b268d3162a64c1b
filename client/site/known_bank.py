"""The bank that a site has seen grow: the same plan's bank may only go on from there.

A folder for each plan, in it an empty file named `POSITION-DIGEST` for each release, and
`prototype-POSITION-DIGEST` for each prototype: a coordinator that could send ever new ones might
ask out how the test pictures look. A name appears whole or not at all, none is ever removed, so
no crash and no late process takes a release back. Once a coordinator starts a plan anew with
another bank, the site's admin removes the plan's folder; until then the site refuses.
"""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from client.site.failures import OrderRefused
from common.durable import DISK
from common.exchange import Order, Reason, ReleaseRef, Work

#: In a site's store.
CHAIN_FOLDER = "chain"
_PROTOTYPE = "prototype-"
_NAME = re.compile(rf"({_PROTOTYPE})?([0-9]+)-([0-9a-f]{{64}})")


def check_bank(store: Path, order: Order) -> None:
    """The order's bank is a beginning of the one known here, or continues it, and is known now.

    A refused order changes nothing.

    Raises:
        OrderRefused: BANK, where it is neither; RELEASED, to train a stage that is released.
    """
    folder = store / CHAIN_FOLDER / order.plan
    known, prototypes = _known(folder, ""), _known(folder, _PROTOTYPE)
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
    released = max([*known, len(order.releases) - 1], default=-1)
    if order.work is Work.TRAIN and order.stage <= released:
        raise OrderRefused(
            Reason.RELEASED,
            f"order: found stage {order.stage + 1} to train, expected one after stage "
            f"{released + 1}, which is released; if the plan was started anew, remove {folder}",
        )
    new = [_name("", ref) for ref in order.releases if ref.stage not in known]
    new += [_name(_PROTOTYPE, ref) for ref in order.prototypes if ref.stage not in prototypes]
    _extend(folder, new)


def _check_same(ref: ReleaseRef, known: Mapping[int, set[str]], what: str, folder: Path) -> None:
    if known.get(ref.stage, {ref.sha256}) != {ref.sha256}:
        raise OrderRefused(
            Reason.BANK,
            f"order: found {what} {ref.stage + 1} to be {ref.sha256[:12]}, expected "
            f"{', '.join(sorted(name[:12] for name in known[ref.stage]))}; if the plan was "
            f"started anew, remove {folder}",
        )


def _name(beginning: str, ref: ReleaseRef) -> str:
    return f"{beginning}{ref.stage}-{ref.sha256}"


def _known(folder: Path, beginning: str) -> dict[int, set[str]]:
    """The digests of each release that was seen; more than one only if somebody meddled.

    With `_PROTOTYPE` as the beginning of their names, those of the prototypes.
    """
    known: dict[int, set[str]] = {}
    for file in folder.glob("*"):
        name = _NAME.fullmatch(file.name)
        if name is not None and (name[1] or "") == beginning:
            known.setdefault(int(name[2]), set()).add(name[3])
    return known


def _extend(folder: Path, names: Collection[str]) -> None:
    if not names:
        return
    _make_durable(folder)
    for name in names:
        file = folder / name
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600))
    DISK.sync(folder)


def _make_durable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    DISK.sync(folder.parent)
    DISK.sync(folder.parent.parent)
