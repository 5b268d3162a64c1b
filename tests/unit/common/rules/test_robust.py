"""What the robust rules promise: sites that send anything at all don't move the result far."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from common.adapter import Pair
from common.array_reader import in_memory
from common.errors import AggregationError, PlanError
from common.linear_algebra.layer_factors import Factors, SiteFactors
from common.plan.file import parse_plan
from common.rules.interface import Layer
from common.rules.krum import chosen
from common.rules.registry import rules
from common.tensors import Array
from tests.unit.small_round import document

RANK, INPUTS, OUTPUTS = 2, 6, 4
A = np.linalg.qr(np.random.default_rng(0).standard_normal((INPUTS, RANK)))[0].T


def layer(all_b: list[Array], liars: int) -> Layer:
    sites = tuple(
        SiteFactors(
            f"s{place}",
            1 / len(all_b),
            2.0,
            Factors(in_memory(A.astype(np.float32)), in_memory(b.astype(np.float32))),
        )
        for place, b in enumerate(all_b)
    )
    return Layer("q", sites, None, RANK, 2.0, liars)


def merged(name: str, all_b: list[Array], liars: int) -> Pair:
    return rules()[name].merge(layer(all_b, liars)).pair


@pytest.mark.parametrize(("name", "sites", "liars"), [("trimmed_mean", 5, 1), ("median", 6, 2)])
def test_every_number_is_that_of_the_sorted_ones(name: str, sites: int, liars: int):
    random = np.random.default_rng(1)
    all_b = [random.standard_normal((OUTPUTS, RANK)).astype(np.float32) for _ in range(sites)]
    found = merged(name, all_b, liars)
    np.testing.assert_array_equal(found.a, A.astype(np.float32))
    for place in np.ndindex(OUTPUTS, RANK):
        values = sorted(float(b[place]) for b in all_b)
        kept = values[liars : sites - liars] if name == "trimmed_mean" else values[2:4]
        assert found.b[place] == pytest.approx(sum(kept) / len(kept), rel=1e-6)
    # The order of the sites does not change a bit.
    np.testing.assert_array_equal(merged(name, all_b[::-1], liars).b, found.b)


@pytest.mark.parametrize("name", ["trimmed_mean", "median"])
def test_whatever_liars_send_numbers_stay_within_the_honest_ones(name: str):
    random = np.random.default_rng(2)
    honest = [random.standard_normal((OUTPUTS, RANK)) for _ in range(3)]
    low, high = np.min(honest, axis=0), np.max(honest, axis=0)
    for lies in combinations([np.full((OUTPUTS, RANK), 1e9), -99 * honest[0], 0 * honest[0]], 2):
        b = merged(name, [*honest, *lies], 2).b
        assert ((b >= low.astype(np.float32)) & (b <= high.astype(np.float32))).all()
    # A weighted mean goes where they want.
    plain = merged("frozen_a", [*honest, np.full((OUTPUTS, RANK), 1e9)], 0).b
    assert (plain > high).all()


@pytest.mark.parametrize("name", ["trimmed_mean", "median"])
def test_a_round_of_too_few_sites_is_refused(name: str):
    said = "found the updates of 2 sites, expected at least 3, of which 1 may lie"
    with pytest.raises(AggregationError, match=said):
        merged(name, [np.zeros((OUTPUTS, RANK))] * 2, 1)


@pytest.mark.parametrize("seed", range(20))
def test_krum_chooses_those_with_the_smallest_sums_of_distances(seed: int):
    random = np.random.default_rng(seed)
    points = np.concatenate([random.standard_normal((5, 8)), 20 + random.standard_normal((2, 8))])
    distances = ((points[:, None] - points) ** 2).sum(axis=2)
    # n = 7, f = 2: the 3 nearest others count, and 3 are chosen.
    scores = [float(np.sort(np.delete(row, k))[:3].sum()) for k, row in enumerate(distances)]
    expected = sorted(sorted(range(7), key=lambda place: scores[place])[:3])
    assert list(chosen(distances, 2)) == expected
    assert max(expected) < 5
    # Liars with equal updates are near to each other alone, and too few.
    together = np.concatenate([points[:5], np.full((2, 8), 20.0)])
    found = chosen(((together[:, None] - together) ** 2).sum(axis=2), 2)
    assert max(found) < 5


@pytest.mark.parametrize(
    ("rule", "sites", "quorum", "said"),
    [
        ("median", 2, None, "sites: found 2 with the rule 'median', expected at least 3"),
        ("trimmed_mean", 4, 2, "quorum: found 2 with the rule 'trimmed_mean', expected at least 3"),
        ("krum", 4, None, "sites: found 4 with the rule 'krum', expected at least 5"),
        ("median", 3, None, None),
        ("krum", 6, 5, None),
    ],
)
def test_a_plan_with_too_few_sites_for_its_rule_is_refused(
    rule: str, sites: int, quorum: int | None, said: str | None
):
    names = [f"s{number}" for number in range(sites)]
    fields = {**document(sites=names, quorum=quorum), "aggregation": rule}
    if said is None:
        plan = parse_plan(fields, "p")
        assert plan.rule.liars == 1
        assert plan.rule == replace(rules()[rule], liars=1)
        return
    with pytest.raises(PlanError) as caught:
        parse_plan(fields, "p")
    assert str(caught.value) == (
        f"p: stage 1 'one', {said}: with fewer it does not withstand 1 that lie (robustness.liars)"
    )


@pytest.mark.parametrize(("name", "sites", "liars"), [("median", 5, 2), ("krum", 7, 2)])
def test_a_robust_rule_says_what_it_promises(name: str, sites: int, liars: int):
    robust = rules()[name].robust
    assert robust is not None
    assert robust.promise(sites, liars).startswith(f"whatever {liars} of {sites} sites send, ")
    # 2 f + 1, and 2 f + 3 for Krum.
    assert robust.least_sites(liars) == sites
