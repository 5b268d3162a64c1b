"""What a site lacks is sent to it, release by release, and not without end."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import Context, Message
from flwr.serverapp import Grid

from common.exchange import (
    Delivery,
    Lacks,
    Order,
    ReleaseRef,
)
from common.identity import sha256
from server import asked_site, network
from server.network import Network
from server.run.accept import Done, Waiting
from tests.unit.server.scripted_sites import (
    ADAPTER,
    BLOBS,
    ORDER,
    PATIENT,
    Site,
    in_federation,
    update,
)

pytestmark = pytest.mark.usefixtures("without_pauses")


def releases(count: int, size: int) -> tuple[Order, dict[str, bytes]]:
    blobs = [bytes([number]) * size for number in range(count)]
    refs = tuple(ReleaseRef(number, sha256(blob)) for number, blob in enumerate(blobs))
    return replace(ORDER, releases=refs), BLOBS | {sha256(blob): blob for blob in blobs}


class Keeps(Site):
    """A site that keeps what it gets, as long as it is not told to `forget`, and asks for more."""

    def __init__(self, forget: bool = False) -> None:
        super().__init__()
        self.forget, self.kept = forget, set[str]()

    def _train(self, message: Message, context: Context) -> Message:
        delivery = Delivery.from_record(message.content)
        self.got.append(delivery)
        if not self.forget:
            self.kept |= set(delivery.blobs)
        lacks = tuple(name for name in delivery.order.needs if name not in self.kept)
        digest = delivery.order.digest
        reply = Lacks(order=digest, site="a", digests=lacks) if lacks else update("a")
        return Message(reply.to_record(), reply_to=message)


def asked_of(site: Site, order: Order, blobs: Mapping[str, bytes], most: int) -> list[Any]:
    found: list[Any] = []

    def body(grid: Grid) -> None:
        asked = Network(grid, blobs.__getitem__, PATIENT, registered=lambda: ["a"])
        events = asked.ask(order, ["a"], lambda _received: None)
        found.extend(event for _, event in zip(range(most), events, strict=False))

    in_federation(site.app, ["a"], body)
    return [event for event in found if not isinstance(event, Waiting)]


def test_a_long_bank_goes_release_by_release_to_a_site_that_joins(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(network, "PARCEL_BYTES", 1000)
    monkeypatch.setattr(asked_site, "LONGEST_PAUSE_S", 1e9)
    monkeypatch.setattr(asked_site, "RETRY_S", 1e9)
    site = Keeps()
    order, blobs = releases(12, 1000)
    assert asked_of(site, order, blobs, 10_000) == [Done("a")]
    sizes = [sum(map(len, delivery.blobs.values())) for delivery in site.got]
    # None is sent twice, and none is waited for: what is lacking gets less each time.
    assert sum(sizes) == sum(map(len, blobs.values()))
    assert max(sizes) < 2000 + len(ADAPTER)


def test_a_site_that_keeps_nothing_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(asked_site, "LONGEST_PAUSE_S", 1e9)
    site = Keeps(forget=True)
    monkeypatch.setattr(asked_site, "RETRY_S", 1e9)
    assert asked_of(site, ORDER, BLOBS, 300) == []
    assert 2 <= len(site.got) <= asked_site.MOST_RESENDS + 1
