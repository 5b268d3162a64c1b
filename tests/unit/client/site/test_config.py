"""The site file."""

from pathlib import Path

import pytest

from client.site.config import Device, Plans, load_site
from common.errors import SiteFailed
from common.plan_fields import Modality
from simulation import hospitals

GOOD = """\
name: north
data: data
base_model: /models/tiny
store: ../store
device: auto
threads: 2
policy: {modalities: [ct, radiology], plans: approved, rounds: 10, examples: 20}
federation: {address: "a.example.org:443", ca: ca.crt, key: /keys/north, approved: approved}
"""
FEDERATION = GOOD[GOOD.index("federation") :]


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
    assert site.federation is not None
    assert site.federation.ca == tmp_path / "ca.crt"
    assert site.federation.key == Path("/keys/north")
    assert site.federation.approved == tmp_path / "approved"


def test_what_is_left_out_has_one_default(tmp_path: Path):
    text = GOOD.replace(FEDERATION, "").replace("plans: approved", "plans: any")
    site = load_site(written(tmp_path, text))
    assert (site.workers, site.zero, site.checkpoint_seconds, site.federation) == (1, 2, 300, None)
    assert (site.feature_cache_gib, site.policy.images) == (8, 50)


def test_features_of_pictures_need_not_be_kept(tmp_path: Path):
    site = load_site(
        written(tmp_path, GOOD.replace("threads: 2", "threads: 2\nfeature_cache_gib: 0"))
    )
    assert site.feature_cache_gib == 0


def test_a_policy_is_read_as_what_it_means(tmp_path: Path):
    policy = load_site(written(tmp_path, GOOD)).policy
    assert policy.modalities == (Modality.CT, Modality.RADIOLOGY)
    assert (policy.plans, policy.rounds, policy.examples) == (Plans.APPROVED, 10, 20)
    unlimited = load_site(written(tmp_path, GOOD.replace("rounds: 10", "rounds: null")))
    assert unlimited.policy.rounds is None


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("threads: 2", "threads: 0", "threads: found 0, expected at least 1"),
        ("threads: 2", "threads: 1000000000", "threads: found 1000000000, expected at most 1024"),
        ("rounds: 10", "rounds: 1000000000000", "policy.rounds: found 1000000000000, expected at "),
        ("[ct, radiology]", "[xry]", "policy.modalities.0: found 'xry', expected one of 'patho"),
        ("threads: 2", "threads: two", "threads: found 'two', expected a whole number"),
        ("threads: 2\n", "", "threads: found nothing, expected a value"),
        ("threads: 2", "threads: 2\nzero: 4", "zero: found 4, expected one of 1, 2 or 3"),
        (
            "threads: 2",
            "threads: 2\ncheckpoint_seconds: 0",
            "checkpoint_seconds: found 0, expected more than 0",
        ),
        (
            "threads: 2",
            "threads: 2\nfeature_cache_gib: -1",
            "feature_cache_gib: found -1, expected at least 0",
        ),
        (
            "threads: 2",
            "threads: 2\nfeature_cache_gib: .inf",
            "feature_cache_gib: found inf, expected a finite number",
        ),
        (
            "threads: 2",
            "threads: 2\nfeature_cache_gib: lots",
            "feature_cache_gib: found 'lots', expected a number",
        ),
        ("device: auto", "device: gpu", "device: found 'gpu', expected one of 'cpu', 'cuda'"),
        ("name: north", "name: St. Mary", "name: found 'St. Mary', expected a pseudonym"),
        ("data: data", "data: 3", "data: found 3, expected a path"),
        ("data: data", 'data: ""', "data: found an empty text, expected the name of a file or"),
        ("ca: ca.crt", 'ca: ""', "federation.ca: found an empty text, expected the name of a"),
        ("name: north", "name: north\ngpu: 1", "gpu: found an unknown field, expected only name,"),
        (
            "rounds: 10",
            "rounds: 10, gpu: 1",
            "policy.gpu: found an unknown field, expected only modalities, plans, rounds, examples",
        ),
        ("rounds: 10", "rounds: 0", "policy.rounds: found 0, expected at least 1"),
        ("[ct, radiology]", "[]", "policy.modalities: found [], expected at least one"),
        ("[ct, radiology]", "ct", "policy.modalities: found 'ct', expected a list"),
        ("radiology]", "xry]", "policy.modalities.1: found 'xry', expected one of 'pathology', "),
        ("plans: approved", "plans: all", "policy.plans: found 'all', expected one of 'approved'"),
        ("policy: {", "policy: 3 # {", "policy: found 3, expected fields of its own"),
        ("org:443", "org", "federation.address: found 'a.example.org', expected HOST:PORT"),
        ("ca: ca.crt", "ca: 3", "federation.ca: found 3, expected a path"),
        (
            FEDERATION,
            "",
            "policy.plans: found 'approved', expected a federation with a folder `approved`",
        ),
        (GOOD, "- north", "found ['north'], expected the fields of a site"),
        (GOOD, "name: [", "not YAML"),
    ],
)
def test_a_mistake_names_file_field_and_what_was_expected(
    tmp_path: Path, old: str, new: str, sentence: str
):
    file = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(SiteFailed) as caught:
        load_site(file)
    said = str(caught.value)
    assert said.startswith((f"{file}, {sentence}", f"{file}: {sentence}"))
    assert "\n" not in said


def test_all_mistakes_are_listed_at_once(tmp_path: Path):
    file = written(tmp_path, GOOD.replace("auto", "gpu").replace("threads: 2", "threads: 0"))
    with pytest.raises(SiteFailed, match=r"device: .*\n.*threads: "):
        load_site(file)


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path):
    said = r"can't be read as a site file"
    with pytest.raises(SiteFailed, match=rf"nowhere\.yaml: {said} \(No such file or directory\)"):
        load_site(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: n\xf6rd")
    with pytest.raises(SiteFailed, match=rf"latin\.yaml: {said} \(not UTF-8 text\)"):
        load_site(tmp_path / "latin.yaml")


def test_the_example_in_sites_is_a_site_file():
    example = Path(__file__).resolve().parents[4] / "sites" / "example.yaml"
    assert load_site(example).name == "north"


def test_a_simulated_site_takes_part_in_everything(tmp_path: Path):
    # The only way in is private: the whole of `prepare` makes pictures, too.
    write = hospitals._write_site_file  # pyright: ignore[reportPrivateUsage]
    shared = (tmp_path / "base", tmp_path / "reference")
    write(tmp_path / "sites" / "a", tmp_path / "sites", tmp_path / "data", shared)
    site = load_site(tmp_path / "sites" / "a" / "site.yaml")
    assert (site.name, site.federation) == ("a", None)
    assert site.store == tmp_path / "sites" / "a" / "store"
    assert site.data.resolve() == tmp_path / "data"
    assert set(site.policy.modalities) == set(Modality)
    assert (site.policy.plans, site.policy.rounds, site.policy.examples) == (Plans.ANY, None, 1)
