"""Orders carried out: what a site's update or scores are."""

from dataclasses import replace

from client.site.config import Site
from common.adapter import Adapter, from_bytes
from common.exchange import Answer, Order, Scores, Update
from common.process.progress import ProgressEvent
from tests.flow.small_site import (
    do,
)


def ignore(_: ProgressEvent) -> None:
    """Nobody listens."""


def trained(order: Order, site: Site) -> Update:
    update = do(order, site, ignore, None)
    assert isinstance(update, Update)
    return update


def scored(order: Order, site: Site) -> Scores:
    scores = do(order, site, ignore, None)
    assert isinstance(scores, Scores)
    return scores


def same(one: Answer, other: Answer) -> bool:
    """Whether two updates differ in nothing but what they cost."""
    assert isinstance(one, Update) and isinstance(other, Update)
    return replace(one, seconds=0.0, peak_memory=0) == replace(other, seconds=0.0, peak_memory=0)


def adapter_of(update: Update) -> Adapter:
    return from_bytes(update.adapter, "test")
