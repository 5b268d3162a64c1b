"""Arrays whose rows have weights of their own: their mean, and what a site may say of them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.adapter import Adapter, AdapterSource, Pair, StoredAdapter, row_weights_of, to_bytes
from common.array_reader import in_memory
from common.errors import AggregationError
from common.linear_algebra import streaming_mean as of
from common.linear_algebra.streaming_mean import row_weighted_mean
from common.methods.interface import AdapterLayout
from common.plan_fields import Precision
from common.rules.interface import Factor
from common.rules.registry import rule_named
from common.tensors import Array
from server.aggregation.aggregate import SiteUpdate, merge
from server.aggregation.compatibility import TrainedPart, incompatible_updates
from server.aggregation.extras import fault_of_row_weights
from tests.unit.server.aggregation.aggregated import aggregate

FEDAVG = rule_named("fedavg")


def adapter(rows: Array, weights: Array | None, size: float = 1.0) -> Adapter:
    pair = Pair(np.ones((1, 2), np.float32), np.full((2, 1), size, np.float32))
    extras = {"x": np.asarray(rows, np.float32)}
    if weights is not None:
        extras["x.weight"] = np.asarray(weights, np.float32)
    return Adapter({"layer": pair}, 1.0, extras)


def by_hand(rows: Array, weights: Array, otherwise: Array) -> Array:
    """rows (S, R, ...), weights (S, R): numpy's own weighted average of each row, in float64."""
    found = np.array(otherwise, np.float64)
    for row in range(rows.shape[1]):
        if weights[:, row].any():
            found[row] = np.average(rows[:, row].astype(np.float64), 0, weights[:, row])
    return found.astype(np.float32)


@settings(max_examples=80, deadline=None)
@given(
    sites=st.integers(1, 5),
    shape=st.sampled_from([(1,), (4,), (3, 5), (2, 3, 2), (1, 17), (3, 0), (0, 2)]),
    read=st.integers(1, 12),
    seed=st.integers(0, 999),
)
def test_each_row_is_numpys_average_in_whatever_parts_it_is_read(
    sites: int, shape: tuple[int, ...], read: int, seed: int
):
    random = np.random.default_rng(seed)
    rows = random.standard_normal((sites, *shape)).astype(np.float32)
    weights = (random.integers(0, 4, (sites, shape[0])) * random.integers(0, 2)).astype(np.float32)
    otherwise = random.standard_normal(shape).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of, "READ", read)
        found = row_weighted_mean(
            [in_memory(one) for one in rows],
            [in_memory(one) for one in weights],
            in_memory(otherwise),
        )
    np.testing.assert_allclose(found, by_hand(rows, weights, otherwise), rtol=3e-7, atol=1e-12)
    held = weights.sum(0) > 0
    assert (found[held] <= rows.max(0)[held]).all() and (found[held] >= rows.min(0)[held]).all()
    assert found[~held].tobytes() == otherwise[~held].tobytes()


@settings(max_examples=10, deadline=None)
@given(sites=st.integers(1, 6), seed=st.integers(0, 99))
def test_equal_rows_come_back_bit_for_bit_and_the_sites_order_is_of_no_account(
    sites: int, seed: int
):
    random = np.random.default_rng(seed)
    row = random.standard_normal((2, 3)).astype(np.float32)
    counts = random.integers(1, 9, (sites, 2))
    equal = [SiteUpdate(f"s{i}", 9, adapter(row, counts[i])) for i in range(sites)]
    assert aggregate(FEDAVG, equal, None, 1).adapter.extras["x"].tobytes() == row.tobytes()
    others = random.standard_normal((sites, 2, 3)).astype(np.float32)
    updates = [SiteUpdate(f"s{i}", 9, adapter(others[i], counts[i])) for i in range(sites)]
    first, second = (aggregate(FEDAVG, one, None, 1) for one in (updates, updates[::-1]))
    assert first.adapter.extras["x"].tobytes() == second.adapter.extras["x"].tobytes()


