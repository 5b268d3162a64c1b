import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.adapter import Adapter, to_bytes
from common.bank.bank import Bank, verify_bank
from common.bank.check import Expected
from common.bank.release import Draft, Release, signed_bytes
from common.durable import Disk
from common.errors import BankError
from common.plan_fields import BaseModelPin, Precision
from common.signing import SigningKey
from tests.unit.small_bank import BASE, KEY, adapter, bank_of, blob, draft


def tree(folder: Path) -> dict[str, bytes]:
    """Every file beneath `folder` with its bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def problems(folder: Path, **expected: str) -> str:
    with pytest.raises(BankError) as caught:
        verify_bank(folder, Expected(**expected))
    return str(caught.value)


def rewrite_index(folder: Path, order: list[int]) -> None:
    """What somebody would write into bank.json who wants it to look sound."""
    file = folder / "bank.json"
    index = json.loads(file.read_bytes())
    index["releases"] = [index["releases"][position] for position in order]
    index["head"] = index["releases"][-1]["hash"] if order else index["genesis"]
    file.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


def test_the_chain_can_be_redone_with_hashlib_and_json_alone(tmp_path: Path):
    bank = bank_of(tmp_path / "bank", "ct", "mr")

    def digest(value: object) -> str:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    base = {"name": "tiny", "sha256": "a" * 64}
    head = digest({"format": 1, "base_model": base})
    for name in ("000-ct", "001-mr"):
        fields = json.loads((tmp_path / "bank" / name / "release.json").read_bytes())
        assert fields["parent"] == head
        del fields["signature"]
        head = digest(fields)
        for file, field in (
            ("adapter_model.safetensors", "adapter"),
            ("adapter_config.json", "config"),
        ):
            blob = (tmp_path / "bank" / name / file).read_bytes()
            assert hashlib.sha256(blob).hexdigest() == fields[field]
    assert head == bank.head


def test_what_was_added_is_read_back(tmp_path: Path):
    bank = bank_of(tmp_path / "bank", "ct", "mr")
    again = Bank.open(tmp_path / "bank")
    assert again == bank and again.head == bank.head
    again.verify(base_sha256="a" * 64, signer=KEY.public_hex)
    assert again.adapter_bytes(1) == to_bytes(adapter(1))
    np.testing.assert_array_equal(again.adapter(0).pairs["q"].b, adapter(0).pairs["q"].b)
    assert again.named("mr") is again.releases[1] is again.named("1") is again.named("001-mr")


def test_a_release_keeps_the_bytes_that_travelled(tmp_path: Path):
    """So its digest is the one under which the sites have it already."""
    empty = Bank.create(tmp_path / "bank", BASE)
    travelled = blob(0, 4, Precision.BF16)
    bank = empty.add(draft(empty, "ct"), travelled, KEY)
    file = tmp_path / "bank" / "000-ct" / "adapter_model.safetensors"
    assert file.read_bytes() == travelled == bank.adapter_bytes(0)
    assert bank.releases[0].adapter == hashlib.sha256(travelled).hexdigest()
    assert bank.releases[0].rank == 4


def test_a_bank_in_16_bits_verifies_and_a_flipped_byte_of_it_is_found(tmp_path: Path):
    folder = tmp_path / "bank"
    bank = bank_of(folder, "ct", "mr", wire=Precision.BF16)
    bank.verify(base_sha256="a" * 64, signer=KEY.public_hex)
    assert Bank.open(folder) == bank
    found = bank.adapter(1).pairs["q"].b
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, adapter(1).pairs["q"].b, rtol=2**-8)
    file = folder / "001-mr" / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert str(file) in problems(folder)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (b"junk", "not an adapter in safetensors"),
        (blob(1)[:-1], "not an adapter in safetensors"),
        (
            to_bytes(Adapter({}, 1.0, {"x": np.array([1, np.nan], np.float32)})),
            "extras.x has a value that is not finite",
        ),
    ],
)
def test_what_is_no_sound_adapter_is_not_released(tmp_path: Path, wrong: bytes, said: str):
    bank = bank_of(tmp_path / "bank", "ct")
    before = tree(tmp_path)
    with pytest.raises(BankError, match=f"bank: the adapter for 'mr': {said}"):
        bank.add(draft(bank, "mr"), wrong, KEY)
    assert tree(tmp_path) == before


def test_a_release_keeps_every_fact_of_its_draft(tmp_path: Path):
    empty = Bank.create(tmp_path / "bank", BASE)
    given_draft = draft(empty, "ct")
    release = empty.add(given_draft, blob(0, rank=4), KEY).releases[0]
    for field in Draft.__dataclass_fields__:
        assert getattr(release, field) == getattr(given_draft, field)
    assert (release.rank, release.scale, release.base_model) == (4, 2.0, BASE)
    assert release.signer == KEY.public_hex


def test_two_equal_runs_give_equal_bytes(tmp_path: Path):
    bank_of(tmp_path / "one", "ct", "mr")
    bank_of(tmp_path / "two", "ct", "mr")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_adding_changes_no_byte_of_an_earlier_release(tmp_path: Path):
    old = bank_of(tmp_path / "bank", "ct", "mr")
    before = tree(tmp_path / "bank")
    old.add(draft(old, "us"), blob(2), KEY)
    after = tree(tmp_path / "bank")
    assert all(after[name] == blob for name, blob in before.items() if name != "bank.json")
    assert old.adapter_bytes(0) == to_bytes(adapter(0))


class Unsynced(Disk):
    """A disk that is never waited for: a hundred releases in a second."""

    def sync(self, path: Path) -> None:
        pass


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.from_regex(r"[a-z0-9][a-z0-9_-]{0,8}", fullmatch=True), max_size=4, unique=True),
    st.integers(1, 5),
)
def test_any_sequence_of_releases_verifies(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], rank: int
):
    folder = tmp_path_factory.mktemp("any") / "bank"
    bank = Bank.create(folder, BASE, Unsynced())
    for seed, name in enumerate(names):
        bank = bank.add(draft(bank, name), blob(seed, rank), KEY, Unsynced())
    assert verify_bank(folder, Expected(head=bank.head)) == bank
    assert [release.name for release in Bank.open(folder).releases] == names


FILES = (
    "bank.json",
    "000-ct/release.json",
    "000-ct/adapter_config.json",
    "001-mr/adapter_model.safetensors",
    "001-mr/release.json",
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of two releases; whoever changes it mends it again."""
    folder = tmp_path_factory.mktemp("sound") / "bank"
    bank_of(folder, "ct", "mr")
    return folder


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_flipped_byte_is_found_in_the_file_that_has_it(
    sound: Path, name: str, place: int, change: int
):
    file = sound / name
    blob = file.read_bytes()
    place %= len(blob)
    file.write_bytes(blob[:place] + bytes([blob[place] ^ change]) + blob[place + 1 :])
    try:
        assert str(file) in problems(sound)
    finally:
        file.write_bytes(blob)
    verify_bank(sound, Expected())


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_shortened_file_is_named(sound: Path, name: str):
    file = sound / name
    blob = file.read_bytes()
    try:
        file.write_bytes(blob[:-1])
        assert str(file) in problems(sound)
        file.unlink()
        assert f"{file}: can't be read (No such file or directory)" in problems(sound)
    finally:
        file.write_bytes(blob)


