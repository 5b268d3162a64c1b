"""Prototypes at the coordinator: refused by name, journalled, merged, released."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.inference.image_prototype import prototype_of_features
from common.bank.bank import Bank, verify_bank
from common.bank.check import Expected
from common.errors import BankError
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.router.descriptor_statistics import BINS
from common.router.image_prototype import (
    ImagePrototype,
    fault_of,
    from_bytes,
    merge_prototypes,
    to_bytes,
)
from server.run.image_prototypes import release_prototype
from server.run.journal import Journal
from server.run.stage import train_stage
from tests.unit.common.router.test_descriptor_statistics import rows_of, statistics
from tests.unit.common.router.test_image_prototype import SPOILT, features
from tests.unit.small_bank import BASE, KEY, bank_of, blob, draft
from tests.unit.small_round import Sites, adapter, document, journal, plan, run_context

#: The head of a bank of two releases, as before there were prototypes but for the field of the
#: second one's adapter_config.json that says that it is a part of a sum.
HEAD_WITHOUT = "2676b31c2c371910cb944c88e895b60150665a680ceb6bb93798d6ecf7674837"


def routed(minimum: int = 50, **changes: Any) -> Plan:
    return parse_plan({**document(**changes), "router": {"minimum": minimum}}, "p")


def given(seed: int, count: int = 60, width: int = 6) -> ImagePrototype:
    found = prototype_of_features(features(seed, count, width))
    assert found is not None
    return found


class Giving(Sites):
    """Sites whose last round comes with a prototype."""

    def __init__(
        self, book: Journal, prototypes: Mapping[str, ImagePrototype | None], last: int = 2
    ):
        super().__init__(book)
        self._prototypes, self._last = prototypes, last

    def answer(self, order: Any, site: str) -> Any:
        update = super().answer(order, site)
        prototype = self._prototypes.get(site)
        if order.round != self._last or prototype is None:
            return update
        return replace(update, examples=1000, prototype=to_bytes(prototype))


def agreed(
    folder: Path, prototypes: Mapping[str, ImagePrototype | None], of: Plan | None = None
) -> tuple[ImagePrototype | None, list[Any]]:
    """The release's prototype, and what was told."""
    chosen = of or routed(quorum=1)
    book = journal(folder, chosen)
    work, told = run_context(book, Giving(book, prototypes), patient=True, of=chosen)
    closed = train_stage(work, 0, ())
    found = release_prototype(work, 0, closed)
    book.close()
    return None if found is None else from_bytes(found, "x"), told


def test_the_sites_prototypes_become_one(tmp_path: Path):
    found, _ = agreed(tmp_path, {"a": given(1, 70), "b": given(2, 90)})
    expected = merge_prototypes([given(1, 70), given(2, 90)])
    assert found is not None and expected is not None
    np.testing.assert_array_equal(found.vector, expected.vector)
    assert (found.images, found.std) == (160, expected.std)


def test_a_site_that_gives_none_does_not_hold_up_the_round(tmp_path: Path):
    found, told = agreed(tmp_path, {"a": given(1), "b": None})
    assert found is not None and found.images == 60
    assert not [news for news in told if news["event"] == "refused"]
    assert agreed(tmp_path / "none", {})[0] is None


def test_the_prototype_of_a_site_that_counted_nothing_in_the_round_is_left_out(tmp_path: Path):
    chosen = routed(quorum=1)
    book = journal(tmp_path, chosen)
    sites = Giving(book, {"a": given(1, 70), "b": given(2, 90)})
    work, _ = run_context(book, sites, patient=True, of=chosen)
    closed = train_stage(work, 0, ())
    found = release_prototype(work, 0, replace(closed, sites={"a": 1000}))
    assert found is not None and from_bytes(found, "x").images == 70


def test_without_a_router_there_is_none(tmp_path: Path):
    assert agreed(tmp_path, {}, of=plan(quorum=1))[0] is None


@pytest.mark.parametrize(("spoilt", "said"), SPOILT.values(), ids=SPOILT.keys())
def test_a_bad_prototype_is_refused_by_site_and_name(
    tmp_path: Path, spoilt: ImagePrototype, said: str
):
    found, told = agreed(tmp_path, {"a": given(1), "b": spoilt})
    (refused,) = [news for news in told if news["event"] == "refused"]
    start = "site b could not train stage 1, round 2: prototype: "
    assert refused["text"].startswith(start) and said in refused["text"]
    assert found is not None and found.images == 60


@pytest.mark.parametrize("images", [49, 1001])
def test_a_prototype_of_too_few_pictures_or_of_more_than_examples_is_refused(
    tmp_path: Path, images: int
):
    _, told = agreed(tmp_path, {"a": given(1), "b": replace(given(2), images=images)})
    (refused,) = [news for news in told if news["event"] == "refused"]
    assert f"prototype: found {images} images, expected at least the plan's 50" in refused["text"]


@pytest.mark.parametrize("std", [0.0, 0.01])
def test_no_claim_of_one_site_makes_a_release_that_nobody_can_read(tmp_path: Path, std: float):
    # As many images, as long and as wide as one prototype may claim.
    vector = np.zeros(6, np.float32)
    vector[0] = 1.0000999
    claimed = ImagePrototype(vector, std, 10**9)
    assert fault_of(claimed) is None
    for others in ([], [given(2)], [replace(claimed, vector=-vector, images=10**8)]):
        found = merge_prototypes([claimed, *others])
        assert found is not None and from_bytes(to_bytes(found), "x").images == 10**9


