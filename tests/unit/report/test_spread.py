import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from report.spread import Spread, mean, spread


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9))
def test_mean_and_deviation_are_numpys(values: list[float]):
    found = spread(values)
    assert found is not None and found.deviation is not None
    assert found.mean == pytest.approx(float(np.mean(values)), abs=1e-12)
    assert found.deviation == pytest.approx(float(np.std(values, ddof=1)), abs=1e-12)
    assert found.seeds == len(values)


def test_only_known_values_count():
    assert spread([0.25, None, 0.75]) == spread([0.25, 0.75])
    assert spread([None, 0.5]) == Spread(0.5, None, 1)
    assert spread([None]) is None
    assert spread([]) is None


def test_the_sum_of_a_mean_is_rounded_once():
    # Summed from left to right, 1 would be lost in 1e16.
    assert mean([1e16, 1.0, -1e16]) == 1 / 3
