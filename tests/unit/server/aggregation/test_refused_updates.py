"""Updates that a rule refuses, each in one sentence."""

# M outputs, N inputs of a layer, R rank
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from common.adapter import Adapter, Pair
from common.errors import AggregationError
from common.rules.alternating import RULE as ALTERNATING
from common.rules.fedavg import RULE as FEDAVG
from common.rules.frozen_a import RULE as FROZEN_A
from common.rules.interface import Rule
from common.rules.svd import RULE as SVD
from common.tensors import Array
from server.aggregation.round import SiteUpdate
from tests.unit.server.aggregation.aggregated import aggregate
from tests.unit.server.aggregation.drifted_sites import fitting, loaded

Spoil = Callable[[list[SiteUpdate]], list[SiteUpdate]]


def _second(change: Callable[[Adapter], Adapter]) -> Spoil:
    def spoilt(sites: list[SiteUpdate]) -> list[SiteUpdate]:
        return [sites[0], replace(sites[1], adapter=change(loaded(sites[1].adapter)))]

    return spoilt


def _with_q(adapter: Adapter, a: Array, b: Array) -> Adapter:
    return replace(adapter, pairs={**adapter.pairs, "q": Pair(a, b)})


NAN_B = np.full((9, 3), np.nan, np.float32)
ZERO_A, WIDE_A = np.zeros((3, 12), np.float32), np.zeros((3, 13), np.float32)
ZERO_B = np.zeros((9, 3), np.float32)
Q_A = "base_model.model.q.lora_A.weight"


REFUSALS: list[tuple[Rule, Spoil, str]] = [
    (SVD, lambda _: [], "no site's update arrived, expected at least one"),
    (
        FEDAVG,
        lambda sites: [replace(site, examples=0) for site in sites],
        "no site trained on any example (sites: site0, site1)",
    ),
    (
        FEDAVG,
        lambda sites: [sites[0], replace(sites[1], examples=-2)],
        "site site1: found -2 examples, expected 0 or more",
    ),
    (
        SVD,
        _second(lambda x: replace(x, scale=0.0)),
        "site site1: found scale 0.0, expected a number above 0",
    ),
    (
        SVD,
        _second(lambda x: replace(x, scale=1e300)),
        "q: found updates too large to be merged",
    ),
    (
        SVD,
        lambda sites: [sites[0], sites[0]],
        "site site0: found two updates, expected one",
    ),
    (
        SVD,
        _second(lambda x: _with_q(x, ZERO_A, NAN_B)),
        "site site1: base_model.model.q.lora_B.weight has a value that is not finite",
    ),
    (
        # Also of a site that would not count, and is not read to be merged.
        SVD,
        lambda sites: [
            sites[0],
            replace(sites[1], examples=0, adapter=_with_q(loaded(sites[1].adapter), ZERO_A, NAN_B)),
        ],
        "site site1: base_model.model.q.lora_B.weight has a value that is not finite",
    ),
    (
        FEDAVG,
        _second(lambda x: _with_q(x, WIDE_A, ZERO_B)),
        f"site site1: {Q_A} has shape (3, 13), site site0 has (3, 12)",
    ),
    (
        SVD,
        _second(lambda x: _with_q(x, WIDE_A, ZERO_B)),
        "site site1: q has shape (9, 13), site site0 has (9, 12)",
    ),
    (
        SVD,
        _second(lambda x: replace(x, extras={})),
        "site site1 lacks extras.prompt, which site site0 has",
    ),
    (
        SVD,
        _second(lambda x: replace(x, pairs={**x.pairs, "k": x.pairs["q"]})),
        "site site1 has k, which site site0 lacks",
    ),
    (
        FEDAVG,
        _second(lambda x: replace(x, scale=1.0)),
        "site site1 has scale 1.0, site site0 has 2.0; fedavg expects equal scales",
    ),
    (
        FROZEN_A,
        _second(lambda x: _with_q(x, ZERO_A, ZERO_B)),
        "site site1: q has another A than site site0; expected one that nobody changes",
    ),
    (
        ALTERNATING,
        _second(lambda x: _with_q(x, ZERO_A, ZERO_B)),
        "q: both A and B differ between the sites site0, site1; "
        "alternating expects one of them unchanged",
    ),
]


@pytest.mark.parametrize(("rule", "spoil", "message"), REFUSALS)
def test_what_does_not_fit_is_refused_in_one_sentence(rule: Rule, spoil: Spoil, message: str):
    sites, _ = fitting(rule, 8, 2)
    with pytest.raises(AggregationError) as refusal:
        aggregate(rule, spoil(sites), None, 3)
    assert str(refusal.value) == message


def test_frozen_a_is_held_to_the_previous_a():
    sites, start = fitting(FROZEN_A, 9, 2)
    previous = _with_q(start, ZERO_A, start.pairs["q"].b)
    with pytest.raises(AggregationError, match="q has another A than the previous round"):
        aggregate(FROZEN_A, sites, previous, 3)


def test_a_rank_other_than_the_plans_is_refused_where_ranks_can_not_change():
    sites, _ = fitting(FEDAVG, 10, 2)
    with pytest.raises(AggregationError, match="site site0: found rank 3, expected 8"):
        aggregate(FEDAVG, sites, None, 8)