def test_all_problems_are_listed_at_once(tmp_path: Path):
    folder = tmp_path / "bank"
    bank_of(folder, "ct", "mr", "us")
    (folder / "000-ct" / "adapter_model.safetensors").write_bytes(b"x")
    (folder / "001-mr" / "adapter_config.json").unlink()
    (folder / "002-us" / "notes.txt").write_text("mine")
    found = problems(folder, base_sha256="d" * 64).splitlines()
    assert len(found) == 4
    for name in ("000-ct/adapter_model", "001-mr/adapter_config", "002-us/notes", "base model"):
        assert sum(name in line for line in found) == 1


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 2, 1], [0, 2], [1, 2], [2]])
def test_re_ordered_or_removed_releases_are_found(tmp_path: Path, order: list[int]):
    bank_of(tmp_path / "bank", "ct", "mr", "us")
    rewrite_index(tmp_path / "bank", order)
    found = problems(tmp_path / "bank")
    assert "bank.json: found 00" in found and "at position" in found
    with pytest.raises(BankError, match="re-ordered or removed"):
        Bank.open(tmp_path / "bank")


def test_a_last_release_taken_off_the_index_is_found_by_its_folder(tmp_path: Path):
    bank_of(tmp_path / "bank", "ct", "mr")
    rewrite_index(tmp_path / "bank", [0])
    assert "001-mr: found, but no release of this bank lists it" in problems(tmp_path / "bank")


