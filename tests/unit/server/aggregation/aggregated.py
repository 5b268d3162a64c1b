"""What the merge of a round gives, read back as values: exact, for it travels in 32 bits."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.adapter import Adapter, AdapterSource, from_bytes
from common.plan_fields import Precision
from common.rules.interface import Rule
from server.aggregation.aggregate import merge
from server.aggregation.round import SiteUpdate


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The round's adapter, and the rule's error (`Merged.error`)."""

    adapter: Adapter
    error: float


def aggregate(
    rule: Rule, updates: Sequence[SiteUpdate], previous: AdapterSource | None, rank: int
) -> Aggregate:
    """Arguments and errors as in `merge`."""
    merged = merge(rule, updates, previous, rank, Precision.FP32)
    return Aggregate(from_bytes(merged.blob, "the aggregate"), merged.error)
