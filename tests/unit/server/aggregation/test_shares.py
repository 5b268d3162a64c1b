"""Counts of which none is more than a share of their sum."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.plan.robustness import Robustness
from server.aggregation.shares import capped


def test_only_what_is_more_than_the_share_is_reduced():
    assert capped([100, 100, 10**9], 0.5) == [100, 100, 200]
    assert capped([1, 3], 0.75) == [1, 3]
    assert capped([5], 1.0) == [5]
    # Two of four at 0.4 each leave 0.2 to the others.
    assert capped([10**9, 1, 10**8, 1], 0.4) == pytest.approx([4, 1, 4, 1])
    assert capped([10**9, 1, 10, 100], 0.25) == pytest.approx([1, 1, 1, 1])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=9), st.floats(0, 1))
def test_no_share_is_larger_and_small_counts_keep_their_bits(counts: list[int], more: float):
    largest = 1 / len(counts) + more * (1 - 1 / len(counts))
    found = capped(counts, largest)
    assert max(found) <= largest * sum(found) * (1 + 1e-9)
    assert all(one <= count for one, count in zip(found, counts, strict=True))
    if max(counts) <= largest * sum(counts):
        assert found == counts


def test_the_plans_share_is_at_least_an_equal_one():
    assert [Robustness().share_of(sites) for sites in (1, 2, 3, 4)] == [1.0, 0.75, 0.5, 0.375]
    assert Robustness(largest_share=0.4).share_of(10) == 0.4
    assert Robustness(largest_share=0.4).share_of(2) == 0.5
