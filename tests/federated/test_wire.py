"""What a round costs at the wire and in the coordinator's memory."""

import pytest

from benchmarks.wire import cost_of

pytestmark = pytest.mark.federated

#: 21 MB, so that what one site more would hold shows beside what Python itself holds.
BLOCKS = 2


def test_an_adapter_travels_once_each_way_and_memory_does_not_grow_with_the_sites():
    few, many = cost_of(1, BLOCKS), cost_of(3, BLOCKS)
    for cost in (few, many):
        assert cost.adapter > 20e6
        assert 1.0 < cost.down <= 1.02
        assert 1.0 < cost.up <= 1.02
    # Two sites more are 42 MB of updates, 84 MB as float32.
    assert many.peak["serverapp"] <= 1.1 * few.peak["serverapp"]
