"""What a check of a site comes to: one line for its admin."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How a check came out."""

    OK = "ok"
    #: It works as it is; the text says what may go wrong.
    WARNING = "warning"
    #: The coordinator does not answer. It may come back by itself.
    AWAY = "away"
    #: The coordinator answers and does not know the site. One that has just been started tells
    #: Flower within seconds whom it has enrolled; then it is a problem like any other.
    UNKNOWN = "unknown"
    #: It stays wrong until somebody does what the text says.
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, how it came out, and in words what to do."""

    name: str
    level: Level
    text: str

    @property
    def passed(self) -> bool:
        """Whether the site can work as it is."""
        return self.level in (Level.OK, Level.WARNING)


def ok(name: str, text: str) -> Finding:
    """A check that passed."""
    return Finding(name, Level.OK, text)


def problem(name: str, text: str) -> Finding:
    """A check that did not."""
    return Finding(name, Level.PROBLEM, text)
