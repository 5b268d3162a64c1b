"""What each aggregation rule says of itself, and that it is true."""

from dataclasses import replace

import numpy as np
import pytest

from common.adapter import Pair
from common.array_reader import in_memory, read_all
from common.linear_algebra.layer_factors import Factors, SiteFactors
from common.partial_adapter import AdapterPart
from common.rules.interface import Factor, FirstA, Layer, MaskedSums, Rule
from common.rules.registry import rules
from common.tensors import Array

every_rule = pytest.mark.parametrize("rule", rules().values(), ids=rules().keys())
INPUTS, OUTPUTS, RANK = 7, 5, 2


@pytest.mark.parametrize(
    ("name", "first_rounds"),
    [
        ("fedavg", [Factor.BOTH, Factor.BOTH, Factor.BOTH]),
        ("rotated", [Factor.BOTH, Factor.BOTH, Factor.BOTH]),
        ("svd", [Factor.BOTH, Factor.BOTH, Factor.BOTH]),
        ("frozen_a", [Factor.B, Factor.B, Factor.B]),
        ("fedsvd", [Factor.B, Factor.B, Factor.B]),
        ("fed_sb", [Factor.B, Factor.CORE, Factor.CORE]),
        ("fedsa", [Factor.BOTH, Factor.BOTH, Factor.BOTH]),
        ("alternating", [Factor.B, Factor.A, Factor.B]),
        ("trimmed_mean", [Factor.B, Factor.B, Factor.B]),
        ("median", [Factor.B, Factor.B, Factor.B]),
        ("krum", [Factor.BOTH, Factor.BOTH, Factor.BOTH]),
    ],
)
def test_a_rule_says_which_factors_are_trained_in_a_round(name: str, first_rounds: list[Factor]):
    assert [rules()[name].trained_factors(number) for number in (1, 2, 3)] == first_rounds


def test_the_frozen_factor_is_the_one_that_is_not_trained():
    assert (Factor.A.frozen, Factor.B.frozen, Factor.BOTH.frozen) == (Factor.B, Factor.A, None)
    assert Factor.CORE.frozen is None


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("svd", [AdapterPart.WHOLE, AdapterPart.WHOLE, AdapterPart.WHOLE]),
        ("fedsa", [AdapterPart.A, AdapterPart.A, AdapterPart.WHOLE]),
        ("fed_sb", [AdapterPart.WHOLE, AdapterPart.CORE, AdapterPart.CORE]),
    ],
)
def test_a_rule_says_what_of_an_adapter_travels_in_a_round(name: str, parts: list[AdapterPart]):
    assert [rules()[name].part(number, 3) for number in (1, 2, 3)] == parts


def test_only_fedsa_keeps_b_at_the_site():
    assert [rule.name for rule in rules().values() if rule.own_b] == ["fedsa"]


@every_rule
def test_one_round_alone_sends_all_of_the_adapter(rule: Rule):
    assert rule.part(1, 1) is AdapterPart.WHOLE


def test_what_freezes_a_starts_with_an_orthonormal_a():
    orthonormal = [rule.name for rule in rules().values() if rule.first_a is FirstA.ORTHONORMAL]
    assert orthonormal == ["fed_sb", "fedsvd", "frozen_a", "median", "trimmed_mean"]


def test_only_the_svd_merges_sites_of_other_starts_ranks_and_scales():
    assert [rule.name for rule in rules().values() if rule.starts_may_differ] == ["krum", "svd"]
    assert [rule.name for rule in rules().values() if rule.layouts_may_differ] == ["krum", "svd"]


def layer(trained: Factor, count: int = 3) -> Layer:
    """Sites that have trained these factors from a common start, weighted 1 to `count`."""
    random = np.random.default_rng(1)
    start_a, start_b = random.standard_normal((RANK, INPUTS)), random.standard_normal((5, RANK))

    def moved(start: Array, factor: Factor) -> Array:
        step = random.standard_normal(start.shape) if trained in (factor, Factor.BOTH) else 0.0
        return (start + step).astype(np.float32)

    weights = np.arange(1, count + 1) / np.arange(1, count + 1).sum()
    sites = tuple(
        SiteFactors(
            f"s{number}",
            float(weight),
            1.0,
            Factors(in_memory(moved(start_a, Factor.A)), in_memory(moved(start_b, Factor.B))),
        )
        for number, weight in enumerate(weights)
    )
    return Layer("q", sites, None, RANK, 1.0)


def weighted_sums(of: Layer) -> tuple[Array, Array]:
    """All that a server sees under secure aggregation: sum w A and sum w B."""
    return (
        np.tensordot(of.weights, [read_all(a) for a in of.all_a], 1),
        np.tensordot(of.weights, [read_all(b) for b in of.all_b], 1),
    )


