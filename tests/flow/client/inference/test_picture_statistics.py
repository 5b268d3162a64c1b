"""Statistics from picture files to the router's word: own pictures, foreign ones, and headers."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from client.backbones.llava import LlavaBackbone
from client.data import images
from client.data.images import decode_image
from client.inference.image_prototype import picture_of, prototype_of_images
from client.inference.router import PictureRouter, RoutedStage
from client.model.llava import load_llava
from common.plan_fields import Modality, Precision
from common.router.descriptor_statistics import DESCRIPTORS
from simulation.hospitals import BASE_MODELS
from tests.unit.dicom_files import dicom

COUNT = 90


@pytest.fixture(scope="module")
def model() -> LlavaBackbone:
    torch.set_num_threads(1)
    return LlavaBackbone(load_llava(BASE_MODELS["tiny-llava"], Precision.FP32, torch.device("cpu")))


def blobs(seed: int) -> np.ndarray:
    """A few soft spots, 32 x 32, grey levels of 0 to 255."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    spots = [
        np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * s**2))
        for a, b, s in draw.uniform([4, 4, 2], [28, 28, 6], (4, 3))
    ]
    return (255 * np.clip(sum(spots) + 0.02 * draw.standard_normal((32, 32)), 0, 1)).astype(
        np.uint8
    )


def stripes(seed: int) -> np.ndarray:
    """Stripes of brown and pink in some direction."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    turn, pitch = draw.uniform(0, np.pi), draw.uniform(0.5, 1.5)
    wave = np.sin(pitch * (x * np.cos(turn) + y * np.sin(turn)))[..., None]
    colour: npt.NDArray[np.float64] = np.array([190, 120, 140]) + wave * np.array([40, 50, 30])
    return (colour + draw.normal(0, 8, colour.shape)).clip(0, 255).astype(np.uint8)


def saved(folder: Path, name: str, pixels: np.ndarray) -> Path:
    file = folder / f"{name}.png"
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def router(model: LlavaBackbone, folder: Path) -> PictureRouter:
    stages: dict[int, RoutedStage] = {}
    for place, (kind, modality) in enumerate(
        ((blobs, Modality.MICROSCOPY), (stripes, Modality.PATHOLOGY))
    ):
        name = kind.__name__
        files = [saved(folder, f"{name}{seed}", kind(seed)) for seed in range(COUNT)]
        found = prototype_of_images(model, files, 50, statistics=True)
        assert found is not None and found.statistics is not None
        assert sum(found.statistics.distances) == found.images == COUNT
        assert found.statistics.code == ""
        stages[place] = RoutedStage(found, modality, name)
    return PictureRouter(stages, 0.05)


def test_pictures_of_its_kind_find_their_stage_and_are_known(
    router: PictureRouter, model: LlavaBackbone, folder: Path
):
    for place, kind in enumerate((blobs, stripes)):
        files = [saved(folder, f"new{place}{seed}", kind(seed)) for seed in range(1000, 1040)]
        found = [router.route(picture_of(model, file)) for file in files]
        assert all(one.best.stage == place for one in found)
        # 39 of 40 are expected; five standard deviations below.
        assert sum(one.known for one in found) >= 33


def test_noise_black_and_a_photograph_are_unlike_all(
    router: PictureRouter, model: LlavaBackbone, folder: Path
):
    data = pytest.importorskip("skimage.data")
    draw = np.random.default_rng(0)
    foreign = {
        "noise": draw.integers(0, 256, (64, 64, 3), dtype=np.uint8),
        "grey_noise": draw.integers(0, 256, (64, 64), dtype=np.uint8),
        "black": np.zeros((64, 64), np.uint8),
        "coffee": data.coffee(),
    }
    for name, pixels in foreign.items():
        found = router.route(picture_of(model, saved(folder, name, pixels)))
        assert not found.known and found.reason, name
    black = router.route(picture_of(model, folder / "black.png"))
    assert black.reason == "all its pixels are alike"


def test_a_picture_is_decoded_once(
    model: LlavaBackbone, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    decoded: list[Path] = []

    def count(file: Path) -> Image.Image:
        decoded.append(file)
        return decode_image(file)

    monkeypatch.setattr(images, "decode_image", count)
    file = saved(folder, "once", blobs(2000))
    unknown, known = picture_of(model, file), picture_of(model, file)
    # Its features are kept, its pixels are not.
    assert decoded == [file, file]
    np.testing.assert_array_equal(unknown.feature, known.feature)


def test_a_files_own_header_counts(router: PictureRouter, model: LlavaBackbone, folder: Path):
    file = dicom(folder / "scan.dcm", blobs(0), Modality="CT")
    found = router.route(picture_of(model, file))
    assert not found.known and found.reason.startswith("its file says CT, and the bank has learned")


def test_of_fewer_pictures_than_numbers_none_are_given(model: LlavaBackbone, folder: Path):
    files = [saved(folder, f"few{seed}", blobs(seed)) for seed in range(DESCRIPTORS - 1)]
    found = prototype_of_images(model, files, 50, statistics=True)
    assert found is not None and found.statistics is None
    copies = [*files, saved(folder, "copy", blobs(0))]
    again = prototype_of_images(model, copies, 50, statistics=True)
    assert again is not None and again.statistics is None
