"""Parts of an adapter, and its three factors, each recomputed another way."""

import numpy as np
import pytest

from common.adapter import Adapter, Pair, from_bytes, to_bytes
from common.partial_adapter import (
    AdapterPart,
    fault_of_part,
    joined,
    layout_of_part,
    multiplied,
    part_in,
    part_of,
    three_factors,
)

RANK = 3
EXTRA = {"prompt": np.ones((2, 4), np.float32)}


def adapter(seed: int) -> Adapter:
    random = np.random.default_rng(seed)
    pairs = {
        name: Pair(
            random.standard_normal((RANK, inputs)).astype(np.float32),
            random.standard_normal((outputs, RANK)).astype(np.float32),
        )
        for name, (outputs, inputs) in {"x.q": (6, 8), "x.k": (5, 7)}.items()
    }
    return Adapter(pairs, 2.0, EXTRA)


def stored(part: Adapter) -> Adapter:
    return from_bytes(to_bytes(part), "a part")


def test_a_part_has_one_factor_of_each_layer_and_the_methods_own_arrays():
    whole = adapter(1)
    a, b = (stored(part_of(whole, part)) for part in (AdapterPart.A, AdapterPart.B))
    assert not a.pairs and not b.pairs and a.scale == b.scale == 2.0
    assert set(a.extras) == {"prompt", "part.a.x.q", "part.a.x.k"}
    np.testing.assert_array_equal(a.extras["part.a.x.k"], whole.pairs["x.k"].a)
    np.testing.assert_array_equal(b.extras["part.b.x.k"], whole.pairs["x.k"].b)
    assert part_of(whole, AdapterPart.WHOLE) is whole
    assert [part_in(one) for one in (whole, a, b)] == [
        AdapterPart.WHOLE,
        AdapterPart.A,
        AdapterPart.B,
    ]


@pytest.mark.parametrize("of_a", [AdapterPart.WHOLE, AdapterPart.A])
@pytest.mark.parametrize("of_b", [AdapterPart.WHOLE, AdapterPart.B])
def test_the_a_of_one_joins_the_b_of_another(of_a: AdapterPart, of_b: AdapterPart):
    one, other = adapter(1), adapter(2)
    found = joined(part_of(one, of_a), part_of(other, of_b))
    assert set(found.pairs) == set(one.pairs) and set(found.extras) == {"prompt"}
    for name, pair in found.pairs.items():
        np.testing.assert_array_equal(pair.a, one.pairs[name].a)
        np.testing.assert_array_equal(pair.b, other.pairs[name].b)


def test_three_factors_have_the_product_of_two():
    whole = adapter(3)
    three = three_factors(whole, None)
    for name, pair in three.pairs.items():
        core = three.extras[AdapterPart.CORE.name_of(name)]
        np.testing.assert_allclose(np.linalg.norm(pair.b, axis=0), 1, atol=1e-6)
        product = whole.pairs[name].b.astype(float) @ whole.pairs[name].a
        np.testing.assert_allclose(pair.b.astype(float) @ core @ pair.a, product, atol=1e-5)
        np.testing.assert_array_equal(core, np.diag(np.diag(core)))
    back = multiplied(three)
    assert set(back.extras) == {"prompt"}
    for name, pair in back.pairs.items():
        np.testing.assert_array_equal(pair.a, whole.pairs[name].a)
        np.testing.assert_allclose(pair.b, whole.pairs[name].b, atol=1e-6)


def test_the_product_of_the_mean_of_r_is_the_mean_of_the_products():
    whole, random = adapter(4), np.random.default_rng(5)
    sites = [
        {
            AdapterPart.CORE.name_of(name): random.standard_normal((RANK, RANK)).astype(np.float32)
            for name in whole.pairs
        }
        for _ in range(3)
    ]
    weights = [0.5, 0.3, 0.2]
    means = {
        name: np.tensordot(weights, [site[name] for site in sites], 1).astype(np.float32)
        for name in sites[0]
    }
    found = multiplied(three_factors(whole, Adapter({}, 2.0, means)))
    for name, pair in whole.pairs.items():
        unit = pair.b / np.linalg.norm(pair.b, axis=0)
        products = [unit @ site[AdapterPart.CORE.name_of(name)] @ pair.a for site in sites]
        mean = np.tensordot(weights, products, 1)
        got = found.pairs[name]
        np.testing.assert_allclose(got.b.astype(float) @ got.a, mean, atol=1e-5)


def test_a_column_of_zeros_stays_one():
    pair = adapter(6).pairs["x.q"]
    b = pair.b.copy()
    b[:, 1] = 0
    three = three_factors(Adapter({"x.q": Pair(pair.a, b)}, 1.0), None)
    assert not three.pairs["x.q"].b[:, 1].any()
    np.testing.assert_allclose(multiplied(three).pairs["x.q"].b, b, atol=1e-6)


@pytest.mark.parametrize("part", [AdapterPart.A, AdapterPart.B, AdapterPart.CORE])
def test_the_layout_of_a_part_is_known_from_that_of_the_whole(part: AdapterPart):
    whole = adapter(1)
    taken = part_of(three_factors(whole, None) if part is AdapterPart.CORE else whole, part)
    assert layout_of_part(whole.layout(), part) == taken.layout()
    assert layout_of_part(taken.layout(), part) == taken.layout()
    assert layout_of_part(whole.layout(), AdapterPart.WHOLE) == whole.layout()
    assert fault_of_part(taken, part, RANK) is None


def test_a_method_without_pairs_has_no_part_that_could_be_wrong():
    alone = Adapter({}, 1.0, EXTRA)
    assert [fault_of_part(alone, part, RANK) for part in AdapterPart] == [None] * 4
