"""Sets of names that grow together: what must stay at one place."""


class JoinedNames:
    """Disjoint sets (union-find); a name that was joined with no other is a set of its own."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def root(self, name: str) -> str:
        """Return the name that stands for the set of `name`."""
        above = self._above.setdefault(name, name)
        while above != self._above[above]:
            self._above[above] = self._above[self._above[above]]
            above = self._above[above]
        self._above[name] = above
        return above

    def join(self, one: str, other: str) -> None:
        """Make one set of the sets of two names."""
        self._above[self.root(other)] = self.root(one)
