"""The scores of a task by its sites, with the sites as functions."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.bank.bank import Bank, verify_bank
from common.bank.check import Expected
from common.bank.release import SelfReported
from common.errors import SiteFailed
from common.exchange import Order, ReleaseRef
from common.plan.robustness import Robustness
from common.work import Work
from report.write import write_report
from server.app import score_base, train_and_score
from server.run.accept import Accept, Done, Received, Refused, Waiting
from server.run.pooling import pooled
from server.run.scoreboard import Scoreboard, run_report
from server.run.stage import ModelSelection, score_task
from tests.unit.small_bank import KEY
from tests.unit.small_round import Late, Sites, journal, never, plan, run_context


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({"questions": 10**18}, "questions: found 1000000000000000000, expected 1 to"),
        ({"metrics": {"<b>": 0.5}}, "found a metric '<b>'"),
        ({"metrics": {"accuracy_of_experts": 0.5}}, "found a metric 'accuracy_of_experts'"),
        ({"majority": {"f1": 1.5}}, "f1: found 1.5, expected a fraction"),
    ],
)
def test_scores_that_no_site_can_have_are_refused(tmp_path: Path, spoil: dict[str, Any], said: str):
    book = journal(tmp_path)

    def wrong(order: Order, sites: Sequence[str], accept: Accept) -> Iterator[Any]:
        for site in sites:
            scores = replace(Sites(book).answer(order, site), **(spoil if site == "b" else {}))
            why = accept(Received(scores, 1, 1))
            yield Done(site) if why is None else Refused(site, why)

    with pytest.raises(SiteFailed, match="site b could not evaluate stage 1") as caught:
        score_task(run_context(book, wrong)[0], 0, ModelSelection())
    assert said in str(caught.value)


def test_a_site_cannot_change_its_number_of_test_questions(tmp_path: Path):
    book = journal(tmp_path)
    changed: dict[str, Any] = {"questions": 5}
    score_task(run_context(book)[0], 0, ModelSelection())

    def other(order: Order, sites: Sequence[str], accept: Accept) -> Iterator[Any]:
        for site in sites:
            why = accept(Received(replace(Sites(book).answer(order, site), **changed), 1, 1))
            yield Done(site) if why is None else Refused(site, why)

    later = ModelSelection((ReleaseRef(0, "d"),), (0,))
    with pytest.raises(SiteFailed, match="questions: found 5, expected 4 as in its first answer"):
        score_task(run_context(book, other)[0], 0, later)


def test_what_a_site_writes_is_told_on_one_short_line_without_control_characters(tmp_path: Path):
    def rude(_order: Order, sites: Sequence[str], _accept: Accept) -> Iterator[Any]:
        yield from (Refused(site, "\x1b[2J\n\ud800" + "a" * 10**6) for site in sites)

    at, told = run_context(journal(tmp_path), rude)
    with pytest.raises(SiteFailed):
        score_task(at, 0, ModelSelection())
    texts = [news["text"] for news in told if news["event"] == "refused"]
    assert len(texts) == 2
    assert all(text.isprintable() and "?[2J??aaa" in text and len(text) < 500 for text in texts)


def test_scores_of_sites_are_pooled_by_their_questions():
    parts = [(10, {"accuracy": 1.0, "f1": 0.5}), (30, {"accuracy": 0.0})]
    # Only the first site has a question that F1 applies to.
    assert pooled(parts, Robustness()) == {"accuracy": 0.25, "f1": 0.5}


def test_no_site_counts_more_in_a_score_than_the_plans_share():
    parts = [(10, {"f1": 0.25}), (10, {"f1": 0.75}), (10**7, {"f1": 1.0})]
    # Half of it by default, of three; a third if the plan says so.
    assert pooled(parts, Robustness()) == {"f1": 0.75}
    assert pooled(parts, Robustness(largest_share=0.1))["f1"] == pytest.approx(2 / 3)


def test_a_task_is_scored_by_the_sites_of_its_stage_once(tmp_path: Path):
    book = journal(tmp_path)
    model = ModelSelection((ReleaseRef(0, "d"),), (0,))
    scores = score_task(run_context(book)[0], 0, model)
    assert list(scores) == ["a", "b"]
    assert score_task(run_context(book, never)[0], 0, model) == scores


def test_a_site_that_cannot_score_is_named(tmp_path: Path):
    def fails(_order: Order, _sites: Sequence[str], _accept: Accept) -> Iterator[Any]:
        yield Refused("b", "DataError (the site's own log has the text under ab12)")

    with pytest.raises(SiteFailed, match="site b could not evaluate stage 1: DataError"):
        score_task(run_context(journal(tmp_path), fails)[0], 0, ModelSelection())


def test_a_site_that_left_does_not_hold_up_the_scores_of_what_it_taught(tmp_path: Path):
    book = journal(tmp_path)
    at, told = run_context(book, Late(book, looks=None), patient=True)
    assert list(score_task(at, 0, ModelSelection(), grace_s=0.0)) == ["a"]
    text = "site b could not evaluate stage 1: it was away for too long"
    assert [news["text"] for news in told if news["event"] == "refused"] == [text]
    # Nor is it waited for again when the run is taken up after a crash.
    assert list(
        score_task(run_context(book, never, True)[0], 0, ModelSelection(), grace_s=0.0)
    ) == ["a"]


class Withholding(Sites):
    """Sites that keep their scores back; others are not there yet."""

    def __init__(self, book: Any, withholding: str) -> None:
        super().__init__(book)
        self._withholding = withholding

    def __call__(self, order: Order, sites: Sequence[str], accept: Accept) -> Iterator[Any]:
        if order.work is not Work.EVALUATE:
            yield from super().__call__(order, sites, accept)
            return
        self.asked.append((order.round, "".join(sites)))
        yield from (Refused(site, "too few", final=True) for site in self._withholding)
        for _ in range(3):
            yield Waiting(dict.fromkeys(sites, "asked"))
        yield from super().__call__(order, [s for s in sites if s not in self._withholding], accept)
        raise AssertionError("nothing more is awaited")


def test_a_stage_of_which_all_sites_withhold_their_scores_is_released_without(tmp_path: Path):
    book = journal(tmp_path)
    at, told = run_context(book, Withholding(book, "ab"), patient=True)
    bank, board = Bank.create(tmp_path / "bank", plan().base_model), Scoreboard(plan())
    score_base(at, 0, bank, board)
    draft, adapter = train_and_score(at, 0, bank)
    bank = bank.add(draft, book.blobs.get(adapter), KEY)
    verify_bank(bank.folder, Expected())
    (release,) = Bank.open(bank.folder).releases
    assert (draft.scores, release.scores) == ({}, {})
    assert release.self_reported == {
        "a": SelfReported(examples=1, questions=0, scores={}),
        "b": SelfReported(examples=3, questions=0, scores={}),
    }
    board.record_release(0, release.scores, release.self_reported)
    assert (board.row(board.before), board.matrix()) == ((None,), ((None,),))
    report = run_report(plan(), bank, book, board)
    assert write_report(tmp_path, [report], (), None) == ()
    assert "No task was scored" in (tmp_path / "report.html").read_text()
    texts = [news["text"] for news in told if news["event"] == "refused"]
    assert texts == [f"site {site} could not evaluate stage 1: too few" for site in "ab"] * 2
    # A run that is taken up again asks nobody a second time.
    again, _ = run_context(book, never, patient=True)
    resumed, _ = train_and_score(again, 0, Bank.create(tmp_path / "new", plan().base_model))
    assert resumed.scores == {}


def test_a_site_that_does_not_withhold_its_scores_is_waited_for(tmp_path: Path):
    book = journal(tmp_path)
    at, _ = run_context(book, Withholding(book, "a"), patient=True)
    assert list(score_task(at, 0, ModelSelection())) == ["b"]


def test_a_site_that_fails_after_it_withheld_its_scores_is_waited_for(tmp_path: Path):
    class Lowered(Sites):
        def __call__(self, order: Order, sites: Sequence[str], accept: Accept) -> Iterator[Any]:
            yield Refused("a", "too few", final=True)
            yield Refused("a", "its disk is full")
            yield Refused("b", "too few", final=True)
            yield from super().__call__(order, ["a"], accept)

    book = journal(tmp_path)
    at, _ = run_context(book, Lowered(book), patient=True)
    assert list(score_task(at, 0, ModelSelection())) == ["a"]


def test_a_stage_whose_sites_withhold_their_scores_or_have_left_is_not_waited_for(tmp_path: Path):
    def gone(_order: Order, _sites: Sequence[str], _accept: Accept) -> Iterator[Any]:
        yield Refused("a", "it has left the federation", final=True)
        yield Waiting({"b": "asked"})
        yield Refused("b", "too few", final=True)
        raise AssertionError("nothing more is awaited")

    at, _ = run_context(journal(tmp_path), gone, patient=True)
    assert score_task(at, 0, ModelSelection()) == {}


def test_without_patience_a_stage_without_scores_is_an_error(tmp_path: Path):
    def withhold(_order: Order, sites: Sequence[str], _accept: Accept) -> Iterator[Any]:
        yield from (Refused(site, "too few", final=True) for site in sites)

    with pytest.raises(SiteFailed, match="site b could not evaluate stage 1: too few"):
        score_task(run_context(journal(tmp_path), withhold)[0], 0, ModelSelection())


def test_sites_that_fail_do_not_hold_up_the_scores_of_what_they_taught(tmp_path: Path):
    class Failing(Sites):
        def __call__(self, order: Order, sites: Sequence[str], accept: Accept) -> Iterator[Any]:
            yield from (Refused(site, "BankError") for site in sites)
            while True:
                yield Waiting(dict.fromkeys(sites, "BankError"))

    book = journal(tmp_path)
    at, told = run_context(book, Failing(book), patient=True)
    assert score_task(at, 0, ModelSelection(), grace_s=0.0) == {}
    texts = [news["text"] for news in told if news["event"] == "refused"]
    assert texts == [f"site {site} could not evaluate stage 1: BankError" for site in "ab"]
