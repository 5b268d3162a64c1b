"""Where a federated round's time goes: the times of a round's events, and the parts between."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteTimes:
    """One site's part in a round, in the order in which it happens; seconds since 1970.

    Attributes:
        process: Flower's SuperExec at the site starts the process of the order's message.
        order: the order is read and in the site's audit log.
        started: the trainer has started the job.
        answered: the trainer's answer is on the site's disk.
        sent: the answer is in the audit log, about to be sent.
        received: the coordinator has it on its disk, before it is checked.
        trained: how many seconds the trainer took for the job, by its own clock.
    """

    process: float
    order: float
    started: float
    answered: float
    sent: float
    received: float
    trained: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTimes:
    """A round: when its order was about to be sent, and when the next order was."""

    opened: float
    closed: float
    sites: Mapping[str, SiteTimes]

    @property
    def seconds(self) -> float:
        """From its order to the next one."""
        return self.closed - self.opened

    @property
    def training(self) -> float:
        """Of the slowest site, in seconds: what the round can't do without."""
        return max(site_times.trained for site_times in self.sites.values())


#: The part between two events, by the later event's name.
PARTS: Mapping[str, str] = MappingProxyType(
    {
        "process": "the order's way: push, the SuperNode's poll, wire, the SuperExec's poll",
        "order": "start of the ClientApp's process: Python, imports, the order read",
        "started": "the site's checks, the job store, the trainer's poll",
        "answered": "the trainer's job",
        "sent": "the ClientApp sees the answer; one that has left by then is asked for again",
        "received": "the answer's way: the SuperNode's poll, wire, the ServerApp's poll",
        "closed": "the coordinator: checks, journal, aggregation, the next order",
    }
)


def parts(times: RoundTimes) -> dict[str, float]:
    """Return the seconds of each part of `PARTS`, along the site whose answer received last.

    They add up to the round.
    """
    last = max(times.sites.values(), key=lambda site_times: site_times.received)
    moments = {field.name: float(getattr(last, field.name)) for field in fields(SiteTimes)}
    del moments["trained"]
    found: dict[str, float] = {}
    before = times.opened
    for name, moment in (*moments.items(), ("closed", times.closed)):
        found[name] = moment - before
        before = moment
    return found


def typical(rounds: Sequence[RoundTimes]) -> dict[str, float]:
    """Return the median of each part over these rounds, in seconds."""
    each = [parts(times) for times in rounds]
    return {name: median(one[name] for one in each) for name in PARTS}
