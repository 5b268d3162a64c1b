"""Methods from outside the tree: packages that an entry point names."""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from common.errors import PlanError

#: The group of entry points under which a package offers a method.
GROUP: Final = "fedmslora.methods"


@dataclass(frozen=True, slots=True)
class OutsideMethod:
    """A package with the modules `settings` and `client`, and its folder."""

    name: str
    package: str
    folder: Path


@cache
def outside_methods() -> tuple[OutsideMethod, ...]:
    """Return the methods that installed packages offer, in name order.

    Raises:
        PlanError: an entry point names no package.
    """
    found: list[OutsideMethod] = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            spec = find_spec(point.value)
        except (ImportError, ValueError):
            # A package within one that is not there, or no name at all.
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise PlanError(
                f"entry point {point.name!r} of {GROUP}: found {point.value!r}, expected an "
                "installed package with the modules settings and client"
            )
        folder = Path(next(iter(spec.submodule_search_locations)))
        found.append(OutsideMethod(point.name, point.value, folder))
    return tuple(found)
