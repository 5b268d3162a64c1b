"""The router's numbers, redone another way."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.inference.router import DEVIATIONS, Choice, Routing, cosine_threshold, route
from client.orders.routed_answers import routing_shares
from common.errors import BankError
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.router.image_prototype import ImagePrototype
from tests.unit.small_round import plan


def prototype(*values: float, std: float = 0.1, images: int = 60) -> ImagePrototype:
    return ImagePrototype(np.array(values, np.float32), std, images)


def feature(*values: float) -> np.ndarray:
    found = np.array(values, np.float64)
    return found / np.linalg.norm(found)


def test_an_image_is_routed_by_direction_not_length():
    # Angles by hand: 0.6 to the first axis, 0.8 to the second; the first is three times as long.
    routing = route(feature(3, 4), {4: prototype(0.9, 0.0), 7: prototype(0.0, 0.3)}, 0.05)
    assert [choice.stage for choice in routing.choices] == [7, 4]
    assert [choice.cosine for choice in routing.choices] == pytest.approx([0.8, 0.6])
    assert routing.best.probability == pytest.approx(1 / (1 + math.exp(-0.2 / 0.05)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.floats(0.01, 2))
def test_probabilities_are_the_softmax_of_the_cosines(seed: int, stages: int, temperature: float):
    draw = np.random.default_rng(seed)
    rows = draw.standard_normal((stages, 5)) / 5
    picture = feature(*draw.standard_normal(5))
    routing = route(picture, {i: prototype(*row) for i, row in enumerate(rows)}, temperature)
    # Each against each: p_i / p_j = exp((c_i - c_j) / temperature).
    for one in routing.choices:
        angle = math.acos(
            np.clip(picture @ rows[one.stage] / np.linalg.norm(rows[one.stage]), -1, 1)
        )
        assert one.cosine == pytest.approx(math.cos(angle), abs=1e-6)
        for other in routing.choices:
            expected = math.exp((one.cosine - other.cosine) / temperature)
            if other.probability > 1e-200:
                assert one.probability / other.probability == pytest.approx(expected, rel=1e-6)
    assert sum(choice.probability for choice in routing.choices) == pytest.approx(1)
    assert routing.best.cosine == max(choice.cosine for choice in routing.choices)


def test_equal_stages_give_the_earliest():
    same = prototype(0.5, 0.0)
    assert route(feature(1, 0), {3: same, 1: same, 2: same}, 0.05).best.stage == 1


def test_a_small_temperature_overflows_nothing():
    routing = route(feature(1, 0), {0: prototype(1.0, 0.0), 1: prototype(-1.0, 0.0)}, 1e-6)
    assert [choice.probability for choice in routing.choices] == [1.0, 0.0]


def test_the_known_are_those_of_a_mixture_of_all_stages_cosines():
    # Two stages' cosines as lists of equal length: what is pooled must be their union's.
    first, second = np.array([0.9, 0.7, 0.8]), np.array([0.5, 0.1, 0.3])
    parts = [prototype(x.mean(), 0.0, std=float(x.std())) for x in (first, second)]
    union = np.concatenate([first, second])
    expected = union.mean() - DEVIATIONS * union.std()
    assert cosine_threshold(parts) == pytest.approx(expected, abs=1e-6)


def test_known_is_what_is_at_most_one_and_a_half_deviations_below_the_mean():
    assert cosine_threshold([prototype(0.8, 0.0, std=0.1)]) == pytest.approx(0.65)
    # An image like the only one that a stage has had is exactly at its mean.
    assert route(feature(1, 0), {0: prototype(1.0, 0.0, std=0.0)}, 0.05).known


def test_the_length_of_a_feature_does_not_count():
    stages = {0: prototype(0.9, 0.0), 1: prototype(0.0, 0.3)}
    assert route(4 * feature(3, 4), stages, 0.05).best.cosine == pytest.approx(0.8)


def test_an_image_unlike_all_is_not_known_and_still_has_a_best_guess():
    known = {0: prototype(0.9, 0.0, 0.0), 1: prototype(0.0, 0.9, 0.0)}
    assert route(feature(10, 0, 1), known, 0.05).known
    strange = route(feature(1, 0, 10), known, 0.05)
    assert not strange.known
    assert strange.best.stage == 0


def test_a_prototype_of_another_width_is_ignored():
    routing = route(feature(1, 0), {0: prototype(1.0, 0.0, 0.0), 1: prototype(0.0, 0.5)}, 0.05)
    assert [choice.stage for choice in routing.choices] == [1]
    with pytest.raises(BankError, match="router: found 1 prototype, none with the 2 numbers"):
        route(feature(1, 0), {0: prototype(1.0, 0.0, 0.0)}, 0.05)


def three_stages() -> Plan:
    document = plan().model_dump(mode="json")
    (stage,) = document["stages"]
    names = (("one", "ct"), ("two", "mr"), ("three", "ct"))
    document["stages"] = [{**stage, "name": name, "modality": kind} for name, kind in names]
    return parse_plan(document, "p")


def test_shares_count_the_own_stage_and_the_own_modality():
    def to(stage: int, probability: float = 1.0, *, known: bool = True) -> Routing:
        return Routing((Choice(stage, probability, 0.5),), known)

    # Two questions about the first image, which counts once: half of it went to the own stage.
    by_image = [[to(0), to(1, 0.5)], [to(0)], [to(1, known=False)], [to(2, 0.25)]]
    assert routing_shares(three_stages(), 0, by_image) == {
        "router_stage": (0.5 + 1) / 4,
        "router_modality": (0.5 + 1 + 0 + 1) / 4,
        "router_known": 3 / 4,
        "router_confidence": (0.75 + 1 + 1 + 0.25) / 4,
    }
