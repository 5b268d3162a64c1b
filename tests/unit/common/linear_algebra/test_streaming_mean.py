"""The weighted mean: against a plain sum, whatever the parts that it is read in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.array_reader import in_memory
from common.linear_algebra import streaming_mean as of
from common.linear_algebra.streaming_mean import mean, mean_into
from common.tensors import Array


@settings(max_examples=60, deadline=None)
@given(
    sites=st.integers(1, 7),
    size=st.integers(0, 40),
    read=st.integers(1, 50),
    group=st.integers(1, 9),
    part=st.integers(1, 50),
    seed=st.integers(0, 99),
)
def test_the_parts_change_no_bit(
    sites: int, size: int, read: int, group: int, part: int, seed: int
):
    values, weights = some(sites, size, seed)
    expected = np.zeros(size)
    for number, (value, weight) in enumerate(zip(values, weights, strict=True)):
        term = value.astype(np.float64) * weight
        expected = term if number == 0 else expected + term
    found = np.empty(size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of, "READ", read)
        patch.setattr(of, "SITES", group)
        patch.setattr(of, "PART", part)
        mean_into(found, [in_memory(value) for value in values], weights)
    np.testing.assert_array_equal(found, expected)


@given(seed=st.integers(0, 99), sites=st.integers(1, 20))
def test_equal_values_come_back_bit_for_bit(seed: int, sites: int):
    (value, *_), weights = some(1, 30, seed)[0], some(sites, 1, seed)[1]
    value[:3] = -0.0, 1e-45, 3e38
    found = mean([in_memory(value)] * sites, weights)
    assert found.dtype == np.float32 and found.tobytes() == value.tobytes()


def some(sites: int, size: int, seed: int) -> tuple[list[Array], list[float]]:
    random = np.random.default_rng(seed)
    values = [random.standard_normal(size).astype(np.float32) for _ in range(sites)]
    weights = random.integers(1, 9, sites)
    return values, [float(weight) / int(weights.sum()) for weight in weights]
