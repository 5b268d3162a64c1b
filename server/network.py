"""The sites as a function: orders go out, answers come in. The only file that knows Flower's Grid.

Every message is short: a site that is not done says so and is asked again, so whatever is
lost on the way is mended by asking again. We drive the Grid ourselves: a stage is not a
round, and Flower's own loop has neither a bank nor a journal (docs/adr/0002-own-loop.md).
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from common.errors import SiteFailed
from common.exchange import (
    Answer,
    Delivery,
    Failure,
    Lacks,
    Order,
    Presence,
    Reply,
    Working,
    read_reply,
)
from common.identity import code_digest
from common.printable import printable
from common.wire import wire_bytes
from server.coordinator.notify import Notifications
from server.run.accept import Accept, Done, Received, Refused, Waiting

#: Pause before a site is asked again that has not answered, or in vain; it doubles up to LONGEST.
AGAIN_S = 5.0
LONGEST_PAUSE_S = 600.0
#: A site that so often lacks no less than before is left alone for a while.
MOST_LACKS = 3
#: No further blob goes into a message that has so many bytes: a bank goes release by release,
#: so that neither memory nor a loss costs more than one of them.
PARCEL_BYTES = 64 * 2**20
#: Pause before a site with other code than ours is asked whether it was upgraded.
UPGRADE_S = 60.0
#: How often Flower is asked which nodes there are.
LOOK_S = 2.0
#: The slowest line that a message is given the time for.
SLOWEST_BYTES_S = 20_000.0
#: flwr 1.41: what putting together a message comes to that a site made up. What the connection
#: to the SuperLink comes to (httpx) is none of them: that ends this process, and Flower starts
#: another.
_MADE_UP = (
    ValueError, LookupError, TypeError, AttributeError, AssertionError, OverflowError,
    RecursionError, MemoryError, DecodeError,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long sites are waited for.

    Attributes:
        wait_s: how long a site may hold an order before it says that it is still working.
        slack_s: how long beyond that a message may be away before it counts as lost.
        poll_s: pause between two looks for answers.
        appear_s: a site that has not appeared by then is given up; None waits for ever, and
            then a site that failed is asked again, too.
    """

    wait_s: float
    slack_s: float
    poll_s: float
    appear_s: float | None


#: Of a simulation, whose sites are all there and fail for good.
SIMULATED = Patience(wait_s=0.0, slack_s=14 * 24 * 3600.0, poll_s=0.1, appear_s=600.0)


@dataclass(slots=True)
class _Talk:
    """What is going on with one site about one order."""

    site: str
    state: str = "not asked yet"
    message: str | None = None
    lost_at: float = 0.0
    rest_until: float = 0.0
    pauses: int = 0
    slack: float = 1.0
    needs: tuple[str, ...] = ()
    bare: bool = False
    lacked: int = 0
    fewest: int | None = None
    told: str = ""
    down: int = 0
    up: int = 0
    done: bool = False

    def rest(self, why: str) -> None:
        """Ask again after a while, and after a longer one the next time."""
        # What was sent may well have arrived: it is not sent again before the site says so.
        self.state, self.message, self.bare = why, None, True
        self.rest_until = time.monotonic() + min(AGAIN_S * 2**self.pauses, LONGEST_PAUSE_S)
        self.pauses = min(self.pauses + 1, 32)

    def at_once(self, why: str) -> None:
        """Ask again now: the site is well."""
        self.state, self.message, self.pauses = why, None, 0

    def lacks(self, digests: Collection[str]) -> None:
        """Send at once what is lacking, as long as that gets less."""
        missing = len(set(digests) & set(self.needs))
        if self.fewest is None or missing < self.fewest:
            self.fewest, self.lacked = missing, 0
        self.lacked += 1
        (self.at_once if self.lacked <= MOST_LACKS else self.rest)("lacks what it needs")
        self.bare = False


