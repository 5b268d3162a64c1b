"""Sites that have left the federation: they are no longer enrolled, and are not waited for."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

#: A site that is not enrolled for so long has left: time to enroll it with another key.
LEFT_S = 600.0
LEFT: Final = "it has left the federation"


@dataclass(slots=True)
class Departures:
    """Since when sites have not been enrolled, by the process's clock."""

    _since: dict[str, float] = field(default_factory=dict[str, float])

    def look(self, missing: Sequence[str], enrolled: Collection[str] | None) -> None:
        """Record which of the sites that are not connected are not enrolled either.

        In a simulation nobody is enrolled (None), and nobody leaves.
        """
        for site in missing:
            if enrolled is None or site in enrolled:
                self._since.pop(site, None)
            else:
                self._since.setdefault(site, time.monotonic())

    def __contains__(self, site: str) -> bool:
        """Return whether the site has left, and is not just getting another key."""
        return site in self._since and time.monotonic() - self._since[site] >= LEFT_S
