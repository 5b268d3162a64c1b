"""A hostile site, at the level of its answers: refused by name, bounded, or without influence."""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.adapter import Adapter, Pair, from_bytes, to_bytes
from common.bank.bank import Bank
from common.errors import SiteFailed
from common.exchange import Order, Scores, Update
from common.plan.file import parse_plan
from common.plan.plan import Plan, Training
from common.router.image_prototype import ImagePrototype
from common.router.image_prototype import from_bytes as prototype_of
from common.router.image_prototype import to_bytes as prototype_bytes
from common.tensors import Array
from common.work import Work
from report import plots
from report.write import write_report
from server import app
from server.run.accept import Accept, Done, Received, Refused
from server.run.folder import RunFolder
from server.run.image_prototypes import release_prototype
from server.run.journal import ClosedRound, Journal
from server.run.scoreboard import Scoreboard, run_report
from server.run.stage import ModelSelection, score_task, train_stage
from simulation.chaos.liar import LIES, Lie, noise, scores_of
from tests.unit.small_round import document, journal, run_context

HONEST = ("a", "b", "c")
ROUNDS, RANK, INPUTS, OUTPUTS = 3, 2, 12, 10


def plan_of(sites: Sequence[str], rule: str = "svd", **changes: Any) -> Plan:
    stage = {"sites": list(sites), "rounds": ROUNDS, "learning_rate": 1e-3}
    return parse_plan({**document(**stage), "aggregation": rule, **changes}, "p")


def trained(start: Adapter | None, site: str, number: int) -> Adapter:
    """What an honest site makes of a start: the same way as the others, and some of its own.

    Its steps are as long as the round's learning rates.
    """
    rate = Training().mean_rate(number, ROUNDS)
    shared = np.random.default_rng(number)
    own = np.random.default_rng([number, ord(site)])

    def step(shape: tuple[int, ...]) -> Array:
        return 0.05 * rate * (shared.standard_normal(shape) + 0.7 * own.standard_normal(shape))

    if start is None:
        basis = np.linalg.qr(np.random.default_rng(0).standard_normal((INPUTS, RANK)))[0].T
        start = Adapter({"q": Pair(basis, np.zeros((OUTPUTS, RANK)))}, 1.0)
    pair = start.pairs["q"]
    b = (pair.b + step(pair.b.shape)).astype(np.float32)
    return Adapter({"q": Pair(pair.a.astype(np.float32), b)}, 1.0)


class Federation:
    """Honest sites, and one that lies: its update, or some fields of its answers."""

    def __init__(
        self, book: Journal, liar: str, lie: Lie | None, fields: Mapping[str, Any] | None = None
    ) -> None:
        self._book, self._liar, self._lie, self._fields = book, liar, lie, fields or {}

    def __call__(
        self, order: Order, sites: Sequence[str], accept: Accept
    ) -> Iterator[Done | Refused]:
        for site in sites:
            answer = self._scores(order, site)
            if order.work is Work.TRAIN:
                answer = self._update(order, site)
            if site == self._liar:
                answer = replace(answer, **self._fields)
            why = accept(Received(answer, 1, 1))
            yield Done(site) if why is None else Refused(site, why)

    def _update(self, order: Order, site: str) -> Update:
        start = None
        if order.adapter is not None:
            start = from_bytes(self._book.blobs.get(order.adapter), "start")
        made, examples = trained(start, site, order.round), 100
        if site == self._liar and self._lie is not None:
            made = self._lie.forge(made, start, order.round)
            examples = 10**7 if self._lie.claims else examples
        return Update(
            order=order.digest, site=site, examples=examples, steps=10, loss=0.5, regularizer=0.0,
            adapter=to_bytes(made),
        )  # fmt: skip

    def _scores(self, order: Order, site: str) -> Scores:
        half = {"f1": 0.5, "accuracy": 0.5}
        scores = Scores(
            order=order.digest, site=site, questions=40, metrics=half, majority={"f1": 0.25}
        )
        lies = site == self._liar and self._lie is not None
        return scores_of(scores, self._lie) if lies and self._lie is not None else scores


def stage_of(
    folder: Path, plan: Plan, lie: Lie | None = None, **fields: Any
) -> tuple[Array, ClosedRound, Journal]:
    """The released product of a stage whose last site lies, and its last round."""
    book = journal(folder, plan)
    context, _ = run_context(book, Federation(book, plan.sites[-1], lie, fields), of=plan)
    closed = train_stage(context, 0, ())
    pair = from_bytes(book.blobs.get(closed.adapter), "released").pairs["q"]
    return pair.b.astype(np.float64) @ pair.a, closed, book


