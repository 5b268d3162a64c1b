"""An order while the sites work on it: who answered, was refused or left out, or is missing."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from common.adapter import StoredAdapter
from common.errors import SiteFailed
from common.exchange import Order, Scores
from common.plan.plan import Stage
from common.printable import printable
from common.work import Work
from server.run.accept import AcceptedScores, Refused, Waiting
from server.run.context import RunContext
from server.run.journal import AcceptedUpdate

#: An event that says the same of the missing sites, but for numbers, is repeated after so long: a
#: hundred sites that count their steps would make a hundred events a minute, for weeks.
REPEAT_S = 30.0


@dataclass(slots=True)
class Responses:
    """The accepted answers to an order so far, and why others are missing, by site.

    Attributes:
        final: the sites of which no answer will come, asked again or not.
    """

    updates: dict[str, AcceptedUpdate] = field(default_factory=dict[str, AcceptedUpdate])
    scores: dict[str, Scores] = field(default_factory=dict[str, Scores])
    refusals: dict[str, str] = field(default_factory=dict[str, str])
    final: set[str] = field(default_factory=set[str])

    @property
    def accepted(self) -> int:
        """The number of sites whose answers count."""
        return len(self.updates) + len(self.scores)


@dataclass(frozen=True, slots=True)
class OrderRun:
    """An order, what it is about, and the sites' responses so far.

    Attributes:
        stage: the order's stage in the plan; its sites are asked.
        quorum: the fewest answers that the run may continue with.
    """

    run: RunContext
    order: Order
    stage: Stage
    quorum: int
    responses: Responses = field(default_factory=Responses)

    @property
    def silent_sites(self) -> list[str]:
        """The sites that have neither answered nor been refused, by name."""
        found = self.responses
        return sorted(set(self.stage.sites) - {*found.updates, *found.scores, *found.refusals})

    @property
    def refusals(self) -> list[str]:
        """Why sites do not count, a sentence each, in order."""
        return sorted(self.responses.refusals.values())

    def ordered_adapter(self) -> StoredAdapter | None:
        """Return the adapter that the order names, if any."""
        digest = self.order.adapter
        return None if digest is None else self.run.stored_adapter(digest, "the order")

    def start_adapter(self) -> StoredAdapter | None:
        """Return what the round begins with; None in a stage's first whose start sites make."""
        return self.ordered_adapter() or self.run.stage_start(self.order.stage)

    def collect(self) -> Iterator[Waiting | None]:
        """Ask the sites and record what comes; yields after each event, with who is missing."""
        said, said_at = list[str](), 0.0
        responses = self.responses
        self.run.journal.open_order(self.order)
        for event in self.run.ask(self.order, self.stage.sites):
            match event:
                case AcceptedUpdate():
                    responses.updates[event.site] = event
                    responses.refusals.pop(event.site, None)
                case AcceptedScores():
                    responses.scores[event.site] = event.scores
                    responses.final.discard(event.site)
                    responses.refusals.pop(event.site, None)
                case Refused():
                    self.refuse(event.site, event.why, final=event.final)
                case Waiting():
                    states = sorted(event.states.items())
                    words = [f"{site} " + re.sub("[0-9]+", "", state) for site, state in states]
                    if words != said or time.monotonic() - said_at > REPEAT_S:
                        said, said_at = words, time.monotonic()
                        self._say_waiting(event)
            yield event if isinstance(event, Waiting) else None

    def has_enough(self) -> bool:
        """Return whether to continue with the answers that have come.

        That is all of them; or at least the quorum, once the deadline is over or every other
        site was refused, where sites are waited for at all.
        """
        accepted, sites = self.responses.accepted, len(self.stage.sites)
        if accepted == sites:
            return True
        if accepted < self.quorum or not self.run.patient:
            return False
        opened = self.run.journal.open_order(self.order)
        late = time.time() > opened + 3600 * self.stage.deadline_hours
        return late or accepted + len(self.responses.refusals) == sites

    def none_will_come(self) -> bool:
        """Return whether no site will ever answer: each withholds its scores, or has left."""
        return len(self.responses.final) == len(self.stage.sites)

    def refuse(self, site: str, why: str, *, final: bool = False) -> None:
        """Record why a site does not count, and say so; `final` if no answer will come."""
        if final:
            self.responses.final.add(site)
        else:
            self.responses.final.discard(site)
        self._say(site, f"could not {self.order.work.words} {self._where}", why)

    def leave_out(self, site: str, why: str) -> None:
        """Record why a site's answer, which is accepted, counts nothing, and say so."""
        self._say(site, f"does not count in {self._where}", why)

    @property
    def _where(self) -> str:
        order = self.order
        number = f", round {order.round}" if order.work is Work.TRAIN else ""
        return f"stage {order.stage + 1}{number}"

    def _say(self, site: str, what: str, why: str) -> None:
        text = f"site {site} {what}: {printable(why)}"
        self.responses.refusals[site] = text
        event = {"event": "refused", "stage": self.order.stage, "site": site, "text": text}
        self.run.on_event(event)

    def fail(self) -> SiteFailed:
        """Return the error that names every refusal."""
        return SiteFailed("\n".join(self.refusals))

    def _say_waiting(self, waiting: Waiting) -> None:
        order = self.order
        event = {"event": "waiting", "work": order.work, "stage": order.stage, "round": order.round}
        self.run.on_event({**event, "for": dict(sorted(waiting.states.items()))})
