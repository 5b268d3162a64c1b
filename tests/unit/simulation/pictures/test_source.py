# pydicom's datasets know their elements only at run time.
# pyright: reportUnknownMemberType=false

from collections import Counter
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import DataError
from common.identity import canonical_json, sha256
from common.plan_fields import Modality
from simulation.pictures import sources as sources
from simulation.pictures import truths as truths
from simulation.pictures.brain_slices import MIDDLE_X, Plane, plane_slabs, upright
from simulation.pictures.picture_task import Crop, CropLocation, PictureTask
from simulation.pictures.regions import GAP, Box, Split, cells, hold_out, share, shrunk, slabs
from simulation.pictures.source import SOURCE, crops, picture_questions, picture_validation
from simulation.pictures.sources import package_file, picture
from simulation.pictures.tasks import MATTER, MEASURED
from simulation.pictures.truths import CropView
from simulation.pictures.words import disc, with_ring, words
from simulation.pretraining.make_crops import pretraining_crops

PACKAGES = ("skimage", "stardist", "nilearn", "pydicom", "data_store", "nibabel")
#: The tasks of tests/unit/simulation/pictures/test_labelled.py have other packages.
NAMES = [one.name for one in MEASURED]
needs_pictures = pytest.mark.skipif(
    any(find_spec(name) is None for name in PACKAGES),
    reason='the packages of the extra "sim" are not installed',
)


def task(name: str) -> PictureTask:
    return next(one for one in MEASURED if one.name == name)


def drawn(name: str, split: Split, count: int = 60) -> list[Crop]:
    """Some cut-outs of every region of a task, before any balancing."""
    regions = task(name).regions(split)
    rng = np.random.default_rng(1)
    return [regions[i % len(regions)](rng) for i in range(max(count, len(regions)))]


def separation(one: Box, other: Box) -> int:
    """Unused rows or columns between two boxes; negative where they overlap."""
    down = max(one.top, other.top) - min(one.top + one.height, other.top + other.height)
    across = max(one.left, other.left) - min(one.left + one.width, other.left + other.width)
    return max(down, across)


def depth(place: CropLocation) -> int:
    """The slice's number, the same for a sagittal slice and its mirror image."""
    assert place.slice is not None
    return abs(place.slice - MIDDLE_X) if place.source == "sagittal" else place.slice


def view(truth: NDArray[np.float32], ring: tuple[int, int] = (32, 32)) -> CropView:
    level = np.rint(truth / max(float(truth.max()), 1.0) * 255).astype(np.uint8)
    shown = np.repeat(shrunk(level)[..., None], 3, axis=2)
    return CropView("x", shown, truth.astype(np.float32), ring)


# Regions.


@given(st.integers(60, 300), st.integers(60, 300), st.integers(1, 7), st.integers(1, 7))
def test_cells_lie_inside_and_never_closer_than_the_gap(
    height: int, width: int, rows: int, columns: int
) -> None:
    found = cells(height, width, rows, columns)
    assert len(found) == rows * columns
    for cell in found:
        assert 0 <= cell.box.top <= cell.box.top + cell.box.height <= height
        assert 0 <= cell.box.left <= cell.box.left + cell.box.width <= width
    for one, other in product(found, found):
        assert one is other or separation(one.box, other.box) >= GAP


def test_the_test_cells_of_a_grid_of_four_are_one_in_each_row_and_column() -> None:
    found = cells(100, 100, 4, 4, gap=0)
    tests = [cell.box for cell in found if cell.split is Split.TEST]
    assert sorted(box.top for box in tests) == [0, 25, 50, 75]
    assert sorted(box.left for box in tests) == [0, 25, 50, 75]


def test_slabs_leave_four_slices_between_train_and_test() -> None:
    found = slabs(10, 150)
    assert [part for _, part in found][:4] == [Split.TRAIN, Split.TEST, Split.TRAIN, Split.TRAIN]
    for (one, _), (other, _) in pairwise(found):
        assert other[0] - one[-1] - 1 == 4


def test_sites_share_all_regions_and_no_region_goes_to_two() -> None:
    regions = list(range(11))
    dealt = [set(share(regions, site, 3)) for site in range(3)]
    assert {region for regions_of_one in dealt for region in regions_of_one} == set(regions)
    assert sum(map(len, dealt)) == 11
    assert share([7], 2, 3) == [7]


@needs_pictures
@pytest.mark.parametrize("name", NAMES)
def test_no_test_cut_out_touches_a_training_cut_out(name: str) -> None:
    check_apart(drawn(name, Split.TRAIN), drawn(name, Split.TEST))