@pytest.mark.parametrize("name", [name for name in LIES if name != "perfect scores"])
@pytest.mark.parametrize("rule", ["svd", "fedavg", "median"])
def test_one_site_of_four_does_not_turn_a_release(tmp_path: Path, name: str, rule: str):
    without, _, _ = stage_of(tmp_path / "without", plan_of(HONEST, rule))
    plan = plan_of((*HONEST, "d"), rule)
    found, _, book = stage_of(tmp_path / "with", plan, LIES[name])
    size = np.linalg.norm(without)
    cosine = float(np.sum(found * without) / (size * np.linalg.norm(found)))
    assert cosine > 0.8
    # Noise is damped, and not found out.
    assert 0.6 * size < np.linalg.norm(found) < 2.5 * size
    book.close()
    # It is named: in each round, or what it sends is no larger than the others'.
    with closing(Journal(RunFolder(tmp_path / "with"), None)) as read:
        parts = [one for _, _, one in read.influences() if one.site == "d"]
    assert len(parts) == ROUNDS
    if name.startswith(("times", "negated")):
        assert all(one.outlier and one.outlier.startswith(("direction", "norm")) for one in parts)
    assert max(one.share for one in parts) <= 0.375 + 1e-9


@pytest.mark.parametrize("size", [3.0, 10.0])
def test_the_last_round_s_changes_are_bounded_by_its_own_usual_one(tmp_path: Path, size: float):
    _, _, book = stage_of(tmp_path, plan_of((*HONEST, "d")), Lie(noise(size)))
    last = {one.site: one for _, round, one in book.influences() if round == ROUNDS}
    usual = sorted(one.norm for one in last.values())[1]
    liar = last["d"]
    assert liar.share == 0 or liar.norm * liar.scaled <= 2 * usual * (1 + 1e-6)
    assert all(last[site].scaled == 1.0 for site in HONEST)


def test_where_nobody_lies_every_update_counts_as_it_is(tmp_path: Path):
    _, closed, book = stage_of(tmp_path, plan_of((*HONEST, "d")))
    assert closed.refusals == ()
    assert {(one.scaled, one.share, one.outlier) for _, _, one in book.influences()} == {
        (1.0, 0.25, None)
    }


@pytest.mark.parametrize("sites", [["a", "d"], ["a", "b", "c", "d"]])
def test_a_tiny_update_makes_no_other_the_misfit(tmp_path: Path, sites: list[str]):
    _, closed, book = stage_of(tmp_path, plan_of(sites), LIES["tiny"])
    assert closed.refusals == () and list(closed.sites) == sites
    assert all(one.outlier is None for _, _, one in book.influences())


def test_examples_count_as_said_at_first_and_never_more(tmp_path: Path):
    class Growing(Federation):
        def _update(self, order: Order, site: str) -> Update:
            update = super()._update(order, site)
            return replace(update, examples=100 * order.round**9 if site == "d" else 100)

    plan = plan_of((*HONEST, "d"))
    book = journal(tmp_path, plan)
    context, _ = run_context(book, Growing(book, "d", None), of=plan)
    assert train_stage(context, 0, ()).sites == dict.fromkeys("abcd", 100)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"loss": 1.7e308}, "loss: found 1.7e+308, expected at least -1000000 and at most"),
        ({"regularizer": -1e300}, "regularizer: found -1e+300"),
        ({"examples": 10**9}, "examples: found 1000000000, expected at least 1 and at most"),
        ({"steps": 10**15}, "steps: found"),
        ({"seconds": 1e300}, "seconds: found 1e+300"),
        ({"peak_memory": 2**50}, "peak_memory: found 1125899906842624"),
        ({"prototype": b"of 10^9 images"}, "prototype: found one, expected none"),
    ],
)
def test_what_no_site_can_report_is_refused_before_it_is_journalled(
    tmp_path: Path, fields: dict[str, Any], said: str
):
    with pytest.raises(SiteFailed) as caught:
        stage_of(tmp_path, plan_of((*HONEST, "d")), **fields)
    assert "site d could not train stage 1, round 1: " + said in str(caught.value)
    with closing(Journal(RunFolder(tmp_path), None)) as book:
        assert {one.site for _, one in book.updates(0)} == {*HONEST}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"questions": 10**9}, "questions: found 1000000000, expected 1 to 10000000"),
        ({"metrics": {"expert_accuracy": 1.0}}, "found a metric 'expert_accuracy'"),
        ({"majority": {"expert_accuracy": 1.0}}, "found a metric 'expert_accuracy'"),
        ({"metrics": {"f1": 1.0 + 1e-9}}, "f1: found 1.000000001, expected a fraction"),
    ],
)
def test_forged_scores_are_refused(tmp_path: Path, fields: dict[str, Any], said: str):
    plan = plan_of((*HONEST, "d"))
    book = journal(tmp_path, plan)
    context, _ = run_context(book, Federation(book, "d", None, fields), of=plan)
    with pytest.raises(SiteFailed) as caught:
        score_task(context, 0, ModelSelection())
    assert said in str(caught.value)


