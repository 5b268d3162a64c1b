"""The journal: what is durable, what counts, and what is damaged."""

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pytest

from common.errors import StateError
from common.exchange import Order, Scores, Update
from common.identity import sha256
from common.plan.file import parse_plan
from common.work import Work
from server.aggregation.influence import SiteInfluence
from server.run.accept import Accept, Done, Refused, Waiting, fault_of
from server.run.folder import Blobs, RunFolder
from server.run.journal import AcceptedUpdate, ClosedRound, Journal
from server.run.stage import train_stage
from tests.unit.small_round import ORDER, Sites, adapter, document, journal, plan, run_context


def update(site: str, value: float = 1.0) -> Update:
    return Update(
        order=ORDER.digest, site=site, examples=3, steps=1, loss=0.5, regularizer=0.0,
        adapter=adapter(value), seconds=2.0, peak_memory=7,
    )  # fmt: skip


def test_answers_come_back_from_the_journal_as_they_went(tmp_path: Path):
    book = journal(tmp_path)
    judged = replace(ORDER, work=Work.EVALUATE, round=0)
    scores = Scores(
        order=judged.digest, site="a", questions=4, metrics={"f1": 0.5}, majority={"f1": 0.25}
    )
    learned = book.record(ORDER, update("a"), 10, 20)
    assert book.record(judged, scores, 1, 2) == scores
    assert isinstance(learned, AcceptedUpdate)
    assert learned == AcceptedUpdate("a", 3, 1, 0.5, 0.0, 2.0, 7, sha256(adapter(1.0)))
    assert book.answered(ORDER) == {"a": learned}
    assert book.answered(judged) == {"a": scores}
    assert book.blobs.get(learned.adapter) == adapter(1.0)
    assert [(t.site, t.work, t.bytes_down, t.bytes_up) for t in book.traffic()] == [
        ("a", "evaluate", 1, 2),
        ("a", "train", 10, 20),
    ]


def test_each_site_that_was_scored_on_a_stage_counts_once(tmp_path: Path):
    book = journal(tmp_path)
    for stage, active in product((0, 1), ((), (0,))):
        judged = replace(ORDER, work=Work.EVALUATE, round=0, stage=stage, active=active)
        for site, questions in (("a", 4 + stage), ("b", 7)):
            scores = Scores(
                order=judged.digest, site=site, questions=questions, metrics={"f1": 0.5},
                majority={"f1": 0.25},
            )  # fmt: skip
            book.record(judged, scores, 1, 2)
    assert book.scored_questions(0) == {"a": 4, "b": 7}
    assert book.scored_questions(1) == {"a": 5, "b": 7}
    assert book.scored_questions(2) == {}


def test_what_a_site_said_first_of_its_counts_stays_and_what_was_refused_is_no_word(tmp_path: Path):
    book, second = journal(tmp_path), replace(ORDER, round=2)
    assert book.first_examples(0, "a") is None
    # In the order of the rounds, whichever came first.
    book.record(second, replace(update("a"), examples=500), 1, 2)
    assert book.first_examples(0, "a") == 500
    book.record(ORDER, update("a"), 1, 2)
    assert (book.first_examples(0, "a"), book.first_examples(1, "a")) == (3, None)
    book.record(ORDER, replace(update("b"), examples=900), 1, 2)
    book.refuse(ORDER, "b", "too large")
    assert book.first_examples(0, "b") is None
    book.record(second, replace(update("b"), examples=5), 1, 2)
    assert book.first_examples(0, "b") == 5
    for active, questions in (((), 4), ((0,), 7)):
        judged = replace(ORDER, work=Work.EVALUATE, round=0, active=active)
        scores = Scores(order=judged.digest, site="a", questions=questions, metrics={}, majority={})
        book.record(judged, scores, 1, 2)
    assert (book.first_questions(0, "a"), book.first_questions(0, "b")) == (4, None)


def test_the_journal_belongs_to_one_plan_and_says_what_changed(tmp_path: Path):
    journal(tmp_path).close()
    journal(tmp_path).close()
    with pytest.raises(StateError, match=r"found changed stages\.1\.rounds, expected the plan"):
        journal(tmp_path, plan(rounds=3))
    assert [file.name for file in tmp_path.iterdir()] == ["journal.sqlite"]