@needs_pictures
@pytest.mark.parametrize("name", NAMES)
def test_no_validation_cut_out_touches_one_to_learn_from(name: str) -> None:
    # Both are training regions, so that neither touches the test's.
    learned, held_out = hold_out(task(name).regions(Split.TRAIN))
    assert not {*learned} & {*held_out}
    rng = np.random.default_rng(1)
    ones, others = ([region(rng) for region in part] for part in (learned, held_out))
    check_apart(ones, others)
    assert {one.location.source for one in ones} == {one.location.source for one in others}


@needs_pictures
def test_a_site_is_validated_on_as_many_questions_as_the_test_has() -> None:
    train, validation = picture_validation("stain", 1, 3, 0)
    _, test = picture_questions("stain", 1, 3, 0)
    assert abs(len(validation) - len(test)) <= 2
    assert {q.group for q in train}.isdisjoint({q.group for q in validation})
    assert {(q.question, q.answer) for q in validation} == {(q.question, q.answer) for q in test}


def check_apart(ones: list[Crop], others: list[Crop]) -> None:
    """Check that no cut-out of one list has a pixel of another's, or a slice near it."""
    for one, other in product(ones, others):
        if one.location.source != other.location.source:
            continue
        if one.location.slice is None:
            assert separation(one.location.box, other.location.box) >= GAP
        else:
            assert abs(depth(one.location) - depth(other.location)) > 4


@needs_pictures
def test_a_cut_out_is_where_its_place_says() -> None:
    one = next(one for one in drawn("film", Split.TEST) if one.location.source == "leg film")
    box, whole = one.location.box, picture(sources.leg_film).shown
    direct = whole[box.top : box.top + box.height, box.left : box.left + box.width]
    np.testing.assert_array_equal(shrunk(direct), one.shown)


@needs_pictures
def test_the_template_is_its_own_mirror_so_that_sides_can_not_be_split() -> None:
    t1 = sources.brain().t1
    np.testing.assert_array_equal(t1, t1[::-1])
    assert t1.shape[0] == 2 * MIDDLE_X + 1


@needs_pictures
def test_the_regions_are_those_that_the_embedded_model_was_trained_beside() -> None:
    # The vision tower has seen every train region. Whoever moves a region must train it anew,
    # or the tower has seen test regions: change this digest only together with the weights.
    flat = [
        [p.name, split.value, box.top, box.left, box.height, box.width]
        for p in map(picture, sources.FLAT)
        for split in Split
        for box in p.cells(split)
    ]
    deep = [
        [plane.name, split.value, slab.slices.start, slab.slices.stop]
        for plane in Plane
        for split in Split
        for slab in plane_slabs(plane, split)
    ]
    assert sha256(canonical_json([flat, deep]).encode())[:16] == "226f6dbdee0efc3a"


# Truths, each computed another way.


def test_stain_is_counted_above_its_threshold() -> None:
    density = np.zeros((10, 10), np.float32)
    assert truths.stained(view(density))[truths.STAIN] == "none"
    density[:3] = 0.05
    assert truths.stained(view(density))[truths.STAIN] == "some"
    density[:6] = 0.05
    assert truths.STAIN not in truths.stained(view(density))
    density[:9] = 0.05
    assert truths.stained(view(density))[truths.STAIN] == "most"


@needs_pictures
def test_the_stain_is_what_the_beer_lambert_law_and_three_vectors_say() -> None:
    # Ruifrok and Johnston (2001): haematoxylin, eosin, DAB; optical density in log10 steps.
    vectors = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    whole = picture(sources.stained_tissue)
    pixels = np.maximum(whole.shown[100:110, 100:120].astype(np.float64) / 255, 1e-6)
    density = np.log(pixels) / np.log(1e-6) @ np.linalg.inv(vectors)
    by_hand = np.maximum(density[..., 2], 0)
    np.testing.assert_allclose(whole.truth[100:110, 100:120], by_hand, rtol=1e-4, atol=1e-6)


@needs_pictures
def test_nuclei_are_counted_as_a_loop_over_the_mask_counts_them() -> None:
    mask = picture(sources.glowing_cells).truth
    for top, left in ((0, 0), (130, 260), (390, 130)):
        crop = mask[top : top + 120, left : left + 120]
        numbers = [n for n in np.unique(crop) if n > 0]
        count = sum((crop == n).sum() >= truths.NUCLEUS_PIXELS for n in numbers)
        told = truths.counted(view(crop)).get(truths.NUCLEI)
        expected = {0: "few", 1: "few", 2: "few", 4: "several", 5: "several", 6: "several"}
        assert told == expected.get(count, "many" if count >= 9 else None)


def test_a_ring_on_the_border_of_a_nucleus_is_not_asked_about() -> None:
    mask = np.zeros((128, 128), np.float32)
    mask[:64] = 1
    asked = [truths.counted(view(mask, ring)).get(truths.ON_NUCLEUS) for ring in RINGS]
    assert asked == ["yes", None, "no"]


RINGS = ((10, 40), (32, 40), (50, 40))