def test_a_bank_that_lost_its_last_release_whole_is_found_by_its_head(tmp_path: Path):
    head = bank_of(tmp_path / "bank", "ct", "mr").head
    rewrite_index(tmp_path / "bank", [0])
    shutil.rmtree(tmp_path / "bank" / "001-mr")
    verify_bank(tmp_path / "bank", Expected())
    assert f"expected {head}" in problems(tmp_path / "bank", head=head)


def test_exchanged_and_renamed_folders_are_found(tmp_path: Path):
    folder = tmp_path / "bank"
    bank_of(folder, "ct", "mr")
    (folder / "000-ct").rename(folder / "x")
    (folder / "001-mr").rename(folder / "000-ct")
    (folder / "x").rename(folder / "001-mr")
    found = problems(folder)
    assert "000-ct/release.json: found the release 001-mr" in found
    assert "001-mr/release.json: found the release 000-ct" in found


def test_a_foreign_folder_or_file_is_named(tmp_path: Path):
    bank = bank_of(tmp_path / "bank", "ct")
    (tmp_path / "bank" / "001-mr").mkdir()
    (tmp_path / "bank" / ".hidden").write_text("")
    found = problems(tmp_path / "bank")
    assert "001-mr: found, but" in found and ".hidden: found, but" in found
    with pytest.raises(BankError, match="001-mr: found, but no release of this bank lists it"):
        bank.add(draft(bank, "mr"), blob(1), KEY)
    assert (tmp_path / "bank" / "001-mr").is_dir()


def forge(folder: Path, release: Release, key: SigningKey, **changes: object) -> None:
    """Change the last release, and sign and list it anew."""
    changed = replace(release, signer=key.public_hex, **changes)  # pyright: ignore[reportArgumentType]
    changed = replace(changed, signature=key.sign(signed_bytes(changed.hash)))
    (folder / release.folder / "release.json").write_bytes(changed.to_bytes())
    file = folder / "bank.json"
    index = json.loads(file.read_bytes())
    index["releases"][-1]["hash"] = index["head"] = changed.hash
    file.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


def test_a_release_on_a_foreign_base_model_is_named(tmp_path: Path):
    bank = bank_of(tmp_path / "bank", "ct", "mr")
    other = BaseModelPin(name="tiny", sha256="e" * 64)
    forge(tmp_path / "bank", bank.releases[1], KEY, base_model=other)
    assert "001-mr/release.json: made on the base model" in problems(tmp_path / "bank")


def test_another_base_model_than_expected_is_named(tmp_path: Path):
    bank = bank_of(tmp_path / "bank", "ct")
    assert "found the base model tiny" in problems(tmp_path / "bank", base_sha256="e" * 64)
    bank.verify(base_sha256="a" * 64)


def test_a_release_signed_anew_by_a_stranger_is_found_by_the_key_or_the_head(tmp_path: Path):
    bank = bank_of(tmp_path / "bank", "ct", "mr")
    stranger = SigningKey.from_seed(bytes([1] * 32))
    forge(tmp_path / "bank", bank.releases[1], stranger, scores={"accuracy": 1.0})
    verify_bank(tmp_path / "bank", Expected())
    found = problems(tmp_path / "bank", signer=KEY.public_hex)
    assert f"001-mr/release.json: signed by {stranger.public_hex}" in found
    assert "found the head" in problems(tmp_path / "bank", head=bank.head)


def test_a_release_that_continues_another_bank_is_found(tmp_path: Path):
    bank = bank_of(tmp_path / "bank", "ct", "mr")
    forge(tmp_path / "bank", bank.releases[1], KEY, parent="f" * 64)
    assert "001-mr/release.json: continues ffff" in problems(tmp_path / "bank")