def test_rows_follow_their_own_weights_and_other_arrays_the_examples(tmp_path: Path):
    rows = np.array([[[1.0], [1.0], [1.0]], [[4.0], [4.0], [4.0]]])
    weights = np.array([[1, 0, 0], [2, 5, 0]])
    plain = [np.array([10.0], np.float32), np.array([20.0], np.float32)]
    updates: list[SiteUpdate] = []
    for site, examples in enumerate((30, 10)):
        one = adapter(rows[site], weights[site])
        one = Adapter(one.pairs, 1.0, {**one.extras, "plain": plain[site]})
        file = tmp_path / f"{site}"
        file.write_bytes(to_bytes(one))
        stored = StoredAdapter.in_file(file, "update")
        updates.append(SiteUpdate(f"site{site}", examples, stored))
    previous = adapter(np.full((3, 1), 7.0), np.zeros(3))
    previous = Adapter(previous.pairs, 1.0, {**previous.extras, "plain": plain[0]})
    found = aggregate(FEDAVG, updates, previous, 1).adapter
    assert found.extras["x"].tolist() == [[3.0], [4.0], [7.0]]
    assert found.extras["x.weight"].tolist() == [1.0, 1.0, 0.0]
    assert found.extras["plain"].tolist() == [12.5]
    blob = merge(FEDAVG, updates, previous, 1, Precision.FP32).blob
    assert StoredAdapter.in_bytes(blob, "").extra("x").tolist() == [[3.0], [4.0], [7.0]]
    # The class that one round has had stays marked in the next, in which nobody has it.
    again = aggregate(
        FEDAVG, [SiteUpdate("a", 1, adapter(rows[0], np.zeros(3)))], found_of(found), 1
    )
    assert again.adapter.extras["x.weight"].tolist() == [1.0, 1.0, 0.0]
    assert again.adapter.extras["x"].tolist() == [[3.0], [4.0], [7.0]]


def found_of(whole: Adapter) -> Adapter:
    return Adapter(whole.pairs, 1.0, {name: whole.extras[name] for name in ("x", "x.weight")})


def test_in_a_first_round_a_row_without_weight_is_what_the_sites_sent_back():
    start = np.array([[0.1, 0.3], [0.7, 1e-9]], np.float32)
    updates = [SiteUpdate(name, 3, adapter(start, np.zeros(2))) for name in "abc"]
    found = aggregate(FEDAVG, updates, None, 1).adapter.extras
    assert found["x"].tobytes() == start.tobytes() and not found["x.weight"].any()


def test_a_weight_below_zero_stops_the_merge_with_the_sites_name():
    updates = [SiteUpdate("north", 3, adapter(np.ones((2, 1)), np.array([1, -2])))]
    with pytest.raises(AggregationError, match=r"site north: extras\.x\.weight: found -2"):
        aggregate(FEDAVG, updates, None, 1)


def test_only_a_name_with_its_array_is_a_weight_and_no_weight_is_weighted_itself():
    assert row_weights_of(["x", "x.weight", "y.weight", "x.weight.weight"]) == {"x": "x.weight"}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0, 10], None),
        # 257 travels as 258 in bf16.
        ([0, 10.03], None),
        ([0, 11], "extras.x.weight: found 11, expected 0 to the update's 10 examples"),
        ([-1, 0], "extras.x.weight: found -1, expected 0 to the update's 10 examples"),
        ([np.nan, 0], "extras.x.weight: found nan, expected 0 to the update's 10 examples"),
        (
            [6, 5],
            "extras.x.weight: found 11 in all its rows, expected at most the update's 10 "
            "examples: each is of one row",
        ),
        (
            [1, 1, 1],
            "extras.x.weight: found the shape (3,), expected (2,), one for each row of extras.x",
        ),
    ],
)
def test_a_sites_weights_are_counts_of_its_examples(weights: list[float], expected: str | None):
    assert fault_of_row_weights(adapter(np.ones((2, 1)), np.array(weights)), 10) == expected


def row_faults(step: float = 0.0, **updates: Adapter) -> dict[str, str]:
    sources: dict[str, AdapterSource] = dict(updates)
    layout, part = AdapterLayout(rank=1, alpha=1.0), TrainedPart(Factor.BOTH, step=step)
    return incompatible_updates(sources, None, layout, part)


def test_a_long_row_is_named_though_the_whole_update_is_not_long():
    def faults(rows: list[list[float]], weights: list[float], size: float) -> dict[str, str]:
        usual = adapter(np.ones((3, 1)), np.ones(3), size)
        own = adapter(np.array(rows), np.array(weights), size)
        return row_faults(a=usual, b=own, c=usual)

    long = [[1.0], [1.0], [1000.0]]
    # Against an update of length 2000 a row of 1000 does not show.
    assert faults(long, [1, 1, 1], 1000.0) == {
        "b": "extras.x: found a row of length 1e+03, expected at most 100 times the 1 that is usual"
    }
    # A row that is not the site's own does not count, and is not looked at.
    assert faults(long, [1, 1, 0], 1000.0) == {}
    assert faults([[1.0], [1.0], [99.0]], [1, 1, 1], 1000.0) == {}


def test_what_is_usual_is_the_other_sites_rows_or_a_step():
    def rows(length: float) -> Adapter:
        return adapter(np.full((3, 4), length / 2), np.ones(3))

    # A site's own rows, though all are long, are no measure of it.
    assert list(row_faults(a=rows(1.0), b=rows(101.0))) == ["b"]
    assert row_faults(a=rows(1.0), b=rows(99.0)) == {}
    # Tiny rows of others make none too long that steps of the rate may give: a step is 0.02 long.
    assert row_faults(0.01, a=rows(1e-6), b=rows(1.9)) == {}
    assert list(row_faults(0.01, a=rows(1e-6), b=rows(2.1))) == ["b"]
