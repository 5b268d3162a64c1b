"""From an image's file to what the tower takes: the same bits by every way."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks import features as benchmark
from client.data.images import decode_image, load_image, pad_to_square
from client.model import preprocess
from client.model.feature_store import FeatureStore
from client.model.preprocess import ImagePixels, Preprocessor, StoredFeatures, extractor_digest
from client.training.prefetch import prefetching
from common.errors import DataError
from tests.flow.tiny_llava import write_picture

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def processor() -> CLIPImageProcessorPil:
    side = {"height": 64, "width": 64}
    return CLIPImageProcessorPil(size=side, do_center_crop=False, image_mean=[0.5, 0.4, 0.3])


def preparation(
    processor: CLIPImageProcessorPil, store: FeatureStore | None = None, maker: str = "maker"
) -> Preprocessor:
    return Preprocessor(processor, store, maker)


def store_in(folder: Path) -> FeatureStore:
    return FeatureStore(folder / "features", 2**24, spare_bytes=0)


def pixels_of(prepare: Preprocessor, file: Path) -> ImagePixels:
    prepared = prepare(file)
    assert isinstance(prepared, ImagePixels)
    return prepared


def kept(prepare: Preprocessor, file: Path) -> torch.Tensor | None:
    """What is kept of the file; None where the tower has to look."""
    prepared = prepare(file)
    return prepared.features if isinstance(prepared, StoredFeatures) else None


def keep(prepare: Preprocessor, file: Path, features: torch.Tensor) -> None:
    key = pixels_of(prepare, file).key
    assert key is not None and prepare.store is not None
    prepare.store.save(key, features)


def test_the_pixels_are_those_of_the_padded_image(processor: CLIPImageProcessorPil, tmp_path: Path):
    file = write_picture(tmp_path / "a.png", 1, (70, 31))
    square = pad_to_square(load_image(file), (127, 102, 76))
    expected = processor(square, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels_of(preparation(processor), file).pixels, expected)


def test_without_a_store_there_is_no_key(processor: CLIPImageProcessorPil, tmp_path: Path):
    assert pixels_of(preparation(processor), write_picture(tmp_path / "a.png", 1)).key is None


def test_stored_features_are_found_under_any_name_of_the_image(
    processor: CLIPImageProcessorPil, tmp_path: Path
):
    prepare, features = preparation(processor, store_in(tmp_path)), torch.randn(4, 3)
    file = write_picture(tmp_path / "a.png", 1)
    keep(prepare, file, features)
    (tmp_path / "elsewhere").mkdir()
    moved = file.rename(tmp_path / "elsewhere" / "b.png")
    found = kept(prepare, moved)
    assert found is not None and torch.equal(found, features)
    assert kept(prepare, write_picture(tmp_path / "a.png", 2)) is None


def test_an_image_that_is_replaced_is_another(processor: CLIPImageProcessorPil, tmp_path: Path):
    prepare = preparation(processor, store_in(tmp_path))
    file = write_picture(tmp_path / "a.png", 1)
    keep(prepare, file, torch.ones(4, 3))
    status = file.stat()
    write_picture(file, 2)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert kept(prepare, file) is None


def test_features_of_a_replaced_image_are_not_found_by_its_name(
    processor: CLIPImageProcessorPil, tmp_path: Path
):
    prepare, file = preparation(processor, store_in(tmp_path)), tmp_path / "a.bmp"
    keys: list[str | None] = []
    for number in range(2):
        other = write_picture(tmp_path / "new.bmp", number)
        os.utime(other, (1e9, 1e9))
        while file.exists() and other.stat().st_ctime_ns == file.stat().st_ctime_ns:
            os.utime(other, (1e9, 1e9))
        other.rename(file)
        keys.append(pixels_of(prepare, file).key)
    assert None not in keys and keys[0] != keys[1]


def test_an_image_replaced_while_it_is_read_is_not_stored(
    processor: CLIPImageProcessorPil, tmp_path: Path
):
    file = write_picture(tmp_path / "a.png", 1)

    def read(file: Path):
        image = load_image(file)
        write_picture(file, 2, (20, 20))
        return image

    prepare = replace(preparation(processor, store_in(tmp_path)), read=read)
    assert pixels_of(prepare, file).key is None


def test_another_extractor_finds_nothing(processor: CLIPImageProcessorPil, tmp_path: Path):
    store, file = store_in(tmp_path), write_picture(tmp_path / "a.png", 1)
    keep(preparation(processor, store, "fp32"), file, torch.ones(4, 3))
    assert kept(preparation(processor, store, "bf16"), file) is None
    assert kept(preparation(processor, store, "fp32"), file) is not None


def test_a_dicom_suffix_is_part_of_the_key(processor: CLIPImageProcessorPil, tmp_path: Path):
    prepare, file = preparation(processor, store_in(tmp_path)), write_picture(tmp_path / "a.png", 1)
    keep(prepare, file, torch.ones(4, 3))
    as_dicom = file.rename(tmp_path / "a.dcm")
    with pytest.raises(DataError, match=r"a\.dcm: found a file that is not DICOM"):
        prepare(as_dicom)


def test_another_cpu_is_another_extractor(monkeypatch: pytest.MonkeyPatch):
    here = extractor_digest("model", CPU)
    monkeypatch.setattr(preprocess, "_cpu", lambda: "another")
    assert extractor_digest("model", CPU) != here


def test_the_extractor_digest_depends_on_model_and_threads():
    before, one = torch.get_num_threads(), extractor_digest("model", CPU)
    try:
        assert extractor_digest("model", CPU) == one != extractor_digest("other", CPU)
        torch.set_num_threads(before + 1)
        assert extractor_digest("model", CPU) != one
    finally:
        torch.set_num_threads(before)


def test_no_name_of_an_image_is_in_the_store(processor: CLIPImageProcessorPil, tmp_path: Path):
    file = write_picture(tmp_path / "data" / "anna-smith.png", 1)
    keep(preparation(processor, store_in(tmp_path)), file, torch.ones(4, 3))
    paths = list((tmp_path / "features").rglob("*"))
    (entry,) = (path for path in paths if path.is_file())
    assert b"anna" not in entry.read_bytes()
    assert not [path for path in paths if "anna" in path.name]


@pytest.mark.parametrize("content", [None, b"", b"no image", b"\xff\xd8\xff\xe0 cut off"])
def test_an_image_that_cant_be_read_is_refused_in_the_same_sentence_by_every_way(
    processor: CLIPImageProcessorPil, tmp_path: Path, content: bytes | None
):
    file = tmp_path / "a.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError) as expected:
        load_image(file)
    for store in (None, store_in(tmp_path)):
        prepare = preparation(processor, store)
        with pytest.raises(DataError) as alone:
            prepare(file)
        assert str(alone.value) == str(expected.value)
        with prefetching(replace(prepare, read=decode_image)) as prefetcher:
            prefetcher.prefetch([file])
            with pytest.raises(DataError) as aside:
                prefetcher.get(file)
        assert str(aside.value) == str(expected.value)


def test_a_folder_is_no_image_by_any_way(processor: CLIPImageProcessorPil, tmp_path: Path):
    with pytest.raises(DataError, match="found a folder, expected an image"):
        preparation(processor, store_in(tmp_path))(tmp_path)


def test_two_threads_at_once_prepare_the_same_bits_as_one(
    processor: CLIPImageProcessorPil, tmp_path: Path
):
    sizes = [(300 + 7 * number, 200) for number in range(12)]
    files = [write_picture(tmp_path / f"{i}.png", i, size) for i, size in enumerate(sizes)]
    alone = [pixels_of(preparation(processor), file).pixels for file in files]
    aside: set[str] = set()

    def read(file: Path):
        aside.add(threading.current_thread().name)
        return decode_image(file)

    for _ in range(3):
        with prefetching(replace(preparation(processor), read=read)) as prefetcher:
            prefetcher.prefetch(files)
            for file, expected in zip(reversed(files), reversed(alone), strict=True):
                prepared = prefetcher.get(file)
                assert isinstance(prepared, ImagePixels) and torch.equal(prepared.pixels, expected)
    assert len(aside) > 1


def test_the_benchmark_reads_features_that_are_to_the_bit_those_of_the_plain_way():
    size = benchmark.EpochSizes(pictures=3, side=64, seen=28, width=64, batch=2, step_s=0.0)
    found = benchmark.run(repeats=1, size=size).to_json()
    assert found["name"] == "features" and found["equal_to"] == 0.0
    assert found["settings"]["first_epoch"] > 0
