"""Sites whose replies are a script, and what asking them gives."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from common.adapter import Adapter, Pair, to_bytes
from common.code_digest import code_digest
from common.exchange import (
    Delivery,
    Order,
    Presence,
    Update,
)
from common.identity import sha256
from common.work import Work
from server.asked_site import Patience
from server.network import Network
from server.run.accept import Received, Waiting
from simulation.inprocess import run_in_process

PLAN = b"{}"
ADAPTER = to_bytes(Adapter({"x": Pair(np.ones((1, 2), "f4"), np.ones((2, 1), "f4"))}, 1.0))
BLOBS = {sha256(PLAN): PLAN, sha256(ADAPTER): ADAPTER}
ORDER = Order(
    work=Work.TRAIN, plan=sha256(PLAN), stage=0, round=2, releases=(), active=(),
    adapter=sha256(ADAPTER), code="c",
)  # fmt: skip
HASTY = Patience(wait_s=0.0, slack_s=100.0, poll_s=0.001, appear_s=0.05)
PATIENT = Patience(wait_s=7.0, slack_s=100.0, poll_s=0.001, appear_s=None)


def in_federation(client: ClientApp, nodes: Sequence[str], body: Callable[[Grid], None]) -> None:
    server = ServerApp()

    @server.main()
    def main(grid: Grid, _context: Context) -> None:  # pyright: ignore[reportUnusedFunction]
        body(grid)

    run_in_process(server, client, [{"name": name} for name in nodes], {})


def present(name: str) -> Presence:
    return Presence(site=name, code=code_digest(), holds=())


class Site:
    """Sites whose replies are a script; each message that they get is kept."""

    def __init__(self, *script: Any, says: Any = None) -> None:
        self.script = iter(script)
        self.got: list[Delivery] = []
        self.says: Callable[[str], Any] = says or present
        self.app = ClientApp()
        self.app.query()(self._introduce)
        self.app.train()(self._train)

    def _introduce(self, message: Message, context: Context) -> Message:
        said = self.says(str(context.node_config["name"]))
        if isinstance(said, Error):
            return Message(said, reply_to=message)
        record = said if isinstance(said, RecordDict) else said.to_record()
        return Message(record, reply_to=message)

    def _train(self, message: Message, context: Context) -> Message:
        self.got.append(Delivery.from_record(message.content))
        reply = next(self.script, update(str(context.node_config["name"])))
        if isinstance(reply, Error):
            return Message(reply, reply_to=message)
        record = reply if isinstance(reply, RecordDict) else reply.to_record()
        return Message(record, reply_to=message)


def update(site: str) -> Update:
    return Update(
        order=ORDER.digest, site=site, examples=1, steps=1, loss=0.5, regularizer=0.0,
        adapter=ADAPTER,
    )  # fmt: skip


def events(
    site: Site,
    nodes: Sequence[str],
    expected: Sequence[str],
    patience: Patience = HASTY,
    most: int = 10_000,
    **fields: Any,
) -> tuple[list[Any], list[Received]]:
    """What asking gives, without the waiting; and what was offered for acceptance."""
    found: list[Any] = []
    offered: list[Received] = []

    def accept(received: Received) -> str | None:
        offered.append(received)
        return None

    def body(grid: Grid) -> None:
        asked = Network(grid, BLOBS.__getitem__, patience, **fields).ask(ORDER, expected, accept)
        for _, event in zip(range(most), asked, strict=False):
            found.append(event)

    in_federation(site.app, nodes, body)
    return [event for event in found if not isinstance(event, Waiting)], offered
