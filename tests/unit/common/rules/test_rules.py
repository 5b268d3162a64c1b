"""What each aggregation rule says of itself, and that it is true."""

import numpy as np
import pytest

from common.array_reader import in_memory, read_all
from common.linear_algebra.layer_factors import Factors, SiteFactors
from common.rules.interface import Factor, FirstA, Layer, MaskedSums, Rule
from common.rules.registry import rules
from common.tensors import Array

every_rule = pytest.mark.parametrize("rule", rules().values(), ids=rules().keys())
INPUTS, OUTPUTS, RANK = 7, 5, 2


@pytest.mark.parametrize(
    ("name", "first_rounds"),
    [
        ("fedavg", [Factor.BOTH, Factor.BOTH, Factor.BOTH]),
        ("svd", [Factor.BOTH, Factor.BOTH, Factor.BOTH]),
        ("frozen_a", [Factor.B, Factor.B, Factor.B]),
        ("alternating", [Factor.B, Factor.A, Factor.B]),
    ],
)
def test_a_rule_says_which_factors_are_trained_in_a_round(name: str, first_rounds: list[Factor]):
    assert [rules()[name].trained_factors(number) for number in (1, 2, 3)] == first_rounds


def test_the_frozen_factor_is_the_one_that_is_not_trained():
    assert (Factor.A.frozen, Factor.B.frozen, Factor.BOTH.frozen) == (Factor.B, Factor.A, None)


def test_only_frozen_a_starts_with_an_orthonormal_a():
    orthonormal = [rule.name for rule in rules().values() if rule.first_a is FirstA.ORTHONORMAL]
    assert orthonormal == ["frozen_a"]


def test_only_the_svd_merges_sites_of_other_starts_ranks_and_scales():
    assert [rule.name for rule in rules().values() if rule.starts_may_differ] == ["svd"]
    assert [rule.name for rule in rules().values() if rule.layouts_may_differ] == ["svd"]


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
    follows = np.allclose(merged.pair.a, a, atol=1e-6) and np.allclose(merged.pair.b, b, atol=1e-6)
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