def test_fields_that_another_version_s_plan_has_or_lacks_are_named(tmp_path: Path):
    journal(tmp_path).close()
    old = json.loads(plan().canonical())
    del old["vision_weights"], old["evaluation"]["earlier"]
    with sqlite3.connect(tmp_path / "journal.sqlite") as db:
        db.execute("update run set plan = ?", (json.dumps(old),))
    db.close()
    said = "found changed evaluation.earlier, vision_weights, expected the plan"
    with pytest.raises(StateError, match=said):
        journal(tmp_path)


def test_a_file_that_is_no_journal_is_an_error_of_one_sentence(tmp_path: Path):
    (tmp_path / "journal.sqlite").write_bytes(b"not a database, but long enough to be read" * 9)
    with pytest.raises(StateError, match="the journal can't be used"):
        journal(tmp_path)


def test_a_file_where_the_blobs_should_be_is_named(tmp_path: Path):
    book = journal(tmp_path)
    book.blobs.folder.touch()
    with pytest.raises(StateError) as refused:
        book.record(ORDER, update("a"), 1, 2)
    assert str(refused.value) == f"{tmp_path / 'blobs'}: can't be written (File exists)"


def test_a_folder_may_have_any_name_that_the_system_takes(tmp_path: Path):
    folder = tmp_path / "a?b#%20\udcff"
    book = journal(folder)
    book.record(ORDER, update("a"), 1, 2)
    assert list(journal(folder).answered(ORDER)) == ["a"]


def test_a_journal_of_another_version_is_refused_and_left_alone(tmp_path: Path):
    book = journal(tmp_path)
    book._db.execute("pragma user_version = 1")  # pyright: ignore[reportPrivateUsage]
    book.close()
    with pytest.raises(StateError, match="found a journal of format 1, expected 2"):
        journal(tmp_path)


def test_a_journal_that_is_opened_read_only_is_neither_changed_nor_made(tmp_path: Path):
    with pytest.raises(StateError, match="the journal can't be used"):
        Journal(RunFolder(tmp_path / "none"), None)
    assert not (tmp_path / "none").exists()
    book = journal(tmp_path)
    book.record(ORDER, update("a"), 10, 20)
    looking = Journal(RunFolder(tmp_path), None)
    assert [learned.site for _, learned in looking.updates(0)] == ["a"]
    with pytest.raises(StateError):
        looking.record(ORDER, update("b"), 10, 20)


def test_a_refused_answer_does_not_count_but_its_bytes_do(tmp_path: Path):
    book = journal(tmp_path)
    learned = book.record(ORDER, update("a"), 10, 20)
    assert isinstance(learned, AcceptedUpdate)
    book.refuse(ORDER, "a", "too large")
    assert book.answered(ORDER) == {} and book.updates(0) == []
    assert book.refusal_of(ORDER, "a", learned.adapter) == "too large"
    assert book.refusal_of(ORDER, "a", "another") is None
    assert [(t.bytes_down, t.bytes_up) for t in book.traffic()] == [(10, 20)]
    book.prune(0)
    assert list(book.blobs.folder.iterdir()) == []
    # A better one of the same site takes its place.
    book.record(ORDER, update("a", 2.0), 10, 20)
    assert list(book.answered(ORDER)) == ["a"]


def test_a_closed_round_keeps_the_numbers_and_drops_the_updates(tmp_path: Path):
    book = journal(tmp_path)
    book.record(ORDER, update("a"), 10, 20)
    closed = ClosedRound({"a": 3}, ("b was late",), book.blobs.put(adapter(9.0)), 0.25)
    book.close_round(ORDER, closed)
    assert book.closed_round(ORDER) == closed
    assert book.rounds() == [(0, 1, closed)]
    assert [file.stem for file in book.blobs.folder.iterdir()] == [closed.adapter]
    assert [(n, u.site, u.loss) for n, u in book.updates(0)] == [(1, "a", 0.5)]
    book.prune(1)
    assert list(book.blobs.folder.iterdir()) == []


def test_the_last_adapter_of_an_open_stage_is_kept_when_an_earlier_one_is_released(tmp_path: Path):
    book = journal(tmp_path)
    for value, (stage, number) in enumerate(((0, 1), (1, 1), (1, 2))):
        order = replace(ORDER, stage=stage, round=number)
        book.close_round(order, ClosedRound({"a": 3}, (), book.blobs.put(adapter(value)), 0.0))
    # As a run does that is taken up in its second stage.
    book.prune(1)
    assert [file.stem for file in book.blobs.folder.iterdir()] == [sha256(adapter(2))]


