"""release.json and bank.json: one text for each content, and every other text is refused."""

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.adapter import Adapter, to_bytes
from common.bank.bank import Bank
from common.bank.check import Chain, Expected, read_chain
from common.bank.release import Draft, Index, Release
from common.errors import BankError
from tests.unit.small_bank import BASE, KEY, bank_of, blob, draft


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return bank_of(tmp_path / "bank", "ct", "mr")


def index_with(bank: Bank, **changes: object) -> bytes:
    """bank.json with these fields, in its one layout."""
    document: dict[str, Any] = json.loads(bank.index.to_bytes())
    return (json.dumps({**document, **changes}, indent=1, sort_keys=True) + "\n").encode()


def refused(read: Callable[[bytes, str], object], text: bytes) -> str:
    with pytest.raises(BankError) as caught:
        read(text, "here")
    return str(caught.value)


def test_every_document_is_read_back(bank: Bank):
    assert Index.from_bytes(bank.index.to_bytes(), "here") == bank.index
    for release in bank.releases:
        assert Release.from_bytes(release.to_bytes(), "here") == release


def compact(text: bytes) -> bytes:
    return json.dumps(json.loads(text)).encode()


# The first one sorts behind the right text, the others before it.
LAYOUTS: list[Callable[[bytes], bytes]] = [
    lambda text: text + b"\n",
    lambda text: text[:-1],
    lambda text: b" " + text,
    compact,
]


@pytest.mark.parametrize("kind", [Index, Release])
@pytest.mark.parametrize("change", LAYOUTS)
def test_another_layout_of_the_same_values_is_refused(
    bank: Bank, kind: type[Index] | type[Release], change: Callable[[bytes], bytes]
):
    right = (bank.index if kind is Index else bank.releases[1]).to_bytes()
    assert kind.from_bytes(right, "here")
    assert refused(kind.from_bytes, change(right)) == (
        "here: its layout was changed, though no value in it"
    )


@pytest.mark.parametrize("digest", ["0" * 64, "f" * 64])
def test_an_index_whose_hashes_do_not_follow_is_refused(bank: Bank, digest: str):
    assert refused(Index.from_bytes, index_with(bank, genesis=digest)) == (
        f"here: field genesis: found {digest}, expected {bank.index.genesis}, which follows from "
        "the base model tiny"
    )
    assert refused(Index.from_bytes, index_with(bank, head=digest)) == (
        f"here: field head: found {digest}, expected {bank.head}, the last hash in it"
    )
    empty = index_with(bank, releases=[], head=digest)
    assert refused(Index.from_bytes, empty) == (
        f"here: field head: found {digest}, expected {bank.index.genesis}, the last hash in it"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[]", "here: input should be an object"),
        (b"junk", "here: invalid JSON: expected value at line 1 column 1"),
    ],
)
def test_what_is_no_document_is_refused_without_a_field(text: bytes, said: str):
    assert refused(Index.from_bytes, text) == said
    assert refused(Release.from_bytes, text) == said


def test_the_first_wrong_field_of_a_document_is_named(bank: Bank):
    listed = [{"folder": "000-ct", "hash": "A" * 64}, {"folder": "1", "hash": "B"}]
    assert refused(Index.from_bytes, index_with(bank, releases=listed)) == (
        "here: field releases.0.hash: string should match pattern '^[0-9a-f]{64}$'"
    )
    assert refused(Index.from_bytes, index_with(bank, format=2)) == (
        "here: field format: input should be 1"
    )
    assert refused(Index.from_bytes, index_with(bank, notes="")) == (
        "here: field notes: unexpected keyword argument"
    )


@pytest.mark.parametrize(
    "folder", ["00-ct", "0001x-ct", "000-Ct", "000-", "000-ct/..", "000-" + "x" * 41, "000_ct"]
)
def test_a_folder_of_another_form_is_no_release_s(bank: Bank, folder: str):
    listed = [{"folder": folder, "hash": bank.head}]
    text = index_with(bank, releases=listed)
    assert "field releases.0.folder: string should match" in refused(Index.from_bytes, text)