@pytest.mark.parametrize("early", [True, False])
def test_a_prototype_that_nobody_wants_is_refused(tmp_path: Path, early: bool):
    chosen = routed(quorum=1) if early else plan(quorum=1)
    book = journal(tmp_path, chosen)
    sites = Giving(book, {"b": given(1)}, last=1 if early else 2)
    work, told = run_context(book, sites, patient=True, of=chosen)
    train_stage(work, 0, ())
    book.close()
    (refused,) = [news for news in told if news["event"] == "refused"]
    assert refused["text"].endswith("prototype: found one, expected none with this order")


@pytest.mark.parametrize(
    ("router", "counted", "said"),
    [
        (
            {"statistics": False},
            80,
            "found statistics of descriptors, expected none with this plan",
        ),
        ({}, 65, "found statistics of too few images, expected at least 66"),
    ],
)
def test_statistics_that_nobody_wants_or_of_too_few_pictures_are_refused(
    tmp_path: Path, router: dict[str, bool], counted: int, said: str
):
    made = statistics(rows_of(1, 80, 0.0))
    places = np.bincount(np.arange(counted) % 5, minlength=BINS)
    forged = replace(made, distances=tuple(places.tolist()))
    lying = replace(given(2, 80), statistics=forged)
    plan = parse_plan({**document(quorum=1), "router": {"minimum": 50, **router}}, "p")
    found, told = agreed(tmp_path, {"a": given(1), "b": lying}, plan)
    (refused,) = [event for event in told if event["event"] == "refused"]
    assert refused["site"] == "b" and refused["text"].endswith(f"prototype: {said}")
    # The other site's is released as it is.
    assert found is not None and (found.images, found.statistics) == (60, None)


def test_a_prototype_of_another_width_than_most_is_left_out_by_name(tmp_path: Path):
    found, told = agreed(tmp_path, {"a": given(1), "b": given(2, width=9)})
    assert found is not None and found.vector.size == 6
    (refused,) = [news for news in told if news["event"] == "refused"]
    assert refused["site"] == "b" and "a prototype of 9 numbers" in refused["text"]


def test_prototypes_outlast_the_closing_of_their_round_and_go_with_the_release(tmp_path: Path):
    chosen = routed()
    book = journal(tmp_path, chosen)
    work, _ = run_context(book, Giving(book, {"a": given(1), "b": given(2)}), of=chosen)
    closed = train_stage(work, 0, ())
    before = release_prototype(work, 0, closed)
    book.close()
    # Another process takes the run up behind the closed round.
    again = journal(tmp_path, chosen)
    sites = Giving(again, {})
    work, _ = run_context(again, sites, of=chosen)
    assert release_prototype(work, 0, train_stage(work, 0, ())) == before
    assert sites.asked == []
    assert len(list((tmp_path / "blobs").iterdir())) == 3
    again.prune(1)
    assert list((tmp_path / "blobs").iterdir()) == []
    again.close()


def test_a_bank_without_prototypes_has_the_bytes_that_it_always_had(tmp_path: Path):
    bank = bank_of(tmp_path / "bank", "ct", "mr")
    assert bank.head == HEAD_WITHOUT
    assert bank.prototypes() == {} and bank.prototype_bytes(0) is None


def test_a_release_keeps_its_prototype_and_its_digest(tmp_path: Path):
    bank, sent = bank_of(tmp_path / "bank", "ct"), to_bytes(given(1))
    grown = bank.add(replace(draft(bank, "mr"), prototype=sent), blob(1), KEY)
    file = tmp_path / "bank/001-mr/prototype.safetensors"
    assert file.read_bytes() == sent == grown.prototype_bytes(1)
    document = json.loads((tmp_path / "bank/001-mr/release.json").read_bytes())
    assert document["prototype"] == hashlib.sha256(sent).hexdigest()
    assert Bank.open(tmp_path / "bank") == grown == verify_bank(tmp_path / "bank", Expected())
    assert list(grown.prototypes()) == [1]


def test_a_prototype_that_is_changed_missing_or_nobodys_is_found(tmp_path: Path):
    bank = bank_of(tmp_path / "bank", "ct")
    bank.add(replace(draft(bank, "mr"), prototype=to_bytes(given(1))), blob(1), KEY)
    file = tmp_path / "bank/001-mr/prototype.safetensors"
    file.write_bytes(to_bytes(given(2)))
    with pytest.raises(BankError, match="its bytes were changed"):
        verify_bank(tmp_path / "bank", Expected())
    with pytest.raises(BankError, match="its bytes were changed"):
        Bank.open(tmp_path / "bank").prototypes()
    file.rename(tmp_path / "bank/000-ct/prototype.safetensors")
    with pytest.raises(BankError) as caught:
        verify_bank(tmp_path / "bank", Expected())
    missing, foreign = sorted(str(caught.value).splitlines(), reverse=True)
    assert "001-mr/prototype.safetensors: can't be read" in missing
    assert "000-ct/prototype.safetensors: found, but no release" in foreign


def test_what_is_no_prototype_is_not_released(tmp_path: Path):
    bank = Bank.create(tmp_path / "bank", BASE)
    with pytest.raises(BankError, match="the prototype for 'ct': "):
        bank.add(replace(draft(bank, "ct"), prototype=adapter(1.0)), blob(0), KEY)
    assert [file.name for file in (tmp_path / "bank").iterdir()] == ["bank.json"]