def test_an_index_can_not_point_out_of_the_bank(tmp_path: Path):
    bank_of(tmp_path / "bank", "ct")
    file = tmp_path / "bank" / "bank.json"
    file.write_text(file.read_text().replace("000-ct", "../000-ct"))
    with pytest.raises(BankError, match=r"bank\.json: field releases\.0\.folder"):
        Bank.open(tmp_path / "bank")


def test_a_folder_without_a_bank_is_refused(tmp_path: Path):
    with pytest.raises(BankError, match=r"bank\.json: can't be read \(No such file"):
        Bank.open(tmp_path)


def test_a_bank_is_not_created_over_anything(tmp_path: Path):
    bank_of(tmp_path / "bank", "ct")
    with pytest.raises(BankError, match="not empty"):
        Bank.create(tmp_path / "bank", BASE)


def test_a_stage_is_released_once(tmp_path: Path):
    bank = bank_of(tmp_path / "bank", "ct", "mr")
    with pytest.raises(BankError, match="001-mr is released and can't be released again"):
        bank.add(replace(draft(bank, "us"), stage=1), blob(2), KEY)
    with pytest.raises(BankError, match="000-ct is released and can't be released again"):
        bank.add(draft(bank, "ct"), blob(2), KEY)


def test_a_release_must_continue_the_head(tmp_path: Path):
    bank = bank_of(tmp_path / "bank", "ct")
    with pytest.raises(BankError, match=f"'mr' that continues {'f' * 64}, expected {bank.head}"):
        bank.add(replace(draft(bank, "mr"), parent="f" * 64), blob(1), KEY)
    with pytest.raises(BankError, match="found a release for position 2, expected 1"):
        bank.add(replace(draft(bank, "mr"), stage=2), blob(1), KEY)


def test_an_old_bank_value_can_not_fork_the_bank_on_disk(tmp_path: Path):
    old = bank_of(tmp_path / "bank", "ct")
    new = old.add(draft(old, "mr"), blob(1), KEY)
    with pytest.raises(BankError, match="another process has written to the bank"):
        old.add(draft(old, "us"), blob(2), KEY)
    assert Bank.open(tmp_path / "bank") == new


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "../escape"}, "name"),
        ({"error": float("nan")}, "error"),
        ({"scores": {"accuracy": float("inf")}}, "scores.accuracy"),
        ({"sites": {"St Mary's": 3}}, "sites"),
        ({"sums": (0,)}, "sums"),
        ({"sums": (1, 0)}, "sums"),
        ({"sums": (0, 0, 1)}, "sums"),
        ({"plan": "p"}, "plan"),
    ],
)
def test_a_draft_that_could_not_be_read_again_is_refused_and_nothing_written(
    tmp_path: Path, changes: dict[str, object], field: str
):
    bank = bank_of(tmp_path / "bank", "ct")
    before = tree(tmp_path)
    wrong = replace(draft(bank, "mr"), **changes)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BankError, match=f"the draft of 001-.*: field {field}"):
        bank.add(wrong, blob(1), KEY)
    assert tree(tmp_path) == before


def test_an_adapter_whose_bytes_changed_is_not_handed_out(tmp_path: Path):
    bank = bank_of(tmp_path / "bank", "ct")
    file = tmp_path / "bank" / "000-ct" / "adapter_model.safetensors"
    file.write_bytes(to_bytes(adapter(7)))
    with pytest.raises(BankError, match=r"adapter_model\.safetensors: found the digest"):
        bank.adapter(0)
    file.unlink()
    with pytest.raises(BankError, match=r"adapter_model\.safetensors: can't be read"):
        bank.adapter_bytes(0)


def test_a_release_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path):
    bank = bank_of(tmp_path / "bank", "ct", "mr")
    with pytest.raises(BankError, match="no release 'us', expected one of: ct, mr"):
        bank.named("us")
    with pytest.raises(BankError, match="no release '\uff11', expected one of: ct, mr"):
        bank.named("\uff11")
    with pytest.raises(BankError, match="found 2 releases, expected one at position 2"):
        bank.adapter(2)
    with pytest.raises(BankError, match="found 2 releases, expected one at position -1"):
        bank.adapter(-1)
