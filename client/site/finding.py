"""The result of one check of a site, as a line for its admin."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    #: The site works as it is; the text says what may go wrong.
    WARNING = "warning"
    #: The coordinator does not answer; it may come back by itself.
    AWAY = "away"
    #: The coordinator answers and does not know the site. One that has just been started tells
    #: Flower within seconds which sites are enrolled; after that it is a problem like any other.
    UNKNOWN = "unknown"
    #: It stays so until somebody does what the text says.
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was checked, how serious the finding is, and in words what to do about it."""

    name: str
    level: Level
    text: str

    @property
    def passed(self) -> bool:
        """Whether the site can work as it is."""
        return self.level in (Level.OK, Level.WARNING)


def ok(name: str, text: str) -> Finding:
    """Return the finding of a check that passed."""
    return Finding(name, Level.OK, text)


def problem(name: str, text: str) -> Finding:
    """Return the finding of a check that failed."""
    return Finding(name, Level.PROBLEM, text)