def test_the_end_of_the_field_is_on_the_side_that_lies_outside() -> None:
    for side, where in (
        ("left", np.s_[:, :15]),
        ("right", np.s_[:, -15:]),
        ("top", np.s_[:15]),
        ("bottom", np.s_[-15:]),
    ):
        truth = np.ones((60, 60), np.float32)
        truth[where] = 0
        assert truths.bounded(view(truth))[truths.FIELD_END] == side
    corner = np.ones((60, 60), np.float32)
    corner[:30, :30] = 0
    assert truths.FIELD_END not in truths.bounded(view(corner))
    assert truths.bounded(view(np.ones((60, 60), np.float32)))[truths.FIELD_END] == "nowhere"


def test_vessels_are_a_part_of_the_field() -> None:
    truth = np.ones((10, 10), np.float32)
    truth[:1] = 2
    assert truths.bounded(view(truth))[truths.VESSELS] == "some"
    truth[:2] = 2
    assert truths.bounded(view(truth))[truths.VESSELS] == "much"


def test_bone_and_air_follow_hounsfield_units() -> None:
    body = np.full((10, 10), 40.0, np.float32)
    assert truths.measured(view(body)) == {truths.BONE: "none", truths.AIR: "no"}
    body[0] = 700.0
    body[9] = -900.0
    assert truths.measured(view(body)) == {truths.BONE: "some", truths.AIR: "yes"}
    assert truths.measured(view(np.full((4, 4), -1000.0, np.float32))) == {}


@needs_pictures
def test_the_sides_of_a_film_agree_with_its_raw_plate_values() -> None:
    import pydicom

    file = package_file("data_store", "data", "RG1_UNCR.dcm")
    plate = pydicom.dcmread(file).pixel_array.astype(np.float64)
    compared = 0
    for one in drawn("film", Split.TRAIN, 120):
        side = one.answers.get(truths.FREE_SIDE)
        if side is None or one.location.source != "chest film":
            continue
        box = one.location.box
        raw = plate[2 * box.top : 2 * (box.top + box.height)][
            :, 2 * box.left : 2 * (box.left + box.width)
        ]
        half = raw.shape[0] // 2
        flipped = {"top": raw, "bottom": raw[::-1], "left": raw.T, "right": raw.T[::-1]}[side]
        assert np.median(flipped[:half]) > np.median(flipped[-half:])
        compared += 1
    assert compared > 10


def test_flow_has_the_colour_that_most_painted_pixels_have() -> None:
    speckle = np.arange(100, dtype=np.float32).reshape(10, 10)
    told: list[truths.Answers] = []
    for colour, rows in ((0, 0), (1, 3), (2, 3)):
        truth = np.zeros((10, 10), np.float32)
        truth[:rows] = colour
        shown = view(speckle).shown
        told.append(truths.flowing(CropView("x", shown, truth, (32, 32))))
    assert [t[truths.FLOW] for t in told] == ["none", "red", "blue"]
    assert [t[truths.FLOW_AMOUNT] for t in told] == ["none", "much", "much"]


@needs_pictures
def test_a_ring_lies_on_the_matter_that_the_masks_give() -> None:
    brain = sources.brain()
    told = [one for one in drawn("matter", Split.TEST) if one.answers]
    assert len(told) > 20
    for one in told:
        assert one.location.slice is not None
        green = (one.shown == (0, 255, 0)).all(axis=2)
        row, column = (float(np.mean(axis)) + 0.5 for axis in np.nonzero(green))
        box = one.location.box
        down = int(box.top + row * box.height / 64)
        across = int(box.left + column * box.width / 64)
        grey, white = (
            int(upright(volume, Plane.AXIAL, one.location.slice)[down, across])
            for volume in (brain.grey, brain.white)
        )
        expected = {"grey": grey > white, "white": white > grey, "fluid": max(grey, white) < 128}
        assert expected[one.answers[MATTER]]


@needs_pictures
def test_a_sagittal_slice_is_mirrored_by_none_and_an_axial_one_by_itself() -> None:
    t1 = sources.brain().t1
    axial, sagittal = upright(t1, Plane.AXIAL, 80), upright(t1, Plane.SAGITTAL, 98)
    middle = axial[:, 21:218]
    np.testing.assert_array_equal(middle, middle[:, ::-1])
    assert (sagittal != sagittal[:, ::-1]).mean() > 0.1


# Tasks.


@needs_pictures
def test_there_are_enough_tasks_and_a_modality_comes_back() -> None:
    modalities = list(SOURCE.tasks.values())
    assert list(SOURCE.tasks)[: len(NAMES)] == NAMES
    assert len(NAMES) >= 6
    assert len(set(modalities)) >= 4
    first = modalities.index(Modality.PATHOLOGY)
    assert Modality.PATHOLOGY in modalities[first + 2 :]