@pytest.mark.parametrize("rule", ["fed_sb", "svd"])
def test_the_adapter_that_r_is_a_part_of_is_kept_with_the_last_one(tmp_path: Path, rule: str):
    book = journal(tmp_path, parse_plan({**document(rounds=4), "aggregation": rule}, "p"))
    for number in (1, 2, 3):
        order = replace(ORDER, round=number)
        book.close_round(order, ClosedRound({"a": 3}, (), book.blobs.put(adapter(number)), None))
    kept = {adapter(3), *([adapter(1)] if rule == "fed_sb" else [])}
    assert {file.stem for file in book.blobs.folder.iterdir()} == set(map(sha256, kept))
    book.prune(1)
    assert list(book.blobs.folder.iterdir()) == []


def test_a_round_that_was_repeated_by_other_code_counts_once(tmp_path: Path):
    book = journal(tmp_path)
    book.record(ORDER, update("a"), 1, 2)
    newer = replace(ORDER, code="new")
    book.record(newer, replace(update("a"), loss=0.25), 1, 2)
    assert [(n, u.site, u.loss) for n, u in book.updates(0)] == [(1, "a", 0.25)]
    for order, norm in ((ORDER, 1.0), (newer, 2.0)):
        part = SiteInfluence("a", norm, None, 1.0, 1.0, 3)
        closed = ClosedRound({"a": 3}, (), book.blobs.put(adapter(norm)), None)
        book.close_round(order, closed, [part])
    assert [(stage, n, one.norm) for stage, n, one in book.influences()] == [(0, 1, 2.0)]


def test_a_scoring_that_was_begun_is_not_finished(tmp_path: Path):
    book = journal(tmp_path)
    opened = book.open_order(ORDER)
    assert book.open_order(ORDER) == opened and not book.is_finished(ORDER)
    book.finish_scoring(ORDER, ["b was away"])
    assert book.is_finished(ORDER) and book.open_order(ORDER) == opened


def test_rounds_that_are_repeated_by_other_code_keep_their_own_last_adapter(tmp_path: Path):
    book = journal(tmp_path)
    for code, number in (("old", 1), ("old", 2), ("new", 1)):
        agreed = book.blobs.put(adapter(float(number), layers=(code,)))
        closed = ClosedRound({"a": 3}, (), agreed, 0.0)
        book.close_round(replace(ORDER, code=code, round=number), closed)
    kept = [file.stem for file in book.blobs.folder.iterdir()]
    assert kept == [sha256(adapter(1.0, layers=("new",)))]


def test_a_round_that_other_code_left_open_is_pruned_once_its_stage_is_released(tmp_path: Path):
    book = journal(tmp_path)
    book.record(replace(ORDER, code="old"), update("a"), 1, 2)
    book.prune(0)
    assert [file.stem for file in book.blobs.folder.iterdir()] == [sha256(adapter(1.0))]
    book.prune(1)
    assert list(book.blobs.folder.iterdir()) == []


def test_a_tentative_blob_leaves_no_file_but_one_that_was_there(tmp_path: Path):
    book = journal(tmp_path)
    with book.tentative_blob(b"numbers") as (digest, _):
        assert book.blobs.get(digest) == b"numbers"
    assert not book.blobs.path(digest).exists()
    with book.tentative_blob(b"numbers") as (_, keep):
        keep()
    with book.tentative_blob(b"numbers"):
        pass
    assert book.blobs.get(digest) == b"numbers"


def test_the_time_of_a_run_is_that_of_its_sessions_up_to_their_last_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock = iter([100.0, 103.0, 104.5, 1000.0, 1000.25, 5000.0])
    monkeypatch.setattr("server.run.journal.time.monotonic", lambda: next(clock))
    first = journal(tmp_path)
    first.record(ORDER, update("a"), 1, 2)
    first.record(ORDER, update("b"), 1, 2)
    first.close()
    second = journal(tmp_path)
    second.record(replace(ORDER, round=2), update("a"), 1, 2)
    second.close()
    # 4.5 s, and 0.25 s after a pause; a start that finds all answers takes none.
    assert journal(tmp_path).seconds() == 4.75