@every_rule
@pytest.mark.parametrize("round", [1, 2])
def test_what_a_rule_says_of_masked_sums_is_true(rule: Rule, round: int):
    found = layer(rule.trained_factors(round))
    merged, (a, b) = rule.merge(found), weighted_sums(found)
    error = merged.error if not callable(merged.error) else merged.error(found)
    # A site that had sent the sums would lead to the same result.
    sums = Factors(in_memory(a), in_memory(b))
    of_sums = rule.merge(replace(found, sites=(SiteFactors("all", 1.0, 1.0, sums),))).pair
    follows = np.allclose(merged.pair.a, of_sums.a, atol=1e-6) and np.allclose(
        merged.pair.b, of_sums.b, atol=1e-6
    )
    assert follows is (rule.masked_sums is not MaskedSums.IMPOSSIBLE)
    # An error that does not follow from the sums is not 0, whatever they are.
    assert (error.discarded == 0.0) is (rule.masked_sums is MaskedSums.EXACT)


@every_rule
def test_the_error_is_that_of_the_dense_matrices(rule: Rule):
    found = layer(rule.trained_factors(1))
    merged = rule.merge(found)
    error = merged.error if not callable(merged.error) else merged.error(found)
    pairs = zip(found.all_b, found.all_a, strict=True)
    products = [read_all(b).astype(np.float64) @ read_all(a) for b, a in pairs]
    mean = np.tensordot(found.weights, products, 1)
    discarded = np.linalg.norm(mean - merged.pair.b.astype(float) @ merged.pair.a) ** 2
    assert error.discarded == pytest.approx(discarded, rel=1e-5, abs=1e-11)
    if error.discarded:
        assert error.energy == pytest.approx(np.linalg.norm(mean) ** 2, rel=1e-9)


def product(pair: Pair) -> Array:
    return pair.b.astype(float) @ pair.a


def test_fedsvd_has_the_product_of_frozen_a_in_the_basis_of_its_svd():
    found = layer(Factor.B)
    merged, held = rules()["fedsvd"].merge(found).pair, rules()["frozen_a"].merge(found).pair
    np.testing.assert_allclose(product(merged), product(held), atol=1e-6)
    np.testing.assert_allclose(merged.a @ merged.a.T, np.eye(RANK), atol=1e-6)
    # B = U S, with numpy's SVD of the dense product.
    singular = np.linalg.svd(product(held))[1][:RANK]
    np.testing.assert_allclose(merged.b.T @ merged.b, np.diag(singular**2), atol=1e-5)
    # The rows of A span what they spanned before: projecting one on the other changes nothing.
    basis = np.linalg.qr(held.a.T.astype(float))[0]
    np.testing.assert_allclose(merged.a @ basis @ basis.T, merged.a, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 1])
def test_fedsvd_keeps_every_row_of_a_orthonormal_where_b_has_a_lower_rank(rank: int):
    found = layer(Factor.B, count=1)
    b = read_all(found.all_b[0]).copy()
    b[:, rank:] = 0
    factors = Factors(found.all_a[0], in_memory(b))
    of_low_rank = replace(found, sites=(replace(found.sites[0], factors=factors),))
    merged = rules()["fedsvd"].merge(of_low_rank).pair
    np.testing.assert_allclose(merged.a @ merged.a.T, np.eye(RANK), atol=1e-6)
    np.testing.assert_allclose(product(merged), b.astype(float) @ read_all(found.all_a[0]))
    assert not merged.b[:, rank:].any()


def turned(pair: Pair, degrees: float) -> Pair:
    """The same product, in another basis."""
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    rotation = np.array([[cosine, -sine], [sine, cosine]])
    return Pair(rotation.T @ pair.a, pair.b @ rotation)


def distance(one: Pair, other: Pair) -> float:
    return float(np.square(one.a - other.a).sum() + np.square(one.b - other.b).sum())


def test_a_site_turns_its_factors_to_where_they_are_nearest_to_its_start():
    random = np.random.default_rng(3)
    start = Pair(random.standard_normal((RANK, INPUTS)), random.standard_normal((OUTPUTS, RANK)))
    drifted = Pair(start.a + random.normal(0, 0.1, start.a.shape), 0.9 * start.b)
    send = rules()["rotated"].before_sending
    assert send is not None
    sent = send(turned(drifted, 70), start)
    np.testing.assert_allclose(product(sent), product(drifted), atol=1e-6)
    # By trying every rotation, and every reflection, in steps of a quarter of a degree.
    mirrored = Pair(drifted.a * [[1], [-1]], drifted.b * [1, -1])
    tried = [
        distance(turned(pair, quarter / 4), start)
        for pair in (drifted, mirrored)
        for quarter in range(4 * 360)
    ]
    assert min(tried) - 1e-3 < distance(sent, start) <= min(tried) + 1e-6


def test_sites_in_other_bases_are_averaged_without_error_once_they_are_turned():
    random = np.random.default_rng(4)
    start = Pair(random.standard_normal((RANK, INPUTS)), random.standard_normal((OUTPUTS, RANK)))
    rule = rules()["rotated"]
    assert rule.before_sending is not None
    trained = [turned(start, degrees) for degrees in (0, 50, 170)]

    def error(pairs: list[Pair]) -> float:
        sites = [
            SiteFactors(str(i), 1 / 3, 1.0, Factors(in_memory(pair.a), in_memory(pair.b)))
            for i, pair in enumerate(pairs)
        ]
        found = Layer("q", tuple(sites), None, RANK, 1.0)
        merged = rule.merge(found)
        assert callable(merged.error)
        return merged.error(found).discarded

    assert error(trained) > 1
    assert error([rule.before_sending(pair, start) for pair in trained]) < 1e-10
