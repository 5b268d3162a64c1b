"""The rounds of a stage, with the sites as functions."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.adapter import StoredAdapter
from common.errors import SiteFailed
from common.exchange import Order, Update
from server.run.accept import Accept, Done, Received, Refused, Waiting, fault_of
from server.run.journal import ClosedRound, Journal
from server.run.stage import ModelSelection, score_task, train_stage
from tests.unit.small_round import ORDER, Late, Sites, adapter, journal, never, plan, run_context


def weights(book: Journal, closed: ClosedRound) -> Any:
    return StoredAdapter.in_file(book.blobs.path(closed.adapter), "").pair("layer").a


def test_a_stage_averages_what_its_sites_learn_by_examples(tmp_path: Path):
    book = journal(tmp_path)
    trained = train_stage(run_context(book)[0], 0, ())
    # A round moves site a by 1 and b by 2, so the mean moves by (1 * 1 + 3 * 2) / 4 = 1.75.
    np.testing.assert_array_equal(weights(book, trained), 3.5)
    assert trained.sites == {"a": 1, "b": 3}


def test_a_run_that_was_cut_off_asks_only_for_what_is_missing(tmp_path: Path):
    class PowerCut(Exception):
        pass

    book = journal(tmp_path)

    def cut(order: Order, sites: Sequence[str], accept: Accept) -> Iterator[Any]:
        for event in Sites(book)(order, sites, accept):
            yield event
            if order.round == 2:
                raise PowerCut

    with pytest.raises(PowerCut):
        train_stage(run_context(book, cut)[0], 0, ())
    again = Sites(book)
    resumed = train_stage(run_context(book, again)[0], 0, ())
    whole = train_stage(run_context(journal(tmp_path / "whole"))[0], 0, ())
    # Round 1 is closed; of round 2, site b had answered before the cut.
    assert again.asked == [(2, "a")]
    assert resumed == whole


def test_a_closed_round_is_not_done_again_and_only_its_adapter_is_kept(tmp_path: Path):
    book = journal(tmp_path)
    whole = train_stage(run_context(book)[0], 0, ())
    files = [file.stem for file in book.blobs.folder.iterdir()]
    assert files == [whole.adapter]
    assert train_stage(run_context(book, never)[0], 0, ()) == whole


def test_the_error_is_found_for_a_stage_s_last_round_alone(tmp_path: Path):
    book = journal(tmp_path)
    train_stage(run_context(book)[0], 0, ())
    assert [closed.error is None for _, _, closed in book.rounds()] == [True, False]


@pytest.mark.parametrize(
    ("field", "most"),
    [("examples", 10**7), ("steps", 10**8), ("seconds", 10**7), ("peak_memory", 2**44)],
)
def test_the_largest_count_may_be_said_and_no_larger_one(tmp_path: Path, field: str, most: int):
    book = journal(tmp_path)
    answer = Sites(book).answer(ORDER, "a")
    assert isinstance(answer, Update)
    assert fault_of(ORDER, replace(answer, **{field: most}), book) is None
    said = fault_of(ORDER, replace(answer, **{field: most + 1}), book)
    assert said is not None and said.endswith(f"and at most {most}")


def test_offline_sites_are_waited_for_with_scores_until_the_grace_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def offline(order: Order, sites: Sequence[str], accept: Accept) -> Iterator[Any]:
        while True:
            now[0] += 100
            yield Waiting({"b": "offline"}, frozenset({"b"}))

    run, _ = run_context(journal(tmp_path), offline, patient=True)
    assert score_task(run, 0, ModelSelection(), grace_s=250.0) == {}
    # Looked at after 100, 200 and 300 seconds.
    assert now == [1300.0]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({"examples": 0}, "examples: found 0, expected at least 1"),
        ({"examples": 10**12}, "examples: found 1000000000000, expected at least 1 and at most"),
        ({"peak_memory": -1}, "peak_memory: found -1, expected at least 0"),
        ({"seconds": float("inf")}, "seconds: found inf"),
        ({"loss": float("nan")}, "loss: found nan"),
        ({"order": "0" * 64}, "order: found 000000000000"),
        ({"adapter": b"junk"}, "adapter: "),
        ({"adapter": adapter(float("nan"))}, "lora_A.weight"),
        ({"adapter": adapter(float("inf"))}, "lora_A.weight"),
        (
            {"adapter": adapter(3e38)},
            "lora_A.weight: found the value 3e+38, expected at most 1e+15",
        ),
    ],
)
def test_a_bad_update_is_refused_by_site_and_field(
    tmp_path: Path, spoil: dict[str, Any], said: str
):
    book = journal(tmp_path)
    with pytest.raises(SiteFailed) as caught:
        train_stage(run_context(book, Sites(book, {"b": spoil}))[0], 0, ())
    assert "site b could not train stage 1, round 1" in str(caught.value)
    assert said in str(caught.value)
    # What is refused is not in the journal, nor does it fill the disk.
    (accepted,) = [update for _, update in book.updates(0)]
    assert accepted.site == "a"
    assert [file.stem for file in book.blobs.folder.iterdir()] == [accepted.adapter]


@pytest.mark.parametrize(
    ("blob", "said"),
    [
        (adapter(1.0, layers=()), "adapter: found no array"),
        (adapter(1.0, layers=("layer", "more")), "more"),
        (adapter(1.0, rank=1), "rank: found 1, expected 2"),
    ],
)
def test_an_update_that_is_not_compatible_with_the_others_of_a_first_round_is_left_out(
    tmp_path: Path, blob: bytes, said: str
):
    wide = plan(sites=["a", "b", "c"], quorum=2, rounds=1)
    book = journal(tmp_path, wide)
    at, told = run_context(book, Sites(book, {"c": {"adapter": blob}}), of=wide)
    closed = train_stage(at, 0, ())
    assert closed.sites == {"a": 1, "b": 3}
    (refusal,) = closed.refusals
    assert refusal.startswith("site c could not train stage 1, round 1: ")
    assert said in refusal
    assert [news["site"] for news in told if news["event"] == "refused"] == ["c"]


@pytest.mark.parametrize(
    ("blob", "said"),
    [
        (adapter(1.0, layers=()), "found nothing, expected the shape (2, 3)"),
        (adapter(1.0, layers=("layer", "more")), "expected nothing"),
        (adapter(1.0, rank=1), "found the shape (1, 3), expected the shape (2, 3)"),
    ],
)
def test_a_later_update_must_have_the_arrays_of_its_order(tmp_path: Path, blob: bytes, said: str):
    book = journal(tmp_path)

    class Spoilt(Sites):
        def answer(self, order: Order, site: str) -> Any:
            self._spoil = {"b": {"adapter": blob}} if order.round == 2 else {}
            return super().answer(order, site)

    with pytest.raises(SiteFailed, match="site b could not train stage 1, round 2") as caught:
        train_stage(run_context(book, Spoilt(book))[0], 0, ())
    assert said in str(caught.value)


def test_an_update_of_an_earlier_round_does_not_count_again(tmp_path: Path):
    book = journal(tmp_path)
    kept: list[Any] = []

    class Replays(Sites):
        def answer(self, order: Order, site: str) -> Any:
            kept.append(super().answer(order, site))
            return kept[0] if site == "b" else kept[-1]

    with pytest.raises(SiteFailed, match="round 2: order: found"):
        train_stage(run_context(book, Replays(book))[0], 0, ())


def test_a_site_that_answers_twice_counts_once_and_as_it_answered_first(tmp_path: Path):
    book = journal(tmp_path)
    said: list[str | None] = []

    def twice(order: Order, sites: Sequence[str], accept: Accept) -> Iterator[Any]:
        first, second = Sites(book), Sites(book, {"a": {"examples": 9}})
        # Site b comes last: nobody is listened to any more once all have answered.
        for answers, site in ((first, "a"), (second, "a"), (first, "b")):
            why = accept(Received(answers.answer(order, site), 0, 0))
            said.append(why)
            if why is None:
                yield Done(site)

    run, _ = run_context(book, twice, of=plan(rounds=1))
    assert train_stage(run, 0, ()).sites == {"a": 1, "b": 3}
    assert said == [None, "it answered twice", None]
    assert [(update.site, update.examples) for _, update in book.updates(0)] == [("a", 1), ("b", 3)]


def test_a_site_whose_answer_is_in_the_journal_cannot_replace_it(tmp_path: Path):
    one, book = plan(rounds=1), journal(tmp_path)

    def only_a(order: Order, _: Sequence[str], accept: Accept) -> Iterator[Any]:
        return Sites(book)(order, ["a"], accept)

    # The run stops before b answers.
    with pytest.raises(SiteFailed):
        train_stage(run_context(book, only_a, of=one)[0], 0, ())
    said: list[str | None] = []

    def again(order: Order, sites: Sequence[str], accept: Accept) -> Iterator[Any]:
        assert sites == ["b"]
        said.append(accept(Received(Sites(book, {"a": {"examples": 9}}).answer(order, "a"), 0, 0)))
        yield from Sites(book)(order, sites, accept)

    run, _ = run_context(book, again, of=one)
    assert train_stage(run, 0, ()).sites == {"a": 1, "b": 3}
    assert said == ["it answered twice"]


def test_a_round_goes_on_without_a_bad_site_where_the_quorum_holds(tmp_path: Path):
    book = journal(tmp_path)
    at, told = run_context(book, Sites(book, {"b": {"examples": 0}}), of=plan(quorum=1))
    trained = train_stage(at, 0, ())
    assert trained.sites == {"a": 1}
    assert [news["text"].split(":")[0] for news in told if news["event"] == "refused"] == [
        "site b could not train stage 1, round 1",
        "site b could not train stage 1, round 2",
    ]


def test_a_stage_waits_for_its_quorum_and_says_for_whom(tmp_path: Path):
    book = journal(tmp_path)
    at, told = run_context(book, Late(book, looks=5), patient=True, of=plan(rounds=1))
    assert train_stage(at, 0, ()).sites == {"a": 1, "b": 3}
    (waiting,) = [news for news in told if news["event"] == "waiting"]
    assert waiting == {
        "event": "waiting", "work": "train", "stage": 0, "round": 1, "for": {"b": "offline"},
    }  # fmt: skip


def test_a_late_site_is_named_and_left_out_after_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    book, late = journal(tmp_path), plan(quorum=1, rounds=1, deadline_hours=2.0)
    clock = iter(range(0, 10**6, 1000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    at, _ = run_context(book, Late(book, looks=None), patient=True, of=late)
    closed = train_stage(at, 0, ())
    assert closed.sites == {"a": 1}
    assert closed.refusals == (
        "site b could not train stage 1, round 1: it was late "
        "(deadline: 2 h after the round began)",
    )


def test_a_deadline_counts_from_the_round_s_first_start_also_after_a_crash(tmp_path: Path):
    book = journal(tmp_path)
    opened = book.open_order(ORDER)
    book.close()
    assert journal(tmp_path).open_order(ORDER) == opened


def test_a_patient_stage_asks_again_where_an_update_was_not_compatible(tmp_path: Path):
    book = journal(tmp_path)
    tries: list[str] = []

    class Mended(Sites):
        """Site b has another rank at first, and is mended later."""

        def __call__(self, order: Order, sites: Sequence[str], accept: Accept) -> Iterator[Any]:
            tries.append(",".join(sites))
            self._spoil = {"b": {"adapter": adapter(1.0, rank=1)}} if len(tries) == 1 else {}
            yield from super().__call__(order, sites, accept)

    at, told = run_context(book, Mended(book), patient=True, of=plan(rounds=1))
    assert train_stage(at, 0, ()).sites == {"a": 1, "b": 3}
    assert tries == ["a,b", "b"]
    assert [news["site"] for news in told if news["event"] == "refused"] == ["b"]


def test_the_same_incompatible_update_is_refused_at_once_the_next_time(tmp_path: Path):
    book = journal(tmp_path)
    tries: list[str | None] = []

    class Stubborn(Sites):
        def __call__(self, order: Order, sites: Sequence[str], accept: Accept) -> Iterator[Any]:
            self._spoil = {"b": {"adapter": adapter(1.0, rank=1)}} if len(tries) < 3 else {}
            for event in super().__call__(order, sites, accept):
                if not isinstance(event, Waiting) and event.site == "b":
                    tries.append(event.why if isinstance(event, Refused) else None)
                yield event

    at, _ = run_context(book, Stubborn(book), patient=True, of=plan(rounds=1))
    train_stage(at, 0, ())
    # Accepted and refused with the others; refused at once, twice; accepted.
    assert [why and why.split(":")[0] for why in tries] == [None, "rank", "rank", None]


def test_incompatible_updates_again_and_again_do_not_fill_the_disk(tmp_path: Path):
    book = journal(tmp_path)
    most: list[int] = []

    class Flooding(Sites):
        def __call__(self, order: Order, sites: Sequence[str], accept: Accept) -> Iterator[Any]:
            most.append(len(list(book.blobs.folder.glob("*"))))
            wrong = adapter(1.0 + len(most), rank=1) if len(most) < 9 else adapter(2.0)
            self._spoil = {"b": {"adapter": wrong}}
            yield from super().__call__(order, sites, accept)

    at, told = run_context(book, Flooding(book), patient=True, of=plan(rounds=1))
    train_stage(at, 0, ())
    # Before each try there is what site a sent, and nothing of b.
    assert most == [0] + [1] * 8
    assert len([news for news in told if news["event"] == "refused"]) == 8


def test_an_update_with_the_bytes_of_the_ordered_adapter_never_removes_it(tmp_path: Path):
    book = journal(tmp_path)

    class Echo(Sites):
        def answer(self, order: Order, site: str) -> Any:
            self._spoil = {}
            if site == "b" and order.adapter is not None:
                self._spoil = {"b": {"adapter": book.blobs.get(order.adapter), "examples": 0}}
            return super().answer(order, site)

    at, _ = run_context(book, Echo(book), of=plan(quorum=1))
    assert train_stage(at, 0, ()).sites == {"a": 1}
