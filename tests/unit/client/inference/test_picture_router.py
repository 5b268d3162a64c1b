"""The router of pictures: what the header forbids, what is unlike all, and why it says so."""

import math
from dataclasses import replace

import numpy as np
import pytest

from client.inference.question_likeness import QuestionLikeness
from client.inference.router import (
    LIKELIHOOD_TEMPERATURE,
    UNLIKE,
    Picture,
    PictureRouter,
    RoutedStage,
)
from common.plan_fields import Modality
from common.router.descriptor_statistics import (
    BINS,
    DescriptorStatistics,
    regular,
    scales,
    tail_share,
)
from common.router.image_prototype import ImagePrototype
from tests.unit.common.router.test_descriptor_statistics import rows_of, statistics

WIDTH = 192
USUAL = scales(1 - 0.6**2 * 1, WIDTH)


def stage(name: str, modality: Modality, shift: float, code: str = "") -> RoutedStage:
    """A stage whose descriptors lie around `shift` usual deviations."""
    vector = np.zeros(WIDTH, np.float32)
    vector[int(shift) % WIDTH] = 0.6
    made = statistics(rows_of(int(shift), 300, shift), code)
    return RoutedStage(ImagePrototype(vector, 0.1, 300, made), modality, name)


BONE = stage("bone", Modality.CT, 0.0, "CT")
FILM = stage("film", Modality.XRAY, 3.0)
STAIN = stage("stain", Modality.PATHOLOGY, 40.0)
ROUTER = PictureRouter({0: STAIN, 1: FILM, 2: BONE}, 0.05)


def picture(shift: float, code: str = "", seed: int = 9, flat: bool = False) -> Picture:
    feature = np.full(WIDTH, WIDTH**-0.5)
    return Picture(feature, rows_of(seed, 1, shift)[0], code, flat)


def test_a_picture_goes_to_the_stage_that_it_is_like():
    for place, shift in ((0, 40.0), (1, 3.0)):
        found = ROUTER.route(picture(shift))
        assert (found.best.stage, found.known, found.reason) == (place, True, "")
        assert found.calibrated and found.best.probability > 0.9
        assert found.best.alike is not None and found.best.alike > UNLIKE
        assert sum(choice.probability for choice in found.choices) == pytest.approx(1)


def test_a_ct_reaches_only_stages_of_ct_whatever_it_looks_like():
    looks_like_film = ROUTER.route(picture(3.0, "CT"))
    assert [choice.stage for choice in looks_like_film.choices] == [2]
    assert not looks_like_film.known and "as unlike the others" in looks_like_film.reason
    assert ROUTER.route(picture(0.0, "CT")).known


def test_a_modality_that_no_stage_has_is_unlike_all_with_a_sentence_that_says_why():
    found = ROUTER.route(picture(3.0, "US"))
    assert not found.known
    assert found.reason == ("its file says US, and the bank has learned pathology, xray, ct alone")
    # A guess is made among all.
    assert len(found.choices) == 3 and found.best.stage == 1


@pytest.mark.parametrize("code", ["OT", "SC", "DOC", "NONSENSE", ""])
def test_a_code_that_may_be_anything_forbids_nothing(code: str):
    assert ROUTER.route(picture(3.0, code)).best.stage == 1


def test_a_body_part_reaches_only_stages_that_list_it_or_list_none():
    chest = replace(FILM, name="chest", body_parts=("CHEST", "THORAX"))
    leg = replace(FILM, name="leg", body_parts=("LEG",))
    router = PictureRouter({0: STAIN, 1: chest, 2: leg}, 0.05)
    for part, stages in (("THORAX", {0, 1}), ("LEG", {0, 2}), ("", {0, 1, 2})):
        found = router.route(replace(picture(3.0), body_part=part))
        assert {choice.stage for choice in found.choices} == stages and found.known
    # Together with the modality, which excludes the one that lists none.
    found = router.route(replace(picture(3.0, "DX"), body_part="SKULL"))
    assert not found.known and {choice.stage for choice in found.choices} == {1, 2}
    assert found.reason == "its file says SKULL, and the bank has learned CHEST, THORAX, LEG alone"


def test_a_file_without_a_header_is_not_like_pictures_that_all_have_one():
    found = ROUTER.route(picture(0.0))
    assert (found.best.stage, found.known) == (2, False)
    assert found.reason == (
        "its file does not say CT, as those of all pictures of bone do, the only stage that it "
        "looks like"
    )


