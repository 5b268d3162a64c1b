"""The site file and the site's store."""

import resource
import signal
from pathlib import Path

import pytest

from client.site import Device, load_site
from client.store import get, held, put
from common.errors import SiteFailed
from common.identity import sha256

GOOD = """\
name: north
data: data
base_model: /models/tiny
store: ../store
device: auto
threads: 2
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    return file


def test_paths_are_relative_to_the_file(tmp_path: Path):
    site = load_site(written(tmp_path, GOOD))
    assert site.data == tmp_path / "data"
    assert site.base_model == Path("/models/tiny")
    assert site.store == tmp_path / ".." / "store"
    assert (site.name, site.device, site.threads) == ("north", Device.AUTO, 2)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("threads: 2", "threads: 0", "threads: found 0, expected at least 1"),
        ("threads: 2", "threads: two", "threads: found 'two', expected a whole number"),
        ("threads: 2\n", "", "threads: found nothing, expected a value"),
        ("device: auto", "device: gpu", "device: found 'gpu', expected one of 'cpu', 'cuda'"),
        ("name: north", "name: St. Mary", "name: found 'St. Mary', expected a pseudonym"),
        ("data: data", "data: 3", "data: found 3, expected a path"),
        ("name: north", "name: north\ngpu: 1", "gpu: found an unknown field, expected only name,"),
        (GOOD, "- north", "expected the fields of a site"),
        (GOOD, "name: [", "not YAML"),
    ],
)
def test_a_mistake_names_file_field_and_what_was_expected(
    tmp_path: Path, old: str, new: str, sentence: str
):
    file = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(SiteFailed) as caught:
        load_site(file)
    assert sentence in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_listed_at_once(tmp_path: Path):
    file = written(tmp_path, GOOD.replace("auto", "gpu").replace("2", "0"))
    with pytest.raises(SiteFailed, match=r"device: .*\n.*threads: "):
        load_site(file)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(SiteFailed, match=r"nowhere\.yaml: can't be read as a site file"):
        load_site(tmp_path / "nowhere.yaml")


def test_what_is_put_is_held_and_got(tmp_path: Path):
    assert held(tmp_path / "store") == ()
    digests = [put(tmp_path / "store", blob) for blob in (b"one", b"two", b"one")]
    assert digests[0] == digests[2] == sha256(b"one")
    assert held(tmp_path / "store") == tuple(sorted(set(digests)))
    assert get(tmp_path / "store", digests[1]) == b"two"


def test_a_flipped_bit_is_found_and_the_release_asked_for_again(tmp_path: Path):
    digest = put(tmp_path, b"release")
    next((tmp_path / "releases").iterdir()).write_bytes(b"relaase")
    with pytest.raises(SiteFailed, match=f"expected {digest[:12]}"):
        get(tmp_path, digest)
    assert held(tmp_path) == ()
    put(tmp_path, b"release")
    assert get(tmp_path, digest) == b"release"


def test_half_written_files_are_not_held(tmp_path: Path):
    put(tmp_path, b"release")
    (tmp_path / "releases" / f".writing-{'a' * 64}.safetensors").write_bytes(b"half")
    assert held(tmp_path) == (sha256(b"release"),)


def test_a_store_that_cannot_be_written_is_said_without_its_path(tmp_path: Path):
    (tmp_path / "store").write_text("a file is in the way")
    with pytest.raises(SiteFailed, match="could not write to the site's store") as caught:
        put(tmp_path / "store", b"release")
    assert str(tmp_path) not in str(caught.value)


def test_a_release_that_does_not_fit_on_the_disk_leaves_nothing_behind(tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(SiteFailed, match="could not write to the site's store"):
            put(tmp_path / "store", b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []
    assert held(tmp_path / "store") == ()


def test_the_example_in_sites_is_a_site_file():
    example = Path(__file__).resolve().parents[2] / "sites" / "example.yaml"
    assert load_site(example).name == "north"