def test_perfect_scores_count_at_most_the_plans_share(tmp_path: Path):
    plan = plan_of((*HONEST, "d"))
    book = journal(tmp_path, plan)
    lie = Federation(book, "d", LIES["perfect scores"])
    board = Scoreboard(plan)
    found = score_task(run_context(book, lie, of=plan)[0], 0, ModelSelection())
    board.record_scores(0, 0, found)
    # 0.5 at three sites, 1 at the fourth, which has 10^7 questions by its own word.
    assert board.cells[0, 0]["accuracy"] == pytest.approx(0.625 * 0.5 + 0.375)


def test_the_number_of_questions_is_that_of_the_first_answer(tmp_path: Path):
    plan = plan_of((*HONEST, "d"))
    book = journal(tmp_path, plan)
    score_task(run_context(book, Federation(book, "d", None), of=plan)[0], 0, ModelSelection())
    more = Federation(book, "d", None, {"questions": 4000})
    again = ModelSelection(candidate="ab" * 32)
    with pytest.raises(SiteFailed, match="questions: found 4000, expected 40 as in its first"):
        score_task(run_context(book, more, of=plan)[0], 0, again)


def test_a_prototype_of_many_images_counts_at_most_the_plans_share(tmp_path: Path):
    def given(place: int, images: int) -> bytes:
        return prototype_bytes(ImagePrototype(np.eye(4, dtype=np.float32)[place], 0.0, images))

    plan = plan_of((*HONEST, "d"), router={})

    class Prototypes(Federation):
        def _update(self, order: Order, site: str) -> Update:
            update = super()._update(order, site)
            images = 10**7 if site == "d" else 60
            one = given("abcd".index(site), images)
            last = order.round == ROUNDS
            return replace(update, examples=max(100, images), prototype=one if last else None)

    book = journal(tmp_path, plan)
    context, _ = run_context(book, Prototypes(book, "d", None), of=plan)
    closed = train_stage(context, 0, ())
    merged = prototype_of(release_prototype(context, 0, closed) or b"", "merged")
    # Three of 60 images, and 108 of the 10^7: 0.375 of them all.
    np.testing.assert_allclose(merged.vector, [0.2083, 0.2083, 0.2083, 0.375], atol=1e-3)
    assert merged.images == 3 * 60 + 108


def test_a_journal_that_holds_an_absurd_number_is_continued_and_reported(tmp_path: Path):
    plan = plan_of(HONEST)
    _, _, book = stage_of(tmp_path, plan)
    book.close()
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as database, database:
        ((header,),) = database.execute(
            "select header from answers where site = 'c' and round = 2"
        ).fetchall()
        absurd = {"loss": 1.7e308, "seconds": 1e308, "peak_memory": 2**60}
        database.execute(
            "update answers set header = ? where site = 'c' and round = 2",
            (json.dumps(json.loads(header) | absurd),),
        )
        database.execute("drop table influences")
    again = Journal(RunFolder(tmp_path), plan)
    context, told = run_context(again, Federation(again, "c", None), of=plan)
    train_stage(context, 0, ())
    bank = Bank.create(tmp_path / "bank", plan.base_model)
    report = run_report(plan, bank, again, Scoreboard(plan))
    assert report.cost.peak_memory_bytes == 0 and report.cost.training_seconds == 0.0
    assert [one.loss for one in report.curves if one.site == "c"] == [0.5, None, 0.5]
    assert write_report(tmp_path / "report", [report]) == ()
    assert [news["event"] for news in told] == ["round"] * ROUNDS


def test_a_chart_that_cannot_be_drawn_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = plan_of(HONEST)
    _, _, book = stage_of(tmp_path, plan)
    bank = Bank.create(tmp_path / "bank", plan.base_model)
    report = run_report(plan, bank, book, Scoreboard(plan))

    def broken(*_: object) -> None:
        raise OverflowError("cannot convert float infinity to integer")

    monkeypatch.setattr(plots, "_losses", broken)
    (text,) = write_report(tmp_path / "report", [report])
    said = "chart of losses: can't be drawn (OverflowError: cannot convert float infinity"
    assert text.startswith(said)
    assert said.split(":")[0] in (tmp_path / "report/report.html").read_text(encoding="utf-8")
    assert (tmp_path / "report/traffic.svg").exists()
    # Nor does a report that can't be made at all.
    monkeypatch.setattr(app, "write_report", broken)
    events: list[Mapping[str, Any]] = []
    app._write_report(  # pyright: ignore[reportPrivateUsage]
        plan, RunFolder(tmp_path), report, events.append
    )
    assert [event["event"] for event in events] == ["report failed"]