def test_a_picture_of_one_level_is_unlike_all():
    found = ROUTER.route(picture(3.0, flat=True))
    assert (found.known, found.reason) == (False, "all its pixels are alike")


def test_what_lies_far_from_all_is_unlike_all():
    found = ROUTER.route(picture(-60.0))
    assert not found.known and found.reason.startswith("at most 0.3 % of any stage's own pictures")


def test_nearly_all_of_a_stages_own_pictures_are_known():
    known = [ROUTER.route(picture(3.0, seed=seed)).known for seed in range(100, 400)]
    # 97 % are expected; five standard deviations below.
    assert np.mean(known) > 0.97 - 5 * (2 * 0.03 * 0.97 / 300) ** 0.5


def test_where_one_stage_has_no_statistics_cosines_decide_and_it_says_so():
    bare = replace(FILM, prototype=replace(FILM.prototype, statistics=None))
    found = PictureRouter({0: STAIN, 1: bare}, 0.05).route(picture(3.0))
    assert not found.calibrated and found.best.alike is None
    # The header still counts.
    assert [one.stage for one in PictureRouter({0: STAIN, 1: bare}, 0.05).route(
        picture(3.0, "DX")).choices] == [1]  # fmt: skip


def with_statistics(stage: RoutedStage, made: DescriptorStatistics) -> RoutedStage:
    return replace(stage, prototype=replace(stage.prototype, statistics=made))


def never_like(stage: RoutedStage) -> RoutedStage:
    """The stage, all of whose own pictures lie nearer to the others than any other picture."""
    made = stage.prototype.statistics
    assert made is not None
    return with_statistics(stage, replace(made, distances=(300, *[0] * (BINS - 1))))


def test_probabilities_are_those_of_normal_densities_softened():
    wide = with_statistics(FILM, statistics(3.1 * USUAL + 1.1 * rows_of(5, 300), ""))
    stages, seen = {0: FILM, 1: wide}, picture(3.0)
    logs: list[float] = []
    for place, one in stages.items():
        made = one.prototype.statistics
        assert made is not None
        covariance = regular(made.covariance.astype(np.float64), USUAL)
        apart = seen.descriptor - made.mean
        squared = float(apart @ np.linalg.solve(covariance, apart))
        logs.append(-(squared + np.linalg.slogdet(covariance)[1]) / 2)
        found = {c.stage: c for c in PictureRouter(stages, 0.05).route(seen).choices}[place]
        assert found.alike == pytest.approx(tail_share(made.distances, squared))
    weights = [math.exp((log - max(logs)) / LIKELIHOOD_TEMPERATURE) for log in logs]
    choices = PictureRouter(stages, 0.05).route(seen).choices
    expected = [weight / sum(weights) for weight in weights]
    assert min(expected) > 0.01
    assert {one.stage: one.probability for one in choices} == pytest.approx(
        dict(enumerate(expected))
    )


def test_a_covariance_that_rounding_has_left_below_zero_is_taken_as_one_of_zero():
    made = FILM.prototype.statistics
    assert made is not None
    below, zero = (
        with_statistics(FILM, replace(made, covariance=np.float32(least) * np.eye(len(made.mean))))
        for least in (-1e-3, 0.0)
    )
    found = [PictureRouter({0: one, 1: STAIN}, 0.05).route(picture(3.0)) for one in (below, zero)]
    assert found[0] == found[1]


def test_a_stage_whose_pictures_had_no_code_takes_those_that_have_one():
    found = ROUTER.route(picture(3.0, "DX"))
    assert (found.best.stage, found.known) == (1, True)


def test_of_stages_that_it_is_unlike_and_one_that_its_silent_header_rules_out_the_latter_is_named():
    silent = stage("silent", Modality.CT, 3.0, "CT")
    found = PictureRouter({0: never_like(FILM), 1: silent}, 0.05).route(picture(3.0))
    assert (found.best.stage, found.known) == (1, False)
    assert "as those of all pictures of silent do" in found.reason


def test_behind_the_best_stages_come_by_probability_whether_the_picture_is_like_them_or_not():
    stages = {0: FILM, 1: FILM, 2: never_like(FILM)}
    asked = QuestionLikeness({0: ["how large?"], 1: ["which side is it?"]})
    found = PictureRouter(stages, 0.05, asked).route(picture(3.0), "which side is it?")
    assert [one.stage for one in found.choices] == [1, 2, 0]