@dataclass(slots=True)
class Network:
    """The sites that are there, and what each of them is known to hold.

    Attributes:
        blob: what an order needs, by its digest.
        registered: gives the names that nodes may have here, which may become more; None in
            a simulation, where a node says itself which site it is.
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
    _queries: dict[int, tuple[str, float]] = field(default_factory=dict[int, tuple[str, float]])
    _query_again: dict[int, float] = field(default_factory=dict[int, float])
    _met: dict[int, str] = field(default_factory=dict[int, str])
    _looked: float = 0.0

    def ask(
        self, order: Order, sites: Sequence[str], accept: Accept
    ) -> Iterator[Done | Refused | Waiting]:
        """Ask each site until `accept` takes its answer; in between, tell who is waited for.

        Sites are asked in turns and answer when they can. Without end where a site never
        answers, unless the patience has one: then each site ends with Done or Refused.

        Raises:
            SiteFailed: where patience ends, a site is claimed by two nodes, has not appeared
                or runs other code.
        """
        began = time.monotonic()
        talks = {site: _Talk(site, needs=order.needs) for site in sites}
        while waiting := [talk for talk in talks.values() if not talk.done]:
            if self.notifications is not None:
                self.notifications.heartbeat()
            self._look(waiting, began)
            moved = False
            for talk in waiting:
                for event in self._turn(talk, order, accept):
                    moved = True
                    yield event
            if not moved:
                yield self._waiting(waiting)
                time.sleep(self.patience.poll_s)

    def _turn(self, talk: _Talk, order: Order, accept: Accept) -> Iterator[Done | Refused]:
        """Ask the site if it is its turn; read what has come from it."""
        now = time.monotonic()
        if talk.message is None:
            if talk.site in self._nodes and now >= talk.rest_until:
                self._send(talk, order)
            return
        try:
            reply = _pulled(self.grid, talk.message)
        except SiteFailed as error:
            yield from self._gave_nothing(talk, str(error))
            return
        if reply is not None:
            yield from self._heard(talk, reply, accept)
            return
        if now > talk.lost_at:
            talk.slack *= 2
            talk.rest("the message was lost")

    def _send(self, talk: _Talk, order: Order) -> None:
        holds = self._holds[talk.site]
        lacks = [name for name in talk.needs if name not in holds and not talk.bare]
        blobs = self._parcel(lacks)
        delivery = Delivery(order=order, blobs=blobs, wait_s=self.patience.wait_s)
        record = delivery.to_record()
        size = wire_bytes(record)
        patience = self.patience
        # The answer may be as large as what was sent; twice as much time after each loss.
        life = patience.wait_s + patience.slack_s * talk.slack + 2 * size / SLOWEST_BYTES_S
        talk.message = self._push(record, self._nodes[talk.site], order.work, life)
        if talk.message is None:
            talk.rest("offline")
            return
        talk.state, talk.lost_at = "asked", time.monotonic() + life + AGAIN_S
        talk.down += size

    def _push(self, content: RecordDict, node: int, message_type: str, life_s: float) -> str | None:
        """The id under which the reply will come; None where the node is not there any more."""
        message = Message(content, node, message_type, ttl=life_s)
        pushed = list(self.grid.push_messages([message]))
        if self.notifications is not None:
            self.notifications.notify(node)
        return pushed[0] or None if pushed else None

    def _parcel(self, names: Sequence[str]) -> dict[str, bytes]:
        """The first of these blobs, and more while they are small. The site asks for the rest."""
        blobs: dict[str, bytes] = {}
        for name in names:
            if sum(map(len, blobs.values())) >= PARCEL_BYTES:
                break
            blobs[name] = self.blob(name)
        return blobs

    def _heard(self, talk: _Talk, message: Message, accept: Accept) -> Iterator[Done | Refused]:
        if message.has_error():
            why = f"no answer (Flower's error code {message.error.code})"
            if self.patience.appear_s is None:
                talk.rest(why)
            else:
                yield from self._gave_nothing(talk, why)
            return
        try:
            reply = read_reply(message.content)
            talk.up += wire_bytes(message.content)
        except SiteFailed as error:
            yield from self._gave_nothing(talk, str(error))
            return
        if reply.site != talk.site:
            yield from self._gave_nothing(talk, f"it answered as {reply.site!r}")
            return
        yield from self._replied(talk, reply, accept)

    def _replied(self, talk: _Talk, reply: Reply, accept: Accept) -> Iterator[Done | Refused]:
        holds = self._holds[talk.site]
        match reply:
            case Lacks():
                holds.update(talk.needs)
                holds.difference_update(reply.digests)
                talk.lacks(reply.digests)
            case Working():
                holds.update(talk.needs)
                talk.at_once(f"working {reply.step}/{reply.steps}")
            case Failure():
                yield from self._gave_nothing(talk, _words(reply))
            case _:
                holds.update(talk.needs)
                yield from self._answered(talk, reply, accept)

    def _answered(self, talk: _Talk, answer: Answer, accept: Accept) -> Iterator[Done | Refused]:
        fault = accept(Received(answer, talk.down, talk.up))
        if fault is None:
            talk.done = True
            yield Done(talk.site)
        else:
            yield from self._gave_nothing(talk, fault)

    def _gave_nothing(self, talk: _Talk, why: str) -> Iterator[Refused]:
        """Say so, once; and ask again later, where there is patience for it."""
        why = printable(why)
        talk.rest(why)
        talk.done = self.patience.appear_s is not None
        if talk.told != why:
            talk.told = why
            yield Refused(talk.site, why)

    def _waiting(self, talks: Sequence[_Talk]) -> Waiting:
        states: dict[str, str] = {}
        offline: set[str] = set()
        for talk in talks:
            states[talk.site] = talk.state
            if talk.site not in self._nodes:
                offline.add(talk.site)
                states[talk.site] = self._troubles.get(talk.site, "offline")
        return Waiting(states, frozenset(offline))

    def _look(self, talks: Sequence[_Talk], began: float) -> None:
        """Know which nodes are there; ask new ones who they are, and read what they say."""
        now, expected = time.monotonic(), [talk.site for talk in talks]
        missing = sorted(set(expected) - self._nodes.keys())
        if now - self._looked >= LOOK_S or (missing and self.patience.appear_s is not None):
            self._looked = now
            self._list(now)
        for node, (message, lost_at) in list(self._queries.items()):
            if self._presented(node, message, expected) or now > lost_at:
                del self._queries[node]
        if missing and self.patience.appear_s is not None:
            self._check_appeared(missing, now - began)

    def _check_appeared(self, missing: Sequence[str], waited_s: float) -> None:
        if self.patience.appear_s is not None and waited_s > self.patience.appear_s:
            raise SiteFailed(
                f"found no answer from the sites {', '.join(missing)} within "
                f"{self.patience.appear_s:g} s, expected them in the federation"
            )

    def _list(self, now: float) -> None:
        names = self._online()
        gone = [site for site, node in self._nodes.items() if node not in names]
        for site in gone:
            del self._nodes[site]
        for node in names:
            if node in self._met:
                # It was away for a while; its volume is as it was.
                self._nodes.setdefault(self._met[node], node)
            elif node not in self._queries and now >= self._query_again.get(node, 0.0):
                message = self._push(RecordDict(), node, "query", self.patience.slack_s)
                if message is not None:
                    self._queries[node] = (message, now + self.patience.slack_s + AGAIN_S)

    def _online(self) -> dict[int, str | None]:
        """The nodes that may be sites here, and the names they are registered under."""
        if self.registered is None:
            return dict.fromkeys(self.grid.get_node_ids())
        names = self.registered()
        return {info.node_id: info.name for info in self.grid.get_nodes() if info.name in names}

    def _presented(self, node: int, message: str, expected: Sequence[str]) -> bool:
        """Whether the node's answer to who it is has come; then it is taken in."""
        try:
            reply = _pulled(self.grid, message)
            if reply is None:
                return False
            self._query_again[node] = time.monotonic() + AGAIN_S
            presence = None if reply.has_error() else Presence.from_record(reply.content)
        except SiteFailed:
            self._query_again[node] = time.monotonic() + AGAIN_S
            name = self._online().get(node)
            if name is not None:
                self._troubles[name] = "it can't say who it is; its own log says why"
            return True
        if presence is not None:
            self._introduced(node, presence, expected)
        return True

    def _introduced(self, node: int, presence: Presence, expected: Sequence[str]) -> None:
        """The node said which site it is; it is met, unless it can't be that."""
        site, names = presence.site, self._online()
        if self.registered is not None and names.get(node) != site:
            # Nobody's word counts that has left by now: it might be another site's name.
            if (registered_as := names.get(node)) is not None:
                self._troubles[registered_as] = printable(f"its site file says that it is {site!r}")
            return
        if presence.code != code_digest():
            self._query_again[node] = time.monotonic() + UPGRADE_S
            self._other_code(presence, site in expected)
            return
        if self._nodes.get(site, node) != node:
            self._second_node(site)
            return
        self._nodes[site], self._met[node] = node, site
        self._holds[site] = set(presence.holds)
        self._troubles.pop(site, None)

    def _second_node(self, site: str) -> None:
        # Of a site with a new key the old node is there for a while; then it is asked again.
        if self.patience.appear_s is not None:
            raise SiteFailed(f"two nodes say that they are the site {site!r}")

    def _other_code(self, presence: Presence, expected: bool) -> None:
        text = printable(
            f"site {presence.site} runs code {presence.code}, the coordinator {code_digest()}; "
            "expected the same on both sides"
        )
        self._troubles[presence.site] = text
        if expected and self.patience.appear_s is not None:
            raise SiteFailed(text)


def _pulled(grid: Grid, name: str) -> Message | None:
    """The reply to the message of this id, if it has come.

    Raises:
        SiteFailed: what the site sent is no message; it is Flower that finds that, here.
    """
    try:
        return next(iter(grid.pull_messages([name])), None)
    except _MADE_UP as error:
        raise SiteFailed(f"found a message that can't be read ({type(error).__name__})") from None


def _words(failure: Failure) -> str:
    where = f"the site's own log has the text under {failure.reference}"
    return f"{failure.reason or failure.error} ({where})"
