"""Where a run keeps what it made: one folder, the same for a simulation and a coordinator."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run of one plan."""

    root: Path

    @property
    def bank(self) -> Path:
        """The releases."""
        return self.root / "bank"

    @property
    def plan(self) -> Path:
        """The plan that is run, with every default written out."""
        return self.root / "plan.json"

    @property
    def journal(self) -> Path:
        """The answers that were accepted."""
        return self.root / "journal.sqlite"

    @property
    def key(self) -> Path:
        """The coordinator's signing key."""
        return self.root / "signing.key"

    @property
    def progress(self) -> Path:
        """What is going on, for whoever watches."""
        return self.root / "progress"
