"""The sites as a function: orders go out, answers come in. The only file that knows Flower's Grid.

We drive the Grid ourselves: a stage is not a round, and Flower's own loop has neither a
bank nor a journal (docs/adr/0002-own-loop.md).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.errors import SiteFailed
from common.exchange import Failure, Order, Presence, read_answer, wire_bytes
from common.identity import code_digest
from server.accept import Received, Refused

#: Flower drops a message after 12 h by default; a stage on real hardware may take longer.
TIME_TO_LIVE_S = 14 * 24 * 3600.0
POLL_S = 0.1
#: How long a run waits for its sites to appear.
PATIENCE_S = 600.0
#: Pause before a node is asked again that answered with an error.
AGAIN_S = 5.0


@dataclass(slots=True)
class Network:
    """The sites that are there, and what each of them is known to hold.

    Attributes:
        nodes: Flower's node id of each site.
        holds: digests of the releases that each site has on its volume.
        release: the adapter of a release, by its digest.
    """

    grid: Grid
    nodes: dict[str, int]
    holds: dict[str, set[str]]
    release: Callable[[str], bytes]

    def ask(self, order: Order, sites: Sequence[str]) -> Iterator[Received | Refused]:
        """Send the order to every site and give each answer as it comes.

        Raises:
            SiteFailed: a site is not in the federation.
        """
        missing = sorted(set(sites) - self.nodes.keys())
        if missing:
            raise SiteFailed(
                f"stage {order.stage + 1} needs the sites {', '.join(sites)}; "
                f"found no {', '.join(missing)} in the federation"
            )
        sent: dict[str, tuple[str, int]] = {}
        for site in sites:
            record = self._for_site(order, site).to_record()
            message_id = _push(self.grid, record, self.nodes[site], order.work)
            sent[message_id] = (site, wire_bytes(record))
        for message_id, reply in _replies(self.grid, set(sent)):
            site, bytes_down = sent[message_id]
            yield self._received(site, order, reply, bytes_down)

    def _for_site(self, order: Order, site: str) -> Order:
        lacks = {ref.sha256 for ref in order.releases} - self.holds[site]
        return replace(order, carried={digest: self.release(digest) for digest in sorted(lacks)})

    def _received(self, site: str, order: Order, reply: Message, down: int) -> Received | Refused:
        if reply.has_error():
            return Refused(site, f"no answer (Flower's error code {reply.error.code})")
        try:
            answer = read_answer(reply.content)
        except SiteFailed as error:
            return Refused(site, str(error))
        if isinstance(answer, Failure):
            why = f"{answer.error} (the site's own log has the text under {answer.reference})"
            return Refused(site, why)
        if answer.site != site:
            return Refused(site, f"it answered as {answer.site!r}")
        self.holds[site] |= {ref.sha256 for ref in order.releases}
        return Received(answer, down, wire_bytes(reply.content))


def meet(
    grid: Grid,
    expected: Sequence[str],
    release: Callable[[str], bytes],
    patience_s: float = PATIENCE_S,
) -> Network:
    """Ask every node who it is, until all `expected` sites have answered.

    Raises:
        SiteFailed: a site has not answered in time, runs other code than the coordinator, or
            is claimed by two nodes.
    """
    network = Network(grid, {}, {}, release)
    deadline = time.monotonic() + patience_s
    met: set[int] = set()
    asked: dict[str, int] = {}
    while missing := sorted(set(expected) - network.nodes.keys()):
        if time.monotonic() > deadline:
            raise SiteFailed(
                f"found no answer from the sites {', '.join(missing)} within {patience_s:g} s, "
                f"expected {', '.join(expected)} in the federation"
            )
        for node in sorted(set(grid.get_node_ids()) - met - set(asked.values())):
            asked[_push(grid, RecordDict(), node, "query")] = node
        failed = False
        for reply in list(grid.pull_messages(set(asked))) if asked else ():
            node = asked.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                failed = True
            else:
                met.add(node)
                presence = Presence.from_record(reply.content)
                if presence.site in expected:
                    _welcome(network, node, presence)
        time.sleep(AGAIN_S if failed else POLL_S)
    return network


def _welcome(network: Network, node: int, presence: Presence) -> None:
    """The site at this node belongs to the network."""
    site = presence.site
    if site in network.nodes:
        raise SiteFailed(f"two nodes say that they are the site {site!r}")
    if presence.code != code_digest():
        raise SiteFailed(
            f"site {site} runs code {presence.code}, the coordinator {code_digest()}; "
            "expected the same on both sides"
        )
    network.nodes[site] = node
    network.holds[site] = set(presence.holds)


def _push(grid: Grid, content: RecordDict, node: int, message_type: str) -> str:
    message = Message(content, node, message_type, ttl=TIME_TO_LIVE_S)
    (message_id,) = grid.push_messages([message])
    return message_id


def _replies(grid: Grid, waiting: set[str]) -> Iterator[tuple[str, Message]]:
    """(id of the question, reply) as they come; a reply may be an error of Flower's."""
    while waiting:
        replies = list(grid.pull_messages(waiting))
        for reply in replies:
            # A failure names the server as its source, so the question's id is the key.
            message_id = reply.metadata.reply_to_message_id
            waiting.discard(message_id)
            yield message_id, reply
        if waiting and not replies:
            time.sleep(POLL_S)
