"""What each update of a round counts, recomputed from dense matrices."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.adapter import Adapter, Pair
from common.plan.robustness import Robustness
from common.rules.registry import rules
from common.tensors import Array
from server.aggregation import changes as changes_module
from server.aggregation.changes import measure
from server.aggregation.influence import RoundContext, SiteInfluence, Weighed, usual_norm, weigh
from server.aggregation.scaled import ScaledUpdate, longest_step

RANK, SCALE = 2, 1.5
SHAPES = {"q": (7, 5), "v": (4, 6)}


def normal(random: np.random.Generator, *shape: int) -> Array:
    return random.standard_normal(shape).astype(np.float32)


def start_of(random: np.random.Generator) -> Adapter:
    pairs = {
        name: Pair(normal(random, RANK, inputs), normal(random, outputs, RANK))
        for name, (outputs, inputs) in SHAPES.items()
    }
    return Adapter(pairs, SCALE, {"prompt": normal(random, 3)})


def moved(
    start: Adapter, random: np.random.Generator, size: float, towards: float = 0.0
) -> Adapter:
    """The start with noise on every number, and a common direction."""

    def add(value: Array) -> Array:
        step = towards * np.sign(np.sin(np.arange(value.size))).reshape(value.shape)
        return (value + size * random.standard_normal(value.shape) + step).astype(np.float32)

    pairs = {name: Pair(add(pair.a), add(pair.b)) for name, pair in start.pairs.items()}
    return Adapter(pairs, start.scale, {name: add(value) for name, value in start.extras.items()})


def dense(adapter: Adapter) -> Array:
    """All products and extras as one vector."""
    products = [
        adapter.scale * (pair.b.astype(np.float64) @ pair.a).ravel()
        for pair in adapter.pairs.values()
    ]
    return np.concatenate(
        [*products, *(value.astype(np.float64) for value in adapter.extras.values())]
    )


def norms_of_a(start: Adapter, *updates: Adapter) -> list[float]:
    return [
        float(np.sqrt(sum(np.sum((one.pairs[n].a - p.a) ** 2.0) for n, p in start.pairs.items())))
        for one in updates
    ]


def zero_product(start: Adapter) -> Adapter:
    pairs = {name: Pair(pair.a, np.zeros_like(pair.b)) for name, pair in start.pairs.items()}
    return Adapter(pairs, start.scale, {})


@pytest.fixture
def start() -> Adapter:
    return start_of(np.random.default_rng(1))


def context(start: Adapter | None, **changes: Any) -> RoundContext:
    fields: dict[str, Any] = {
        "rule": rules()["svd"], "robustness": Robustness(), "start": start, "learning_rate": 1e-6,
        "last": None, "seed": 1,
    }  # fmt: skip
    return RoundContext(**{**fields, **changes})


def weighed(
    updates: Mapping[str, Adapter], at: RoundContext, examples: Mapping[str, int] | None = None
) -> Weighed:
    return weigh(dict(updates), examples or dict.fromkeys(updates, 100), at)


@pytest.mark.parametrize("known", [True, False])
def test_changes_are_those_of_the_dense_products(start: Adapter, known: bool):
    random = np.random.default_rng(2)
    updates = [moved(start, random, 0.3) for _ in range(3)]
    found = measure(updates, start if known else None, seed=7)
    differences = np.array([dense(one) - (dense(start) if known else 0.0) for one in updates])
    np.testing.assert_allclose(found.products, differences @ differences.T, rtol=1e-9)
    lengths = np.linalg.norm(differences, axis=1)
    np.testing.assert_allclose(found.norms, lengths, rtol=1e-9)
    results = np.array([dense(one) for one in updates])
    np.testing.assert_allclose(found.results, results @ results.T, rtol=1e-9)
    cosines = differences @ differences.T / np.outer(lengths, lengths)
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-9)
    expected = ((differences[:, None] - differences) ** 2).sum(axis=2)
    np.testing.assert_allclose(found.squared_distances, expected, atol=1e-7)
    of_a = [
        np.sqrt(
            sum(np.sum((one.pairs[name].a - known * start.pairs[name].a) ** 2) for name in SHAPES)
        )
        for one in updates
    ]
    np.testing.assert_allclose(found.a, of_a, rtol=1e-5)
    units = differences / lengths[:, None]
    others = units[1] + units[2]
    cosine = float(units[0] @ others / np.linalg.norm(others))
    assert found.cosines_to_others()[0] == pytest.approx(cosine)


def test_many_ranks_are_sketched_and_the_sketch_is_near(start: Adapter, monkeypatch: Any):
    random = np.random.default_rng(3)
    updates = [moved(start, random, 0.3, towards=0.3) for _ in range(3)]
    exact = measure(updates, start, seed=7)
    monkeypatch.setattr(changes_module, "has_many_ranks", bool)
    monkeypatch.setattr(changes_module, "SKETCH", 4096)
    found = measure(updates, start, seed=7)
    np.testing.assert_allclose(found.products, exact.products, rtol=0.1, atol=3.0)
    np.testing.assert_allclose((found.a, found.b), (exact.a, exact.b), rtol=1e-6)
    monkeypatch.setattr(changes_module, "SKETCH", 8)
    assert not np.allclose(measure(updates, start, 1).products, measure(updates, start, 2).products)


def test_the_longest_step_is_where_the_dense_change_crosses_the_bound(start: Adapter):
    after = moved(start, np.random.default_rng(4), 2.0)
    bound = 0.2 * float(np.linalg.norm(dense(after) - dense(start)))
    factor = longest_step(after, start, bound)
    there = ScaledUpdate(after, start, factor).loaded()
    assert np.linalg.norm(dense(there) - dense(start)) == pytest.approx(bound, rel=1e-5)
    for share in np.linspace(0, factor, 20)[:-1]:
        part = ScaledUpdate(after, start, float(share)).loaded()
        assert np.linalg.norm(dense(part) - dense(start)) < bound * (1 + 1e-5)


def test_the_longest_step_is_the_first_crossing_of_a_way_that_comes_back():
    # The product moves by c - 3 c^2: out to 1 / 12 at c = 1 / 6, back, and out again.
    def one(a: float, b: float) -> Adapter:
        return Adapter({"q": Pair(np.array([[a]], np.float32), np.array([[b]], np.float32))}, 1.0)

    first = (1 - np.sqrt(1 - 12 * 0.05)) / 6
    assert longest_step(one(2, 1), one(1, 4), 0.05) == pytest.approx(first)


@pytest.mark.parametrize("rule", ["svd", "fedavg", "frozen_a", "krum"])
def test_honest_updates_count_as_they_are(start: Adapter, rule: str):
    random = np.random.default_rng(5)
    updates = {name: moved(start, random, 0.1, towards=0.1) for name in "abcde"}
    found = weighed(
        updates,
        context(start, rule=rules()[rule]),
        {"a": 90, "b": 110, "c": 130, "d": 100, "e": 100},
    )
    assert all(one.adapter is updates[one.site] for one in found.updates)
    assert all(one.scaled == 1.0 and one.outlier is None for one in found.influences.values())
    if rule != "krum":
        assert [one.examples for one in found.updates] == [90, 110, 130, 100, 100]


@pytest.mark.parametrize("rule", ["svd", "fedavg"])
def test_a_long_change_is_scaled_to_the_bound(start: Adapter, rule: str):
    random = np.random.default_rng(6)
    updates = {name: moved(start, random, 0.1) for name in "ab"}
    updates["c"] = moved(start, random, 2.0)
    found = weighed(updates, context(start, rule=rules()[rule]))
    norms = {
        site: float(np.linalg.norm(dense(one) - dense(start))) for site, one in updates.items()
    }
    assert {site: one.norm for site, one in found.influences.items()} == pytest.approx(norms)
    counted = {one.site: one.adapter.loaded() for one in found.updates}
    length = float(np.linalg.norm(dense(counted["c"]) - dense(start)))
    bound = 2 * sorted(norms.values())[1]
    assert length == pytest.approx(bound, rel=1e-5) if rule == "svd" else length <= bound
    assert found.influences["c"].scaled < 1 and found.influences["c"].share == pytest.approx(1 / 3)
    assert counted["a"] is updates["a"]


def test_in_a_first_round_the_product_is_scaled_and_a_stays(start: Adapter):
    first = zero_product(start)
    random = np.random.default_rng(7)
    updates = {name: moved(first, random, 0.02) for name in "ab"}
    pairs = {n: Pair(p.a, 50 * p.b) for n, p in updates["a"].pairs.items()}
    updates["c"] = Adapter(pairs, SCALE, {})
    free = Robustness(least_cosine=None)
    found = weighed(updates, context(None, rule=rules()["fedavg"], robustness=free))
    counted = found.updates[2].adapter.loaded()
    np.testing.assert_array_equal(counted.pairs["q"].a, updates["c"].pairs["q"].a)
    np.testing.assert_allclose(
        dense(counted), found.influences["c"].scaled * dense(updates["c"]), rtol=1e-5
    )
    # A that is long by itself is scaled, too, and so is the product.
    pairs = {n: Pair(10 * p.a, p.b) for n, p in updates["a"].pairs.items()}
    updates["c"] = Adapter(pairs, SCALE, {})
    found = weighed(updates, context(None, rule=rules()["fedavg"], robustness=free))
    counted = found.updates[2].adapter.loaded()
    shares = [counted.pairs[n].a / pair.a for n, pair in pairs.items()]
    np.testing.assert_allclose(np.concatenate([one.ravel() for one in shares]), 0.2, rtol=0.02)
    np.testing.assert_allclose(
        dense(counted), found.influences["c"].scaled * dense(updates["c"]), rtol=1e-5
    )


def test_of_two_the_larger_is_not_left_out_for_the_smaller_ones_sake(start: Adapter):
    random = np.random.default_rng(8)
    honest = moved(start, random, 0.1)
    tiny = ScaledUpdate(honest, start, 1e-3).loaded()
    for updates in ({"a": tiny, "b": honest}, {"a": tiny, "b": honest, "c": tiny}):
        # A rate of 0.1 moves numbers by more in ten steps than this update does.
        found = weighed(updates, context(start, learning_rate=0.1))
        assert {site: (one.scaled, one.outlier) for site, one in found.influences.items()} == (
            dict.fromkeys(updates, (1.0, None))
        )
        # In later rounds the last one says as much; B alone is within 50 times ten steps.
        last = found.influences["b"].norm
        again = weighed(updates, context(start, learning_rate=1e-3, last=last)).influences["b"]
        assert (again.scaled, again.outlier) == (1.0, None)
        half = weighed(updates, context(start, learning_rate=1e-3, last=last / 2))
        counted = next(one.adapter.loaded() for one in half.updates if one.site == "b")
        assert np.linalg.norm(dense(counted) - dense(start)) == pytest.approx(last / 2, rel=1e-5)


def test_of_two_the_bound_is_that_of_the_smaller(start: Adapter):
    random = np.random.default_rng(15)
    updates = {"a": moved(start, random, 0.1), "b": moved(start, random, 1.0)}
    counted = [one.adapter.loaded() for one in weighed(updates, context(start)).updates]
    small, large = (float(np.linalg.norm(dense(one) - dense(start))) for one in counted)
    assert large == pytest.approx(2 * small, rel=1e-5)


def test_a_long_change_of_one_factor_is_scaled_to_that_factors_bound(start: Adapter):
    random = np.random.default_rng(16)
    updates = {name: moved(start, random, 0.1) for name in "ab"}
    longer = moved(start, random, 2.0).pairs
    pairs = {name: Pair(longer[name].a, pair.b) for name, pair in start.pairs.items()}
    updates["c"] = replace(start, pairs=pairs)
    found = weighed(updates, context(start, rule=rules()["fedavg"]))
    (length,) = norms_of_a(start, found.updates[2].adapter.loaded())
    bound = 2 * sorted(norms_of_a(start, *updates.values()))[1]
    assert length == pytest.approx(bound, rel=1e-5)


def test_in_a_first_round_a_tiny_a_makes_no_drawn_one_too_large(start: Adapter):
    # |A|^2 is rank / 3 a layer, as PEFT draws it.
    norms = {name: np.linalg.norm(pair.a) / np.sqrt(RANK / 3) for name, pair in start.pairs.items()}
    drawn = {
        name: Pair(0.99 * pair.a / norms[name], 1e-3 * pair.b) for name, pair in start.pairs.items()
    }
    tiny = {name: Pair(1e-3 * pair.a, pair.b) for name, pair in drawn.items()}
    updates = {"a": Adapter(tiny, SCALE), "b": Adapter(drawn, SCALE)}
    at = context(None, rule=rules()["fedavg"], learning_rate=1e-2)
    assert weighed(updates, at).updates[1].adapter is updates["b"]


def test_a_change_of_another_order_of_magnitude_counts_nothing(start: Adapter):
    random = np.random.default_rng(9)
    updates = {name: moved(start, random, 0.01) for name in "ab"}
    updates["c"] = moved(start, random, 100.0)
    found = weighed(updates, context(start))
    assert [one.site for one in found.updates] == ["a", "b"]
    assert found.influences["c"].share == 0.0
    assert str(found.influences["c"].outlier).startswith("norm of its B: found ")


def test_large_factors_of_a_small_product_count_nothing(start: Adapter):
    """(B / x)(x A) is the same product, but not for a mean of factors apart."""
    random = np.random.default_rng(10)
    updates = {name: moved(start, random, 0.01) for name in "abc"}
    pairs = {n: Pair(1e5 * p.a, p.b / np.float32(1e5)) for n, p in updates["c"].pairs.items()}
    updates["c"] = replace(updates["c"], pairs=pairs)
    for rule in ("fedavg", "svd"):
        found = weighed(updates, context(start, rule=rules()[rule]))
        assert [one.site for one in found.updates] == ["a", "b"]
        assert str(found.influences["c"].outlier).startswith("norm of its A: found ")


def test_whoever_points_against_most_counts_nothing(start: Adapter):
    random = np.random.default_rng(11)
    updates = {name: moved(start, random, 0.05, towards=0.1) for name in "abc"}
    updates["d"] = ScaledUpdate(updates["a"], start, -1.0).loaded()
    found = weighed(updates, context(start))
    assert [one.site for one in found.updates] == ["a", "b", "c"]
    assert str(found.influences["d"].outlier).startswith("direction of its change: found a cosine")
    assert "to 3 of 3 others, expected at least -0.1" in str(found.influences["d"].outlier)
    # What is against the others' results is, though its change points nowhere.
    updates["d"] = ScaledUpdate(start, None, -3.0).loaded()
    turned = weighed(updates, context(start)).influences["d"].outlier
    assert str(turned).startswith("direction: found a cosine of ")
    updates["d"] = ScaledUpdate(updates["a"], start, -1.0).loaded()
    # Two of four: nobody knows who is right. Of two there is no majority, either.
    two = {**updates, "c": ScaledUpdate(updates["b"], start, -1.0).loaded()}
    assert len(weighed(two, context(start)).updates) == 4
    pair = {"a": updates["a"], "d": updates["d"]}
    assert len(weighed(pair, context(start)).updates) == 2
    off = Robustness(least_cosine=None)
    assert len(weighed(updates, context(start, robustness=off)).updates) == 4


def in_rows(start: Adapter, *steps: float) -> Adapter:
    """The start with a step in each of the first rows of a B: changes of other rows are at 90°."""
    pair = start.pairs["q"]
    b = pair.b.copy()
    b[: len(steps)] += np.array(steps, np.float32)[:, None]
    return replace(start, pairs={**start.pairs, "q": Pair(pair.a, b)})


@pytest.mark.parametrize(
    ("steps", "left_out"),
    [
        # Against two of four others, and against three of them.
        ([(1,), (0, 1), (0, 0, 1), (0, 0, 0, 1), (-1, -1)], ""),
        ([(1,), (0, 1), (0, 0, 1), (0, 0, 0, 1), (-1, -1, -1)], "e"),
        # b and c are against two of three others: with them half of the sites would go.
        ([(1,), (-1, 1), (0, -1, 1), (0, 0, -1)], ""),
    ],
)
def test_against_most_is_more_than_half_of_the_others_and_a_minority(
    start: Adapter, steps: list[tuple[float, ...]], left_out: str
):
    # Of changes, and in a first round of the updates themselves.
    for base, known in ((start, start), (zero_product(start), None)):
        updates = {name: in_rows(base, *own) for name, own in zip("abcde", steps, strict=False)}
        found = weighed(updates, context(known, learning_rate=1.0)).influences
        assert "".join(site for site, one in found.items() if one.outlier) == left_out


def test_where_both_directions_would_leave_out_half_only_that_of_results_does(start: Adapter):
    pair = start.pairs["q"]
    b = pair.b.copy()
    b[0] = 0.0  # So that a step in this row is at 90° to the start itself.
    start = replace(start, pairs={**start.pairs, "q": Pair(pair.a, b)})
    updates = {
        "a": in_rows(start, 1.0), "b": in_rows(start, 0.9), "c": in_rows(start, -1.0),
        "d": ScaledUpdate(start, None, -3.0).loaded(),
    }  # fmt: skip
    found = weighed(updates, context(start, learning_rate=1.0)).influences
    assert [site for site, one in found.items() if one.outlier] == ["d"]
    # Of five the two are a minority.
    updates["e"] = in_rows(start, 1.1)
    found = weighed(updates, context(start, learning_rate=1.0)).influences
    assert [site for site, one in found.items() if one.outlier] == ["c", "d"]


def test_no_site_counts_more_than_the_plans_share(start: Adapter):
    random = np.random.default_rng(12)
    updates = {name: moved(start, random, 0.1) for name in "abc"}
    claims = {"a": 100, "b": 300, "c": 10**7}
    found = weighed(updates, context(start), claims)
    assert {site: one.share for site, one in found.influences.items()} == pytest.approx(
        {"a": 0.125, "b": 0.375, "c": 0.5}
    )
    equal = weighed(updates, context(start, robustness=Robustness(largest_share=0.01)), claims)
    assert [one.share for one in equal.influences.values()] == pytest.approx([1 / 3] * 3)
    assert found.influences["c"].examples == 10**7


def test_a_site_that_counts_less_counts_less_in_every_row(start: Adapter):
    rows = {"x": np.ones((2, 3), np.float32), "x.weight": np.array([30, 70], np.float32)}
    start = replace(start, extras=rows)
    updates = {name: start for name in "ab"}
    many = {**rows, "x.weight": np.array([6e6, 4e6], np.float32)}
    updates["c"] = replace(start, extras=many)
    found = weighed(updates, context(start), {"a": 100, "b": 100, "c": 10**7})
    weights = [one.adapter.extra("x.weight") for one in found.updates]
    # c counts as much as the two others together.
    np.testing.assert_allclose(weights, [[30, 70], [30, 70], [120, 80]], rtol=1e-5)


def test_under_a_robust_rule_outliers_are_named_and_left_to_the_rule(start: Adapter):
    random = np.random.default_rng(13)
    updates = {name: moved(start, random, 0.05, towards=0.1) for name in "abcd"}
    updates["e"] = ScaledUpdate(updates["a"], start, -5.0).loaded()
    at = context(start, rule=replace(rules()["median"], liars=1))
    found = weighed(updates, at, {"a": 1, "b": 1, "c": 1, "d": 1, "e": 10**7})
    assert {one.share for one in found.influences.values()} == {0.2}
    assert found.influences["e"].outlier is not None
    chosen = weighed(updates, replace(at, rule=replace(rules()["krum"], liars=1)))
    assert len(chosen.updates) == 2 and "e" not in {one.site for one in chosen.updates}


def test_the_usual_norm_of_a_round_is_that_of_what_counted(start: Adapter):
    random = np.random.default_rng(14)
    updates = {name: moved(start, random, 0.1) for name in "ab"}
    updates["c"] = moved(start, random, 2.0)
    found = list(weighed(updates, context(start)).influences.values())
    assert usual_norm(found) == sorted(one.norm * one.scaled for one in found)[1]
    assert usual_norm([]) is None
    # As they counted: 1 and 2, and the two that counted nothing are none of them.
    parts = [(4.0, 0.25, 0.5), (2.0, 1.0, 0.5), (50.0, 1.0, 0.0), (60.0, 1.0, 0.0)]
    closed = [SiteInfluence("a", norm, None, scaled, share, 1) for norm, scaled, share in parts]
    assert usual_norm(closed) == 1.0
