"""Statistics of descriptors: their numbers redone another way, and what no pictures can have."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.inference.image_prototype import prototype_of_features
from common.errors import BankError
from common.router.descriptor_statistics import (
    BINS,
    DESCRIPTORS,
    DescriptorStatistics,
    distances_to_others,
    fault_of,
    histogram,
    merge_statistics,
    regular,
    scales,
    tail_share,
)
from common.router.image_prototype import ImagePrototype, from_bytes, merge_prototypes, to_bytes

USUAL = scales(0.4, 192)


def rows_of(seed: int, count: int = 80, shift: float = 0.0) -> np.ndarray:
    return USUAL * (np.random.default_rng(seed).standard_normal((count, DESCRIPTORS)) + shift)


def statistics(rows: np.ndarray, code: str = "CT") -> DescriptorStatistics:
    return DescriptorStatistics(
        rows.mean(0).astype(np.float32),
        np.cov(rows.T, bias=True).astype(np.float32),
        histogram(distances_to_others(rows, USUAL)),
        code,
    )


def prototype(seed: int, count: int = 80, code: str = "CT") -> ImagePrototype:
    features = np.eye(4)[0] + 0.3 * np.random.default_rng(seed).standard_normal((count, 4))
    found = prototype_of_features(features / np.linalg.norm(features, axis=1, keepdims=True))
    assert found is not None
    return replace(found, statistics=statistics(rows_of(seed, count), code))


def test_a_distance_to_the_others_is_that_without_the_picture_itself():
    rows = rows_of(0, 70)
    found = distances_to_others(rows, USUAL)
    for place in (0, 33, 69):
        others = np.delete(rows, place, 0)
        apart = rows[place] - others.mean(0)
        covariance = regular(np.cov(others.T, bias=True), USUAL)
        assert found[place] == pytest.approx(apart @ np.linalg.inv(covariance) @ apart, rel=1e-9)


def test_a_histogram_counts_every_distance_also_those_beyond_its_edges():
    distances = DESCRIPTORS * np.array([1e-9, 0.125, 1.0, 1.0, 31.9, 33.0, 1e9])
    counts = histogram(distances)
    assert len(counts) == BINS and sum(counts) == 7
    # 0.125 is the first edge, 1 is 3 octaves of 4 bins after it.
    assert (counts[0], counts[1], counts[13], counts[32], counts[33]) == (1, 1, 2, 1, 2)


def test_the_share_that_lies_as_far_by_hand():
    counts = [0] * BINS
    counts[13], counts[17] = 6, 3  # from 1 on, and from 2 on
    assert tail_share(counts, DESCRIPTORS * 0.5) == pytest.approx(10 / 10)
    assert tail_share(counts, DESCRIPTORS * 1.5) == pytest.approx(4 / 10)
    assert tail_share(counts, DESCRIPTORS * 2 ** (1 + 1 / 8)) == pytest.approx(2.5 / 10)
    assert tail_share(counts, DESCRIPTORS * 9.0) == pytest.approx(1 / 10)
    assert tail_share(counts, 1e12) == pytest.approx(1 / 10)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_of_pictures_of_the_same_kind_hardly_more_than_a_share_of_e_has_a_value_of_e(seed: int):
    own, new = rows_of(seed, 300), rows_of(seed + 1, 300)
    counts = histogram(distances_to_others(own, USUAL))
    apart = new - own.mean(0)
    inverse = np.linalg.inv(regular(np.cov(own.T, bias=True), USUAL))
    shares = [tail_share(counts, float(one @ inverse @ one)) for one in apart]
    # Of 300 pictures and 300 others: five standard deviations of a share of 5 %.
    assert np.mean(np.array(shares) <= 0.05) < 0.05 + 5 * (2 * 0.05 * 0.95 / 300) ** 0.5


def test_mean_and_covariance_of_all_sites_are_those_of_all_pictures():
    parts = [rows_of(1, 70), rows_of(2, 150, shift=0.5)]
    together = merge_statistics([(statistics(rows), len(rows)) for rows in parts])
    everything = statistics(np.concatenate(parts))
    assert together is not None
    np.testing.assert_allclose(together.mean, everything.mean, atol=1e-5)
    np.testing.assert_allclose(together.covariance, everything.covariance, atol=1e-4)
    assert sum(together.distances) == 220 and together.code == "CT"
    assert fault_of(together, 220) is None


def test_a_code_stays_where_all_sites_have_it():
    for codes, kept in ((("CT", "CT"), "CT"), (("CT", "MR"), ""), (("CT", ""), "")):
        parts = [(statistics(rows_of(i), code), 80) for i, code in enumerate(codes)]
        together = merge_statistics(parts)
        assert together is not None and together.code == kept
    assert merge_statistics([]) is None


def test_a_site_that_counts_less_has_as_much_less_of_the_distances():
    part = statistics(rows_of(3))
    together = merge_statistics([(part, 40)])
    assert together is not None
    assert 30 <= sum(together.distances) <= 40


def test_a_prototype_with_statistics_comes_back_from_its_bytes_and_one_without_as_before():
    found = prototype(1)
    again = from_bytes(to_bytes(found), "bank")
    assert found.statistics is not None and again.statistics is not None
    np.testing.assert_array_equal(again.statistics.covariance, found.statistics.covariance)
    assert again.statistics.distances == found.statistics.distances
    assert again.statistics.code == "CT"
    bare = replace(found, statistics=None)
    assert from_bytes(to_bytes(bare), "bank").statistics is None
    assert b"descriptor" not in to_bytes(bare)


def test_merged_prototypes_have_the_statistics_of_the_sites_that_gave_some():
    with_some, without = prototype(1), replace(prototype(2), statistics=None)
    together = merge_prototypes([with_some, without])
    assert together is not None and together.statistics is not None
    assert with_some.statistics is not None
    assert together.images == 160
    np.testing.assert_allclose(together.statistics.mean, with_some.statistics.mean, atol=1e-6)
    bare = merge_prototypes([without, without])
    assert bare is not None and bare.statistics is None


GOOD = statistics(rows_of(5))


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        (replace(GOOD, mean=GOOD.mean[:-1]), "another shape"),
        (replace(GOOD, mean=GOOD.mean * np.float32(np.nan)), "beyond 100"),
        (replace(GOOD, covariance=GOOD.covariance * np.float32(1e4)), "beyond 100"),
        (replace(GOOD, covariance=-GOOD.covariance), "a covariance that is none"),
        (replace(GOOD, covariance=np.triu(GOOD.covariance)), "a covariance that is none"),
        (replace(GOOD, distances=(1,) * (BINS - 1)), "other counts"),
        (replace(GOOD, distances=(0,) * BINS), "other counts"),
        (replace(GOOD, distances=(10,) * BINS), "other counts"),
        (replace(GOOD, distances=(-1, *GOOD.distances[1:])), "other counts"),
        (replace(GOOD, code="CT\n"), "a code of a modality that is none"),
    ],
)
def test_what_no_pictures_can_have_is_refused(spoilt: DescriptorStatistics, said: str):
    assert said in (fault_of(spoilt, 80) or "")
    with pytest.raises((BankError, ValueError)):
        from_bytes(to_bytes(replace(prototype(1), statistics=spoilt)), "bank")


def test_half_of_the_statistics_is_no_prototype():
    from common.plan_fields import Precision
    from common.tensors import TensorWriter

    shapes = {"prototype": (4,), "descriptor_mean": (DESCRIPTORS,)}
    writer = TensorWriter(shapes, Precision.FP32, {"fedmslora": '{"images": 80, "std": 0.1}'})
    writer.put("prototype", np.full(4, 0.4, np.float32))
    writer.put("descriptor_mean", GOOD.mean)
    with pytest.raises(BankError, match="found other arrays"):
        from_bytes(writer.blob(), "bank")