@pytest.mark.parametrize("header", ["{", "[]", '{"order": 1, "adapter": 2}'])
def test_a_damaged_row_is_an_error_of_one_sentence(tmp_path: Path, header: str):
    first = journal(tmp_path)
    first.record(ORDER, update("a"), 1, 2)
    first.close()
    with closing(sqlite3.connect(RunFolder(tmp_path).journal)) as database, database:
        database.execute("update answers set header = ?", (header,))
    found = journal(tmp_path)
    reads: list[Callable[[], object]] = [partial(found.answered, ORDER)]
    reads += [partial(found.updates, ORDER.stage), partial(found.first_examples, ORDER.stage, "a")]
    if header != '{"order": 1, "adapter": 2}':
        reads.append(partial(found.prune, 0))
    for read in reads:
        with pytest.raises(StateError, match="found a row that was damaged"):
            read()


@pytest.mark.parametrize("text", ["{", "5", "null"])
def test_a_damaged_round_is_an_error_of_one_sentence(tmp_path: Path, text: str):
    first = journal(tmp_path)
    closed = ClosedRound({"a": 3}, (), "0" * 64, None)
    first.close_round(ORDER, closed, [SiteInfluence("a", 1.0, None, 1.0, 1.0, 3)])
    assert first.closed_round(ORDER) == closed
    first.close()
    with closing(sqlite3.connect(RunFolder(tmp_path).journal)) as database, database:
        database.execute("update rounds set sites = ?", (text,))
        database.execute("update influences set numbers = ?", (text,))
    found = journal(tmp_path)
    for read in (partial(found.closed_round, ORDER), found.rounds, found.influences):
        with pytest.raises(StateError, match="found a row that was damaged"):
            read()
    with closing(sqlite3.connect(RunFolder(tmp_path).journal)) as database, database:
        database.execute("update run set plan = '{'")
    with pytest.raises(StateError, match="found a row that was damaged"):
        journal(tmp_path)


def test_a_damaged_blob_is_an_error_of_one_sentence(tmp_path: Path):
    blobs = Blobs(tmp_path)
    digest = blobs.put(b"numbers")
    blobs.path(digest).write_bytes(b"others")
    with pytest.raises(StateError, match="found other bytes than its name says"):
        blobs.get(digest)
    with pytest.raises(StateError, match="found no file that can be read"):
        blobs.get("0" * 64)


def test_a_damaged_blob_is_written_anew_when_it_comes_again(tmp_path: Path):
    blobs = Blobs(tmp_path)
    digest = blobs.put(b"numbers")
    assert blobs.is_intact(digest) and not blobs.is_intact("0" * 64)
    blobs.path(digest).write_bytes(b"nvmbers")
    assert not blobs.is_intact(digest)
    assert blobs.put(b"numbers") == digest
    assert blobs.get(digest) == b"numbers"


@pytest.mark.parametrize("damage", [b"", b"others"])
def test_an_order_s_adapter_that_is_damaged_here_is_not_the_site_s_fault(
    tmp_path: Path, damage: bytes
):
    book = journal(tmp_path)
    digest = book.blobs.put(adapter(1.0))
    second = replace(ORDER, round=2, adapter=digest)
    answer = replace(update("a", 2.0), order=second.digest)
    assert fault_of(second, answer, book) is None
    file = book.blobs.path(digest)
    file.write_bytes(damage) if damage else file.unlink()
    with pytest.raises(StateError) as caught:
        fault_of(second, answer, book)
    assert str(caught.value).startswith(f"{file}: found ")
    assert "restore it from a backup" in str(caught.value)


class CutOff(Sites):
    """Sites of which only the first one answers before the run is cut off."""

    def __call__(
        self, order: Order, sites: Sequence[str], accept: Accept
    ) -> Iterator[Done | Refused | Waiting]:
        for answered in super().__call__(order, sites, accept):
            yield answered
            raise KeyboardInterrupt


@pytest.mark.parametrize("damage", ["nothing", "flipped", "cut", "gone"])
def test_a_site_whose_update_was_damaged_is_asked_again_and_the_result_is_the_same(
    tmp_path: Path, damage: str
):
    whole = train_stage(run_context(journal(tmp_path / "whole"))[0], 0, ())
    book = journal(tmp_path / "cut off")
    with pytest.raises(KeyboardInterrupt):
        train_stage(run_context(book, CutOff(book))[0], 0, ())
    (file,) = (tmp_path / "cut off" / "blobs").iterdir()
    blob = bytearray(file.read_bytes())
    blob[-1] ^= damage == "flipped"
    file.unlink()
    if damage != "gone":
        file.write_bytes(blob[: len(blob) // 2] if damage == "cut" else blob)
    again = Sites(book)
    assert train_stage(run_context(book, again)[0], 0, ()) == whole
    assert ((1, "b") in again.asked) == (damage != "nothing")
