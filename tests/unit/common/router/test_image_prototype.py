"""Prototypes: the mean of unit features, merged over sites, and what none can be."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.inference.image_prototype import prototype_of_features
from common.errors import BankError
from common.plan.file import parse_plan
from common.plan_fields import Precision
from common.router.image_prototype import (
    ImagePrototype,
    fault_of,
    from_bytes,
    merge_prototypes,
    to_bytes,
)
from common.tensors import TensorWriter
from tests.unit.small_round import plan


def features(seed: int, count: int, width: int = 6, spread: float = 0.5) -> np.ndarray:
    """Unit vectors around one direction."""
    draw = np.random.default_rng(seed)
    found = np.eye(width)[0] + spread * draw.standard_normal((count, width))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def of(rows: np.ndarray) -> ImagePrototype:
    found = prototype_of_features(rows)
    assert found is not None
    return found


def test_a_prototype_redone_by_hand():
    # Two features at right angles: the mean is (1/2, 1/2), and both have the cosine sqrt(1/2).
    found = of(np.array([[1.0, 0.0], [0.0, 1.0]]))
    np.testing.assert_array_equal(found.vector, np.array([0.5, 0.5], np.float32))
    assert (found.images, found.std) == (2, pytest.approx(0.0, abs=1e-12))
    assert found.mean == pytest.approx(0.5**0.5)
    # Three features: the cosines to (2, 1) / sqrt(5) are 2, 2 and 1 of sqrt(5).
    found = of(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert found.std == pytest.approx(np.std([2, 2, 1]) / 5**0.5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0.01, 3))
def test_its_length_is_the_mean_cosine_of_its_pictures(seed: int, count: int, spread: float):
    rows = features(seed, count, spread=spread)
    found = of(rows)
    mean = rows.mean(0)
    cosines = [float(row @ mean / np.linalg.norm(mean)) for row in rows]
    assert found.mean == pytest.approx(sum(cosines) / count, abs=1e-6)
    assert found.std == pytest.approx(float(np.std(cosines)), abs=1e-6)


def test_pictures_that_cancel_have_none():
    assert prototype_of_features(np.array([[1.0, 0.0], [-1.0, 0.0]])) is None
    one, other = of(np.array([[1.0, 0.0]])), of(np.array([[-1.0, 0.0]]))
    assert merge_prototypes([one, other]) is None


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 60), min_size=1, max_size=4))
def test_the_merged_mean_and_count_are_those_of_all_pictures(seed: int, counts: list[int]):
    sites = [features(seed + number, count) for number, count in enumerate(counts)]
    together = merge_prototypes([of(rows) for rows in sites])
    everything = of(np.concatenate(sites))
    assert together is not None
    np.testing.assert_allclose(together.vector, everything.vector, atol=1e-6)
    assert together.images == everything.images == sum(counts)
    assert together.mean == pytest.approx(everything.mean, abs=1e-6)
    assert fault_of(together) is None


def test_the_merged_deviation_is_exact_where_sites_differ_as_wholes():
    # Within a site every picture is the same: all of the deviation lies between the sites.
    sites = [np.repeat(features(seed, 1), count, axis=0) for seed, count in ((1, 3), (2, 9))]
    together, everything = merge_prototypes([of(rows) for rows in sites]), of(np.concatenate(sites))
    assert together is not None
    assert together.std == pytest.approx(everything.std, abs=1e-6)
    assert everything.std > 0.001


def test_the_merged_deviation_is_exact_where_sites_have_one_direction():
    rows = features(3, 20)
    # Mirrored at the mean's axis the pictures differ, and their mean has the same direction.
    axis = rows.mean(0) / np.linalg.norm(rows.mean(0))
    mirrored = 2 * (rows @ axis)[:, None] * axis - rows
    together, everything = (
        merge_prototypes([of(rows), of(mirrored)]),
        of(np.concatenate([rows, mirrored])),
    )
    assert together is not None
    assert together.std == pytest.approx(everything.std, abs=1e-6)


def test_one_site_alone_is_as_it_was():
    alone = of(features(5, 17))
    again = merge_prototypes([alone])
    assert again is not None
    np.testing.assert_array_equal(again.vector, alone.vector)
    assert (again.std, again.images) == (pytest.approx(alone.std, abs=1e-9), 17)


def test_a_prototype_comes_back_from_its_bytes():
    sent = of(features(7, 30))
    found = from_bytes(to_bytes(sent), "test")
    np.testing.assert_array_equal(found.vector, sent.vector)
    assert (found.std, found.images) == (sent.std, sent.images)
    assert to_bytes(found) == to_bytes(sent)


GOOD = of(features(9, 80))
SPOILT = {
    "not finite": (replace(GOOD, vector=np.full(6, np.nan, np.float32)), "not finite"),
    "infinite": (replace(GOOD, vector=np.full(6, np.inf, np.float32)), "not finite"),
    "too long": (replace(GOOD, vector=np.ones(6, np.float32)), "found the length 2.44949"),
    "no direction": (replace(GOOD, vector=np.zeros(6, np.float32)), "found the length 0"),
    "wide": (replace(GOOD, std=1.0), "found the standard deviation 1"),
    "negative": (replace(GOOD, std=-0.1), "found the standard deviation -0.1"),
    "nobody": (replace(GOOD, images=0), "found 0 images"),
    "too many": (replace(GOOD, images=10**12), "found 1000000000000 images"),
    "a matrix": (replace(GOOD, vector=GOOD.vector.reshape(2, 3)), "expected one vector"),
}


@pytest.mark.parametrize(("spoilt", "said"), SPOILT.values(), ids=SPOILT.keys())
def test_what_no_pictures_have_is_refused(spoilt: ImagePrototype, said: str):
    with pytest.raises(BankError, match=f"^x: .*{said}"):
        from_bytes(to_bytes(spoilt), "x")


def blob(numbers: object, **more: str) -> bytes:
    metadata = {"fedmslora": json.dumps(numbers, separators=(",", ":")), **more}
    writer = TensorWriter({"prototype": (6,)}, Precision.FP32, metadata)
    writer.put("prototype", GOOD.vector)
    return writer.blob()


@pytest.mark.parametrize(
    "strange",
    [
        b"junk",
        b"",
        to_bytes(GOOD)[:-1],
        to_bytes(GOOD) + b"\0" * 2**20,
        blob({"images": True, "std": 0.1}),
        blob({"images": 80, "std": "0.1"}),
        blob({"images": 80}),
        blob([80, 0.1]),
        blob({"images": 80, "std": float("nan")}),
        blob({"images": 80, "std": 0.1, "patient": "x"}),
        blob({"images": 80, "std": 0.1}, note="x"),
    ],
)
def test_what_is_no_prototype_is_refused_in_one_sentence(strange: bytes):
    with pytest.raises(BankError, match=r"^x: ") as caught:
        from_bytes(strange, "x")
    assert "\n" not in str(caught.value)


def test_a_prototype_is_wanted_in_the_last_round_of_a_plan_that_routes():
    routed = plan().model_copy(update={"router": parse_router()})
    assert plan().router_of_round(0, 2) is None
    assert routed.router_of_round(0, 1) is None
    assert routed.router_of_round(0, 2) == routed.router


def parse_router():
    document = json.loads(plan().canonical())
    assert "router" not in document
    parsed = parse_plan({**document, "router": {}}, "p")
    assert parsed.router is not None and parsed.router.minimum == 50
    assert json.loads(parsed.canonical())["router"] == {
        "minimum": 50, "statistics": True, "temperature": 0.05,
    }  # fmt: skip
    return parsed.router


def test_a_plan_without_a_router_has_the_digest_that_it_always_had():
    document = json.loads(plan().canonical())
    assert parse_plan({**document, "router": None}, "p").digest == plan().digest
    assert parse_plan({**document, "router": {}}, "p").digest != plan().digest
