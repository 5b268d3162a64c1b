"""The sites as a function: orders go out, answers come in. The only file that knows Flower's Grid.

No message waits long for its reply: a site that is not done says so and is asked again, so a
lost message costs another request and nothing else. We drive the Grid ourselves: a stage is
not a round, and Flower's own loop has neither a bank nor a journal (docs/adr/0002-own-loop.md).
"""

import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from common.code_digest import code_digest
from common.errors import SiteFailed
from common.exchange import (
    Answer,
    Delivery,
    Failure,
    Lacks,
    Order,
    Presence,
    Reason,
    Reply,
    Working,
    read_reply,
)
from common.printable import printable
from common.wire import wire_bytes
from server.asked_site import RETRY_S, UNANSWERED_S, AskedSite, Patience, Seen
from server.coordinator.events import OFFLINE, OTHER_CODE
from server.coordinator.notify import Activity, Notifications
from server.departures import LEFT, Departures
from server.message_bound import TOO_LARGE
from server.run.accept import Accept, Done, Received, Refused, Waiting

#: No further blob is added to a message of so many bytes: a bank is sent release by release, so
#: that neither memory nor a lost message costs more than one of them.
PARCEL_BYTES = 64 * 2**20
#: Pause before a site with other code than ours is asked whether it was upgraded.
UPGRADE_S = 60.0
#: Pause between two requests for Flower's list of nodes.
NODE_LIST_S = 2.0
#: Most letters of why a site gave no answer: some are of its own choice.
MOST_LETTERS = 240
#: The slowest connection that a message's time to live allows for.
SLOWEST_BYTES_S = 20_000.0
#: flwr 1.42: the errors that decoding a site's malformed message can raise. Those of the connection
#: to the SuperLink (httpx) are none of them: they end this process, and Flower starts another.
_MALFORMED = (
    ValueError, LookupError, TypeError, AttributeError, AssertionError, OverflowError,
    RecursionError, MemoryError, DecodeError,
)  # fmt: skip


@dataclass(slots=True)
class _Query:
    """The messages that ask a node which site it is, and when it is asked again."""

    messages: tuple[str, ...]
    pause_s: float
    again_at: float


