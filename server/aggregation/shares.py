"""Counts that sites report, limited so that none has more than a given share of their sum."""

from collections.abc import Sequence
from typing import Final

#: What rounding may add to a share.
_ROUNDING: Final = 1e-12


def capped(counts: Sequence[float], largest: float) -> list[float]:
    """Return the counts, where none is more than the share `largest` of their sum.

    Those that are more are reduced until they have just that share; the others stay as they are,
    to the last bit.

    Args:
        counts: above 0.
        largest: at least an equal share, 1 / len(counts).
    """
    held: set[int] = set()
    while True:
        rest = sum(count for place, count in enumerate(counts) if place not in held)
        # The reduced ones have `largest` of the sum each, the others what is left of it.
        limit = largest * rest / (1 - largest * len(held)) if largest < 1 else rest
        over = {
            place
            for place, count in enumerate(counts)
            if place not in held and count > limit * (1 + _ROUNDING)
        }
        if not over:
            return [limit if place in held else count for place, count in enumerate(counts)]
        held |= over
