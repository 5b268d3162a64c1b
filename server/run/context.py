"""What a run of one plan works with, resolved once and passed on as one value."""

from dataclasses import dataclass
from pathlib import Path

from common.adapter import StoredAdapter
from common.bank.release import ADAPTER_FILE, release_folder
from common.plan.plan import Plan
from common.process.progress import OnEvent
from server.run.accept import Ask
from server.run.journal import Journal


@dataclass(frozen=True, slots=True)
class RunContext:
    """A plan, the sites that carry it out, and what is durable of it.

    Attributes:
        ask: sends an order to sites and yields their accepted answers and refusals.
        on_event: called with every progress event.
        patient: sites that fail or are offline are waited for; if not, they fail the run.
        bank: the folder of the run's releases; None where no release is needed again.
    """

    plan: Plan
    ask: Ask
    journal: Journal
    on_event: OnEvent
    patient: bool
    bank: Path | None = None

    def stored_adapter(self, digest: str, source: str) -> StoredAdapter:
        """Return an adapter of the run's blobs; `source` names it in an error."""
        return StoredAdapter.in_file(self.journal.blobs.path(digest), source)

    def stage_start(self, stage: int) -> StoredAdapter | None:
        """Return the release that a stage begins with; None where sites make the start."""
        if self.bank is None or stage == 0 or not self.plan.method.begins_with_release:
            return None
        last = self.plan.stages[stage - 1].name
        file = self.bank / release_folder(stage - 1, last) / ADAPTER_FILE
        return StoredAdapter.in_file(file, f"release {stage}")
