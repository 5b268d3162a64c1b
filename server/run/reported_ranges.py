"""The ranges of what sites report of themselves; nobody can check it any further."""

import math
from collections.abc import Mapping
from typing import Final

#: Smallest and largest plausible value of each number of an update. A wider one would outweigh
#: others, or could not be drawn: what is finite may be too large for a chart's axis.
RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "examples": (1, 10**7),
    "steps": (0, 10**8),
    "loss": (-(10**6), 10**6),
    "regularizer": (-(10**6), 10**6),
    # 116 days, and 16 TiB.
    "seconds": (0, 10**7),
    "peak_memory": (0, 2**44),
}
#: The same of the number of test questions.
QUESTIONS: Final = (1, 10**7)


def is_plausible(field: str, value: float) -> bool:
    """Return whether an update's field may have this value; a nan may not."""
    least, most = RANGES[field]
    return math.isfinite(value) and least <= value <= most