def test_the_smallest_counts_are_taken(tmp_path: Path):
    bank = Bank.create(tmp_path / "bank", BASE)
    # No layer: rank 0. No example and no error: as a baseline may be released.
    extras = to_bytes(Adapter({}, 1.0, {"prompt": np.ones(2, np.float32)}))
    first = replace(draft(bank, "ct"), sites={"north": 0}, error=0.0)
    grown = bank.add(first, extras, KEY)
    assert (grown.releases[0].rank, grown.releases[0].stage) == (0, 0)
    assert Bank.open(grown.folder) == grown
    # What is a whole number is written as a fraction all the same: equal values, equal bytes.
    whole = replace(draft(grown, "mr"), error=1, scores={"accuracy": 1})
    grown = grown.add(whole, blob(1), KEY)
    fields = (grown.folder / "001-mr/release.json").read_text()
    assert '"error": 1.0,' in fields and '"accuracy": 1.0\n' in fields


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sites": {"north": -1}}, "sites.north"),
        ({"error": -0.5}, "error"),
        ({"sums": (-1, 1)}, "sums.0"),
        ({"code": "c" * 7}, "code"),
        ({"code": "c" * 65}, "code"),
        ({"plan": "b" * 63}, "plan"),
    ],
)
def test_a_count_or_a_digest_out_of_range_is_refused(
    tmp_path: Path, changes: dict[str, object], field: str
):
    bank = bank_of(tmp_path / "bank", "ct")
    wrong = replace(draft(bank, "mr"), **changes)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BankError, match=f"the draft of 001-mr: field {field}: "):
        bank.add(wrong, blob(1), KEY)


@pytest.mark.parametrize(
    ("sums", "found"),
    [((0,), r"\[0\]"), ((0, 2), r"\[0, 2\]"), ((1, 2), r"\[1, 2\]"), ((), r"\[\]")],
)
def test_positions_that_do_not_end_with_the_release_s_own_are_refused(
    tmp_path: Path, sums: tuple[int, ...], found: str
):
    bank = bank_of(tmp_path / "bank", "ct")
    said = f"field sums: found {found}, expected rising positions that end with its own, 1"
    with pytest.raises(BankError, match=said):
        bank.add(replace(draft(bank, "mr"), sums=sums), blob(1), KEY)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("stage", "1", "stage: input should be a valid integer"),
        ("stage", -1, "stage: input should be greater than or equal to 0"),
        ("rank", -1, "rank: input should be greater than or equal to 0"),
        ("error", "0.1", "error: input should be a valid number"),
        ("sites", {"north": 1.0}, "sites.north: input should be a valid integer"),
        ("scale", float("inf"), "scale: input should be a finite number"),
        ("modality", "xx", "modality: input should be"),
        ("signature", "0" * 127, "signature: string should match pattern"),
    ],
)
def test_a_wrong_value_in_a_release_is_named(bank: Bank, field: str, value: object, said: str):
    document: dict[str, Any] = json.loads(bank.releases[1].to_bytes())
    text = json.dumps({**document, field: value}, indent=1, sort_keys=True) + "\n"
    assert refused(Release.from_bytes, text.encode()).startswith(f"here: field {said}")


def test_a_document_is_ascii_whatever_a_metric_is_called(tmp_path: Path):
    bank = Bank.create(tmp_path / "bank", BASE)
    named = replace(draft(bank, "ct"), scores={"pr\u00e9cision": 0.5})
    bank = bank.add(named, blob(0), KEY)
    assert b'"pr\\u00e9cision": 0.5' in (bank.folder / "000-ct/release.json").read_bytes()
    assert Bank.open(bank.folder) == bank


def test_the_values_of_a_bank_can_not_be_changed(bank: Bank):
    values: list[tuple[object, str]] = [
        (bank, "releases"),
        (bank.releases[0], "error"),
        (draft(bank, "us"), "parent"),
        (bank.index, "head"),
        (bank.index.releases[0], "hash"),
        (read_chain(bank.folder), "problems"),
        (Expected(), "head"),
    ]
    assert {type(value) for value, _ in values} >= {Bank, Release, Draft, Index, Chain, Expected}
    for value, field in values:
        with pytest.raises(FrozenInstanceError):
            setattr(value, field, None)