@cache
def site_crops(name: str, split: Split) -> list[Crop]:
    """The cut-outs of the first of three sites."""
    return crops(task(name), split, 0, 3, 0)


@needs_pictures
@pytest.mark.parametrize("name", ["plane", "bone", "crowding"])
def test_the_same_arguments_give_the_same_questions(name: str) -> None:
    one, other = picture_questions(name, 1, 3, 5), picture_questions(name, 1, 3, 5)
    assert [len(part) for part in one] == [len(part) for part in other]
    for a, b in zip([*one[0], *one[1]], [*other[0], *other[1]], strict=True):
        assert (a.question, a.answer, a.group, a.dicom) == (b.question, b.answer, b.group, b.dicom)
        np.testing.assert_array_equal(a.image, b.image)
    assert {q.group for q in one[0]}.isdisjoint({q.group for q in one[1]})


@needs_pictures
@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_asked_for_about_equally_often(name: str) -> None:
    for split, least in ((Split.TRAIN, 120), (Split.TEST, 50)):
        asked = Counter(pair for one in site_crops(name, split) for pair in one.answers.items())
        assert asked.total() >= least
        for question, answers in task(name).asks.items():
            counts = [asked[question, answer] for answer in answers]
            assert max(counts) / sum(counts) <= 1 / len(answers) + 0.17


@needs_pictures
def test_sites_learn_from_different_regions() -> None:
    seen = [
        {
            (one.location.source, one.location.slice)
            for one in crops(task("plane"), Split.TRAIN, s, 3, 0)
        }
        for s in range(3)
    ]
    assert all(i is not None for one in seen for _, i in one)
    folded = [
        {(s, abs(i - MIDDLE_X) if s == "sagittal" else i) for s, i in one if i is not None}
        for one in seen
    ]
    assert not folded[0] & folded[1]
    assert not folded[1] & folded[2]


@needs_pictures
def test_a_ct_picture_as_dicom_shows_the_same_as_the_pixels() -> None:
    import pydicom

    for one in site_crops("bone", Split.TEST)[:5]:
        assert one.dicom is not None
        image = pydicom.dcmread(BytesIO(one.dicom))
        window = (image.pixel_array + 160.0) / 400.0
        level = np.rint(np.clip(window, 0, 1) * 255).astype(np.uint8)
        again = shrunk(level).astype(int)
        assert np.abs(again - one.shown[..., 0].astype(int)).max() <= 2


def test_an_unknown_task_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="found 'teeth', expected one of stain, "):
        picture_questions("teeth", 0, 1, 0)


def test_a_missing_package_is_named_with_the_command_that_brings_it() -> None:
    with pytest.raises(DataError, match=r'package teeth is not installed.*extra "sim"'):
        package_file("teeth", "molar.png")


@needs_pictures
def test_a_missing_file_of_a_package_is_named() -> None:
    with pytest.raises(DataError, match=r"package scikit-image: found no file data/tooth\.png"):
        package_file("skimage", "data", "tooth.png")


# Pretraining crops.


@needs_pictures
def test_pretraining_crops_are_the_same_again_and_all_answer_the_same_questions() -> None:
    pixels, seen = pretraining_crops(40, 3)
    again, seen_again = pretraining_crops(40, 3)
    assert pixels.shape == (40, 64, 64, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, again)
    assert seen == seen_again
    assert {tuple(one) for one in seen} == {tuple(seen[0])}


@needs_pictures
def test_no_plain_word_is_an_answer_in_clinical_words() -> None:
    clinical = {"axial", "coronal", "sagittal", "fluid", "dense", "loose", "chest", "leg"}
    _, seen = pretraining_crops(100, 4)
    assert not clinical & {word for one in seen for word in one.values()}


def test_plain_words_name_what_is_there() -> None:
    shown = np.zeros((64, 64, 3), np.uint8)
    shown[:, 32:] = (250, 100, 20)
    told = words(shown, ring=(10, 50))
    assert (told["bright side"], told["colour"]) == ("right", "red")
    assert (told["black part"], told["warm part"]) == ("much", "much")
    assert (told["ringed place"], told["ring position"]) == ("grey", "top right")


def test_spots_are_counted() -> None:
    shown = np.full((64, 64, 3), 80, np.uint8)
    for row, column in ((12, 12), (12, 44), (44, 12)):
        shown[row : row + 4, column : column + 4] = 200
    assert words(shown, None)["bright spots"] == "few"
    assert words(shown, None)["dark spots"] == "none"


def test_a_ring_leaves_what_it_marks_untouched() -> None:
    shown = np.full((64, 64, 3), 90, np.uint8)
    marked = with_ring(shown, (20, 30))
    assert (marked[disc((20, 30))] == 90).all()
    assert (shown == 90).all()
    assert ((marked == (0, 255, 0)).all(axis=2)).sum() > 50
