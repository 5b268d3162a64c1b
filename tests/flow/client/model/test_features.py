"""A site's work with features on its disk and images read ahead: the same to the last bit."""
# pyright: reportUnknownMemberType=false

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from client.model import feature_store
from client.model.llava import LlavaModel, load_llava
from client.site.config import Site
from client.training.checkpoint import Checkpoint, JobCancelled
from common.errors import DataError
from common.exchange import Scores, Update
from common.work import Work
from tests.flow.small_site import (
    as_in_a_new_process,
    assignment_of,
    do,
    order_of,
    plan_of,
    site_in,
    write_site,
)
from tests.flow.tiny_llava import write_picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(autouse=True)
def no_need_of_room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing need stay free on the disk of a test."""
    monkeypatch.setattr(
        feature_store.FeatureStore.__init__, "__defaults__", (0, feature_store.write_private)
    )
    yield
    as_in_a_new_process()


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each image that the tower looks at."""
    found: list[int] = []
    look = LlavaModel._tower_features  # pyright: ignore[reportPrivateUsage]

    def counted(self: LlavaModel, pixels: torch.Tensor) -> torch.Tensor:
        found.append(1)
        return look(self, pixels)

    monkeypatch.setattr(LlavaModel, "_tower_features", counted)
    return found


def trained(site: Site, remembered: bool = False) -> bytes:
    """The adapter of a round, by a process that remembers no image unless `remembered`."""
    if not remembered:
        as_in_a_new_process()
    update = do(order_of(site, plan_of(site)), site, lambda _: None, None)
    assert isinstance(update, Update)
    return update.adapter


def entries(site: Site) -> list[Path]:
    return sorted(path for path in (site.store / "features").rglob("*") if path.is_file())


def test_stored_features_change_no_bit_and_the_tower_does_not_run(
    folder: Path, tmp_path: Path, looked: list[int]
):
    without = trained(site_in(folder, tmp_path / "without", feature_cache_gib=0))
    assert len(looked) == 4 and not (tmp_path / "without" / "features").exists()
    site = site_in(folder, tmp_path / "kept")
    assert trained(site) == without
    assert (len(looked), len(entries(site))) == (8, 4)
    assert trained(site) == without
    assert len(looked) == 8


def test_a_damaged_entry_is_made_again_and_changes_no_bit(
    folder: Path, tmp_path: Path, looked: list[int]
):
    site = site_in(folder, tmp_path)
    first = trained(site)
    whole = {file: file.read_bytes() for file in entries(site)}
    for file, blob in list(whole.items())[:2]:
        file.write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    assert trained(site) == first
    assert len(looked) == 6
    assert {file: file.read_bytes() for file in entries(site)} == whole


def test_the_answers_of_a_process_that_looks_at_nothing_are_the_same(
    folder: Path, tmp_path: Path, looked: list[int]
):
    site = site_in(folder, tmp_path)
    order = order_of(site, plan_of(site), trained(site), work=Work.EVALUATE, round=0)
    del looked[:]
    as_in_a_new_process()
    with_kept = do(order, site, lambda _: None, None)
    assert looked == []
    plain = site.model_copy(update={"feature_cache_gib": 0})
    as_in_a_new_process()
    without = do(order, plain, lambda _: None, None)
    assert isinstance(with_kept, Scores) and isinstance(without, Scores)
    assert with_kept.metrics == without.metrics
    assert len(looked) == 4


def test_an_image_that_cant_be_read_stops_the_training_with_its_sentence(tmp_path: Path):
    site = site_in(write_site(tmp_path / "site"), tmp_path / "store")
    for number in range(4):
        (site.data / "first" / f"p{number}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"p\d\.png: found no image, or one truncated"):
        trained(site)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_a_training_that_goes_on_ends_with_the_same_bytes_and_no_thread(
    folder: Path, tmp_path: Path
):
    site = site_in(folder, tmp_path / "site")
    whole = trained(site)
    order, calls = order_of(site, plan_of(site)), [0]

    def wanted() -> bool:
        calls[0] += 1
        return calls[0] % 2 == 0

    for _ in range(3):
        as_in_a_new_process()
        with pytest.raises(JobCancelled):
            do(order, site, lambda _: None, Checkpoint(tmp_path / "point", 0.0, wanted))
        calls[0] = 0
    as_in_a_new_process()
    update = do(order, site, lambda _: None, Checkpoint(tmp_path / "point", 0.0))
    assert isinstance(update, Update) and update.adapter == whole
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_images_that_swap_names_are_encoded_again_though_size_and_time_are_equal(
    tmp_path: Path,
):
    site = site_in(write_site(tmp_path / "site"), tmp_path / "store")
    # As an archive leaves images of one size: written in the same second.
    one, other = (site.data / "first" / f"p{number}.png" for number in range(2))
    for number, file in enumerate((one, other)):
        write_picture(file.with_suffix(".bmp"), number).rename(file)
        os.utime(file, (1e9, 1e9))
    before = trained(site)
    aside = one.rename(tmp_path / "aside.png")
    other.rename(one)
    aside.rename(other)
    after = trained(site, remembered=True)
    assert after == trained(site_in(tmp_path / "site", tmp_path / "fresh")) != before


def test_an_image_that_changed_since_it_was_prefetched_is_read_again(folder: Path, tmp_path: Path):
    assignment = assignment_of(
        order_of(site := site_in(folder, tmp_path), plan_of(site)), site, None
    )
    model = load_llava(site.base_model, assignment.plan.training.precision, torch.device("cpu"))
    file = write_picture(tmp_path / "a.png", 1)
    before = model.preprocessor()(file)
    write_picture(file, 2, (20, 20))
    expected = model.image_features([write_picture(tmp_path / "b.png", 2, (20, 20))])
    assert torch.equal(model.image_features([file], lambda _: before), expected)
