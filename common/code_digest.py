"""The digest of the code that decides the bits of an answer or of an aggregate.

Orders carry it and sites compare it, so that both sides compute the same. What only shows,
counts or starts things is left out: a site does not refuse an order because a report has
another colour.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from common.identity import ROOT, files_digest, sha256
from common.outside_methods import outside_methods

#: What is covered: whole folders, and single files.
COVERED: Final = (
    "common",
    "client/backbones",
    "client/data",
    "client/inference",
    "client/methods",
    "client/model",
    "client/orders",
    "client/training",
    "server/aggregation",
    "server/app.py",
    "server/run",
)
#: Parts of them that decide no bit: addresses, processes and locks, what a run's report and a
#: site's own page of answers say.
NOT_COVERED: Final = (
    "client/data/thumbnail.py",
    "client/orders/kept_answers.py",
    "common/network",
    "common/process",
    "server/run/scoreboard.py",
)
_SUFFIXES: Final = (".py", ".json")


def code_files(root: Path) -> list[Path]:
    """Return the covered files of the checkout, image or App Bundle in `root`."""
    return [file for name in COVERED for file in _files(root / name) if _is_covered(file, root)]


@cache
def code_digest() -> str:
    """Return the digest of the code that runs here, as 16 hexadecimal digits.

    Methods from outside the tree count, too: all files of their packages.
    """
    digest = files_digest(ROOT, code_files(ROOT))
    for method in outside_methods():
        own = files_digest(method.folder, _files(method.folder))
        digest = sha256(f"{digest} {method.name} {own}".encode())
    return digest[:16]


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        yield from (file for file in path.rglob("*") if file.suffix in _SUFFIXES)


def _is_covered(file: Path, root: Path) -> bool:
    return not any(file.is_relative_to(root / name) for name in NOT_COVERED)