@dataclass(slots=True)
class Network:
    """The connected sites, and the blobs that each of them has.

    Attributes:
        blob: gives what an order needs, by its digest.
        registered: gives the names that nodes may have here, of which there may be more later;
            None in a simulation, where a node says itself which site it is.
        notifications: sent for every message; None where nobody reads them, as in a simulation.
    """

    grid: Grid
    blob: Callable[[str], bytes]
    patience: Patience
    registered: Callable[[], Collection[str]] | None = None
    notifications: Notifications | None = None
    _nodes: dict[str, int] = field(default_factory=dict[str, int])
    _holds: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    _troubles: dict[str, str] = field(default_factory=dict[str, str])
    _queries: dict[int, _Query] = field(default_factory=dict[int, _Query])
    _query_again: dict[int, float] = field(default_factory=dict[int, float])
    _met: dict[int, str] = field(default_factory=dict[int, str])
    #: Sites that have taken an order of this run's plan, which they do only once they approved it.
    _approving: set[str] = field(default_factory=set[str])
    _left: Departures = field(default_factory=Departures)
    #: The names of the nodes that were online at the last look.
    _listed: Collection[str | None] = ()
    _listed_at: float = 0.0

    def ask(
        self, order: Order, sites: Sequence[str], accept: Accept
    ) -> Iterator[Done | Refused | Waiting]:
        """Ask each site until `accept` accepts its answer; in between, yield who is missing.

        Sites are asked in turns and answer when they can. Endless where a site never answers,
        unless the patience ends: then each site ends with Done or Refused.

        Raises:
            SiteFailed: where patience ends, a site is claimed by two nodes, has not connected
                or runs other code.
        """
        began = answered = time.monotonic()
        states = [AskedSite(site, needs=order.needs) for site in sites]
        while waiting := [site for site in states if not site.done]:
            if self.notifications is not None:
                self.notifications.heartbeat()
            self._update_nodes(waiting, began)
            events = sent = False
            for site in waiting:
                if site.name in self._left and site.reported != LEFT:
                    yield from self._refuse(site, LEFT, final=True)
                unsent = site.message is None
                for event in self._advance(site, order, accept):
                    events = True
                    yield event
                sent |= unsent and site.message is not None
            if events:
                answered = time.monotonic()
            else:
                yield self._waiting(waiting)
                if not sent:  # A site in this process has answered what was just sent.
                    time.sleep(self.patience.pause_s(time.monotonic() - answered))

    def _advance(self, site: AskedSite, order: Order, accept: Accept) -> Iterator[Done | Refused]:
        """Send the order if it is time to, or read the reply if it has come."""
        for message in (*site.earlier, site.message):
            if message is not None and (yield from self._reply(site, message, accept)):
                return
        if site.message is None:
            if site.name in self._nodes and time.monotonic() >= site.retry_at:
                self._send(site, order)
        elif site.is_lost(self._seen(site.name), self.patience):
            site.ask_again()

    def _reply(
        self, site: AskedSite, message: str, accept: Accept
    ) -> Generator[Done | Refused, None, bool]:
        """Read the reply to a message, and return whether it has come."""
        try:
            reply = _pull(self.grid, message)
        except SiteFailed as error:
            site.answered(message)
            yield from self._refuse(site, str(error))
            return True
        if reply is None:
            return False
        latest = site.answered(message)
        # An earlier message that got lost, or was refused, has been sent again meanwhile.
        if latest or not reply.has_error():
            yield from self._on_message(site, reply, accept)
        return True

    def _seen(self, site: str) -> Seen | None:
        """Return what the site's SuperNode was seen to do, if the proxy notes it."""
        notes = self.notifications
        if notes is None or site not in self._nodes:
            return None
        return Seen(*(notes.noted(site, activity) for activity in Activity))

    def _send(self, site: AskedSite, order: Order) -> None:
        holds = self._holds[site.name]
        lacks = [name for name in site.needs if name not in holds and not site.without_blobs]
        if self.registered is not None and site.name not in self._approving:
            # A site that has not approved the plan gets nobody's adapter.
            lacks = [name for name in lacks if name == order.plan]
        blobs = self._parcel(lacks)
        delivery = Delivery(order=order, blobs=blobs, wait_s=site.wait_s(self.patience))
        record = delivery.to_record()
        size = wire_bytes(record)
        patience = self.patience
        # The reply may be as large as the request; the slack doubles with each lost message.
        life = patience.wait_s + patience.slack_s * site.slack + 2 * size / SLOWEST_BYTES_S
        message = self._push(record, self._nodes[site.name], order.work.message_type, life)
        if message is None:
            site.retry_later(OFFLINE)
            return
        site.asked(message, life)
        site.bytes_down += size

    def _push(self, content: RecordDict, node: int, message_type: str, life_s: float) -> str | None:
        """Send a message; return the id that its reply comes under, or None if the node is gone."""
        message = Message(content, node, message_type, ttl=life_s)
        pushed = list(self.grid.push_messages([message]))
        if self.notifications is not None:
            self.notifications.notify(node)
        return pushed[0] or None if pushed else None

    def _parcel(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return the first of these blobs, and more while they are small; others are asked for."""
        blobs: dict[str, bytes] = {}
        for name in names:
            if sum(map(len, blobs.values())) >= PARCEL_BYTES:
                break
            blobs[name] = self.blob(name)
        return blobs

    def _on_message(
        self, site: AskedSite, message: Message, accept: Accept
    ) -> Iterator[Done | Refused]:
        if message.has_error():
            why = f"no answer (Flower's error code {message.error.code})"
            if TOO_LARGE in (message.error.reason or ""):
                why = f"it sent a message that is {TOO_LARGE}"
            if self.patience.appear_s is None:
                site.retry_later(why)
            else:
                yield from self._refuse(site, why)
            return
        try:
            reply = read_reply(message.content)
            site.bytes_up += wire_bytes(message.content)
        except SiteFailed as error:
            yield from self._refuse(site, str(error))
            return
        if reply.site != site.name:
            yield from self._refuse(site, f"it answered as {reply.site[:40]!r}")
            return
        yield from self._on_reply(site, reply, accept)

    def _on_reply(self, site: AskedSite, reply: Reply, accept: Accept) -> Iterator[Done | Refused]:
        holds = self._holds[site.name]
        if not isinstance(reply, Failure):
            self._approving.add(site.name)
        elif reply.reason is Reason.PLAN:
            self._approving.discard(site.name)
        match reply:
            case Lacks() | Working() if site.message is not None:
                # The reply to an earlier message: that to the latest one will say the same.
                pass
            case Lacks():
                holds.update(site.needs)
                holds.difference_update(reply.digests)
                site.resend(reply.digests)
            case Working():
                holds.update(site.needs)
                site.is_working(reply)
            case Failure():
                yield from self._refuse(site, _words(reply), final=reply.reason is Reason.QUESTIONS)
            case _:
                holds.update(site.needs)
                yield from self._on_answer(site, reply, accept)

    def _on_answer(
        self, site: AskedSite, answer: Answer, accept: Accept
    ) -> Iterator[Done | Refused]:
        fault = accept(Received(answer, site.bytes_down, site.bytes_up))
        if fault is None:
            site.done = True
            yield Done(site.name)
        else:
            yield from self._refuse(site, fault)

    def _refuse(self, site: AskedSite, why: str, *, final: bool = False) -> Iterator[Refused]:
        """Report the refusal once; ask again later, where there is patience for it."""
        why = printable(why, MOST_LETTERS)
        site.retry_later(why)
        site.done = self.patience.appear_s is not None
        if site.reported != why:
            site.reported = why
            yield Refused(site.name, why, final)

    def _waiting(self, sites: Sequence[AskedSite]) -> Waiting:
        states: dict[str, str] = {}
        offline: set[str] = set()
        for site in sites:
            states[site.name] = site.state
            if site.name not in self._nodes:
                offline.add(site.name)
                away = LEFT if site.name in self._left else OFFLINE
                missing = "connecting" if site.name in self._listed else away
                states[site.name] = self._troubles.get(site.name, missing)
        return Waiting(states, frozenset(offline))

    def _update_nodes(self, sites: Sequence[AskedSite], began: float) -> None:
        """List the connected nodes, ask new ones which site they are, and read their replies."""
        now, expected = time.monotonic(), [one.name for one in sites]
        missing = sorted(set(expected) - self._nodes.keys())
        if now - self._listed_at >= NODE_LIST_S or (missing and self.patience.appear_s is not None):
            self._listed_at = now
            self._list_nodes(now)
            self._left.look(missing, self.registered and self.registered())
        for node, query in list(self._queries.items()):
            if any(self._has_introduced(node, one, expected) for one in query.messages):
                del self._queries[node]
            elif now > query.again_at:
                self._query(node, query, now)
        if missing:
            self._check_connected(missing, now - began)

    def _check_connected(self, missing: Sequence[str], waited_s: float) -> None:
        """Check that there is patience left for sites that are not connected."""
        if self.patience.appear_s is not None and waited_s > self.patience.appear_s:
            raise SiteFailed(
                f"found no answer from the sites {', '.join(missing)} within "
                f"{self.patience.appear_s:g} s, expected them in the federation"
            )

    def _list_nodes(self, now: float) -> None:
        names = self._online()
        self._listed = frozenset(names.values())
        gone = [site for site, node in self._nodes.items() if node not in names]
        for site in gone:
            del self._nodes[site]
        for node in names:
            if node in self._met:
                # It was offline for a while; its volume is unchanged.
                self._nodes.setdefault(self._met[node], node)
            elif node not in self._queries and now >= self._query_again.get(node, 0.0):
                slack_s = self.patience.slack_s
                pause_s = slack_s if self.registered is None else min(UNANSWERED_S, slack_s)
                self._query(node, _Query((), pause_s, now), now)

    def _query(self, node: int, query: _Query, now: float) -> None:
        """Ask a node which site it is, for the first time or once more."""
        self._queries.pop(node, None)
        message = self._push(RecordDict(), node, "query", self.patience.slack_s)
        if message is not None:
            messages, pause_s = (*query.messages, message)[-3:], query.pause_s
            longer_s = min(2 * pause_s, self.patience.slack_s)
            self._queries[node] = _Query(messages, longer_s, now + pause_s + RETRY_S)

    def _online(self) -> dict[int, str | None]:
        """Return the nodes that may be sites here, and the names they are registered under."""
        if self.registered is None:
            return dict.fromkeys(self.grid.get_node_ids())
        names = self.registered()
        return {info.node_id: info.name for info in self.grid.get_nodes() if info.name in names}

    def _has_introduced(self, node: int, message: str, expected: Sequence[str]) -> bool:
        """Return whether a node's reply to which site it is has come, and record it if so."""
        try:
            reply = _pull(self.grid, message)
            if reply is None:
                return False
            self._query_again[node] = time.monotonic() + RETRY_S
            presence = None if reply.has_error() else Presence.from_record(reply.content)
        except SiteFailed:
            self._query_again[node] = time.monotonic() + RETRY_S
            name = self._online().get(node)
            if name is not None:
                self._troubles[name] = "it can't say who it is; its own log says why"
            return True
        if presence is not None:
            self._introduce(node, presence, expected)
        return True

    def _introduce(self, node: int, presence: Presence, expected: Sequence[str]) -> None:
        """Record which site a node says that it is, unless it can't be that."""
        site, names = presence.site, self._online()
        if self.registered is not None and names.get(node) != site:
            # A node that has left by now may have said another site's name.
            if (registered_as := names.get(node)) is not None:
                self._troubles[registered_as] = printable(
                    f"its site file says that it is {site[:40]!r}"
                )
            return
        if presence.code != code_digest():
            self._query_again[node] = time.monotonic() + UPGRADE_S
            self._other_code(presence, site in expected)
            return
        if self._nodes.get(site, node) != node:
            # The old node of a site with a new key stays for a while; then this one is asked again.
            if self.patience.appear_s is not None:
                raise SiteFailed(f"two nodes say that they are the site {site!r}")
            return
        self._nodes[site], self._met[node] = node, site
        self._holds[site] = set(presence.holds)
        self._troubles.pop(site, None)

    def _other_code(self, presence: Presence, expected: bool) -> None:
        text = printable(
            f"site {presence.site} {OTHER_CODE} {presence.code}, the coordinator {code_digest()}; "
            "expected the same on both sides"
        )
        self._troubles[presence.site] = text
        if expected and self.patience.appear_s is not None:
            raise SiteFailed(text)


def _pull(grid: Grid, name: str) -> Message | None:
    """Return the reply to the message of this id, if it has come.

    Raises:
        SiteFailed: what the site sent is no message, as Flower finds when it decodes it here.
    """
    try:
        return next(iter(grid.pull_messages([name])), None)
    except _MALFORMED as error:
        raise SiteFailed(f"found a message that can't be read ({type(error).__name__})") from None


def _words(failure: Failure) -> str:
    where = f"the site's own log has the text under {failure.reference}"
    return f"{failure.reason or failure.error} ({where})"
