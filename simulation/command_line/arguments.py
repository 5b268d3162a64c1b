"""What the options of this package's programs may be: each function is an argparse `type`."""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

from common.network.address import address_fault, split_address


def new_folder(text: str) -> Path:
    """Return the folder that an option names.

    Raises:
        ArgumentTypeError: it exists; what an earlier run left would be taken for this one's.
    """
    folder = Path(text)
    if folder.exists():
        raise argparse.ArgumentTypeError(f"found {text}, expected a new folder")
    return folder


def whole_from(least: int) -> Callable[[str], int]:
    """Return what reads a whole number of at most nine digits that is not below `least`."""

    def read(text: str) -> int:
        if re.fullmatch("[0-9]{1,9}", text) is None or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"found {text[:60]!r}, expected a whole number from {least} on"
            )
        return int(text)

    return read


def number_from(least: float) -> Callable[[str], float]:
    """Return what reads a finite number that is not below `least`."""

    def read(text: str) -> float:
        found = _number(text)
        if not (math.isfinite(found) and found >= least):
            raise argparse.ArgumentTypeError(
                f"found {text[:60]!r}, expected a number from {least:g} on"
            )
        return found

    return read


def positive(text: str) -> float:
    """Return a finite number above 0.

    Raises:
        ArgumentTypeError: it is none.
    """
    found = _number(text)
    if not (math.isfinite(found) and found > 0):
        raise argparse.ArgumentTypeError(f"found {text[:60]!r}, expected a number above 0")
    return found


def address(text: str) -> tuple[str, int]:
    """Return the host and the port of HOST:PORT.

    Raises:
        ArgumentTypeError: it is none.
    """
    if fault := address_fault(text):
        raise argparse.ArgumentTypeError(fault)
    return split_address(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
