"""Journal, acceptance and the rounds of a stage, with the sites as functions."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.adapter import Adapter, Pair, from_bytes, to_bytes
from common.errors import SiteFailed, StateError
from common.exchange import Answer, Order, ReleaseRef, Scores, Update, Work
from common.plan import Plan, parse_plan
from server.accept import Received, Refused, durable, fault_of
from server.journal import Journal
from server.stage import Model, pooled, score_task, train_stage


def plan(**changes: Any) -> Plan:
    stage = {
        "name": "one", "modality": "ct", "task": "t", "sites": ["a", "b"], "rounds": 2,
        "local_epochs": 1, "learning_rate": 0.1, "batch_size": 8, **changes,
    }  # fmt: skip
    return parse_plan(
        {
            "name": "p", "seed": 3, "base_model": {"name": "tiny", "sha256": "ab" * 32},
            "method": {"name": "mslora_cr", "rank": 2, "alpha": 2, "contrast": None},
            "aggregation": "fedavg", "stages": [stage],
        },
        "p",
    )  # fmt: skip


def adapter(value: float) -> bytes:
    pair = Pair(np.full((2, 3), value, np.float32), np.full((4, 2), value, np.float32))
    return to_bytes(Adapter({"layer": pair}, 1.0))


def plus_one(order: Order, site: str) -> Update:
    """A site that adds 1 to every weight; site b has three times the examples."""
    start = 0.0 if order.adapter is None else from_bytes(order.adapter, "").pairs["layer"].a[0, 0]
    return Update(
        order=order.digest, site=site, examples=3 if site == "b" else 1, steps=1, loss=0.5,
        regularizer=0.0, adapter=adapter(float(start) + (2.0 if site == "b" else 1.0)),
    )  # fmt: skip


class Sites:
    """A network of sites that answer at once; remembers whom it asked what."""

    def __init__(self, spoil: dict[str, dict[str, Any]] | None = None) -> None:
        self.asked: list[tuple[int, str]] = []
        self._spoil = spoil or {}

    def __call__(self, order: Order, sites: Sequence[str]) -> Iterator[Received | Refused]:
        for site in reversed(sites):
            self.asked.append((order.round, site))
            answer = plus_one(order, site)
            yield Received(replace(answer, **self._spoil.get(site, {})), 10, 20)


def nothing(*_: Any) -> None:
    pass


def journal(tmp_path: Path, of: Plan | None = None) -> Journal:
    return Journal(tmp_path / "journal.sqlite", of or plan())


def test_a_stage_averages_what_its_sites_learn_by_examples(tmp_path: Path):
    trained = train_stage(plan(), 0, (), durable(Sites(), journal(tmp_path)), nothing)
    # A round moves site a by 1 and b by 2, so the mean moves by (1 * 1 + 3 * 2) / 4 = 1.75.
    np.testing.assert_array_equal(from_bytes(trained.adapter, "").pairs["layer"].a, 3.5)
    assert trained.examples == {"a": 1, "b": 3}


def test_a_run_that_was_cut_off_asks_only_for_what_is_missing(tmp_path: Path):
    class PowerCut(Exception):
        pass

    def cut(order: Order, sites: Sequence[str]) -> Iterator[Received | Refused]:
        for received in Sites()(order, sites):
            yield received
            if order.round == 2:
                raise PowerCut

    whole = train_stage(plan(), 0, (), durable(Sites(), journal(tmp_path / "whole")), nothing)
    with pytest.raises(PowerCut):
        train_stage(plan(), 0, (), durable(cut, journal(tmp_path)), nothing)
    again = Sites()
    resumed = train_stage(plan(), 0, (), durable(again, journal(tmp_path)), nothing)
    # Round 1 is whole; of round 2, site b had answered before the cut.
    assert again.asked == [(2, "a")]
    assert resumed == whole


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({"examples": 0}, "examples: found 0, expected at least 1"),
        ({"loss": float("nan")}, "loss: found nan"),
        ({"order": "0" * 64}, "order: found 000000000000"),
        ({"adapter": b"junk"}, "not an adapter"),
        ({"adapter": adapter(float("inf"))}, "lora_A.weight: found a value that is not finite"),
    ],
)
def test_a_bad_update_is_refused_by_site_and_field(
    tmp_path: Path, spoil: dict[str, Any], said: str
):
    sites = Sites({"b": spoil})
    with pytest.raises(SiteFailed) as caught:
        train_stage(plan(), 0, (), durable(sites, journal(tmp_path)), nothing)
    assert "site b could not train stage 1, round 1" in str(caught.value)
    assert said in str(caught.value)


def test_an_update_of_another_shape_than_ordered_is_refused():
    order = Order(
        work=Work.TRAIN, plan="{}", stage=0, round=2, releases=(), active=(),
        adapter=adapter(0), code="c",
    )  # fmt: skip
    pair = Pair(np.zeros((1, 3), np.float32), np.zeros((4, 1), np.float32))
    small = replace(plus_one(order, "a"), adapter=to_bytes(Adapter({"layer": pair}, 1.0)))
    fault = fault_of(order, small)
    assert fault is not None
    assert fault.endswith("lora_A.weight: found shape (1, 3), expected (2, 3)")
    assert fault_of(order, plus_one(order, "a")) is None


def test_a_round_goes_on_without_a_bad_site_where_the_quorum_holds(tmp_path: Path):
    refused: list[str] = []
    trained = train_stage(
        plan(quorum=1),
        0,
        (),
        durable(Sites({"b": {"examples": 0}}), journal(tmp_path)),
        lambda _round, _updates, refusals: refused.extend(refusals),
    )
    assert trained.examples == {"a": 1}
    assert [text.split(":")[0] for text in refused] == [
        "site b could not train stage 1, round 1",
        "site b could not train stage 1, round 2",
    ]


def test_a_refused_update_is_not_in_the_journal(tmp_path: Path):
    book = journal(tmp_path)
    with pytest.raises(SiteFailed):
        train_stage(plan(), 0, (), durable(Sites({"b": {"examples": 0}}), book), nothing)
    assert [update.site for _, update in book.updates(0)] == ["a"]


def test_the_journal_belongs_to_one_plan_and_says_what_changed(tmp_path: Path):
    journal(tmp_path).close()
    journal(tmp_path).close()
    with pytest.raises(StateError, match=r"found changed stages\.1\.rounds, expected the plan"):
        journal(tmp_path, plan(rounds=3))
    assert [file.name for file in tmp_path.iterdir()] == ["journal.sqlite"]


def test_a_file_that_is_no_journal_is_one_sentence(tmp_path: Path):
    (tmp_path / "journal.sqlite").write_bytes(b"not a database, but long enough to be read" * 9)
    with pytest.raises(StateError, match="the journal can't be used"):
        journal(tmp_path)


def test_answers_come_back_from_the_journal_as_they_went(tmp_path: Path):
    book = journal(tmp_path)
    order = Order(
        work=Work.TRAIN, plan="{}", stage=0, round=1, releases=(), active=(), adapter=None,
        code="c",
    )  # fmt: skip
    judged = replace(order, work=Work.EVALUATE, round=0)
    scores = Scores(
        order=judged.digest, site="a", questions=4, metrics={"f1": 0.5}, majority={"f1": 0.25}
    )
    book.record(order, plus_one(order, "a"), 10, 20)
    book.record(judged, scores, 1, 2)
    assert book.answers(order) == {"a": plus_one(order, "a")}
    assert book.answers(judged) == {"a": scores}
    assert [(t.site, t.work, t.bytes_down, t.bytes_up) for t in book.traffic()] == [
        ("a", "evaluate", 1, 2),
        ("a", "train", 10, 20),
    ]


def test_a_released_stages_adapters_are_dropped_and_its_figures_kept(tmp_path: Path):
    book = journal(tmp_path)
    train_stage(plan(), 0, (), durable(Sites(), book), nothing)
    book.drop_adapters(0)
    assert [(n, u.site, u.loss, u.adapter) for n, u in book.updates(0)] == [
        (1, "a", 0.5, b""),
        (1, "b", 0.5, b""),
        (2, "a", 0.5, b""),
        (2, "b", 0.5, b""),
    ]


def test_an_update_whose_adapter_was_dropped_is_asked_for_again(tmp_path: Path):
    book = journal(tmp_path)
    whole = train_stage(plan(), 0, (), durable(Sites(), book), nothing)
    book.drop_adapters(0)
    again = Sites()
    assert train_stage(plan(), 0, (), durable(again, book), nothing) == whole
    assert again.asked == [(1, "b"), (1, "a"), (2, "b"), (2, "a")]
    # And then it is durable again.
    assert train_stage(plan(), 0, (), durable(never, book), nothing) == whole


def never(_order: Order, _sites: Sequence[str]) -> Iterator[Received | Refused]:
    raise AssertionError("nobody should be asked")


def test_a_round_that_was_done_again_by_other_code_counts_once(tmp_path: Path):
    book = journal(tmp_path)
    order = Order(
        work=Work.TRAIN, plan="{}", stage=0, round=1, releases=(), active=(), adapter=None,
        code="old",
    )  # fmt: skip
    book.record(order, plus_one(order, "a"), 1, 2)
    newer = replace(order, code="new")
    book.record(newer, replace(plus_one(newer, "a"), loss=0.25), 1, 2)
    assert [(n, u.site, u.loss) for n, u in book.updates(0)] == [(1, "a", 0.25)]


def test_the_time_of_a_run_is_that_of_its_sessions_up_to_their_last_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    order = Order(
        work=Work.TRAIN, plan="{}", stage=0, round=1, releases=(), active=(), adapter=None,
        code="c",
    )  # fmt: skip
    clock = iter([100.0, 103.0, 104.5, 1000.0, 1000.25, 5000.0])
    monkeypatch.setattr("server.journal.time.monotonic", lambda: next(clock))
    first = journal(tmp_path)
    first.record(order, plus_one(order, "a"), 1, 2)
    first.record(order, plus_one(order, "b"), 1, 2)
    first.close()
    second = journal(tmp_path)
    second.record(replace(order, round=2), plus_one(order, "a"), 1, 2)
    second.close()
    # 4.5 s, and 0.25 s after a pause; a start that finds all answers takes none.
    assert journal(tmp_path).seconds() == 4.75


def test_scores_of_sites_are_pooled_by_their_questions():
    parts = [(10, {"accuracy": 1.0, "f1": 0.5}), (30, {"accuracy": 0.0})]
    # Only the first site has a question that F1 applies to.
    assert pooled(parts) == {"accuracy": 0.25, "f1": 0.5}


def test_a_task_is_scored_by_the_sites_of_its_stage():
    seen: list[Order] = []

    def ask(order: Order, sites: Sequence[str]) -> Iterator[Answer | Refused]:
        seen.append(order)
        for site in sites:
            yield Scores(order=order.digest, site=site, questions=1, metrics={}, majority={})

    model = Model((ReleaseRef(0, "d"),), (0,))
    assert list(score_task(plan(), 0, model, ask)) == ["a", "b"]
    assert (seen[0].work, seen[0].active, seen[0].adapter) == (Work.EVALUATE, (0,), None)


def scores(order: Order, **changes: Any) -> Scores:
    fields: dict[str, Any] = {
        "order": order.digest, "site": "a", "questions": 4, "metrics": {"f1": 0.5},
        "majority": {"f1": 0.25},
    }  # fmt: skip
    return Scores(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"questions": 0}, "questions: found 0, expected at least 1"),
        ({"metrics": {"f1": float("nan")}}, "f1: found nan, expected a fraction of 0 to 1"),
        ({"majority": {"f1": 1.5}}, "f1: found 1.5, expected a fraction of 0 to 1"),
    ],
)
def test_scores_that_are_no_fractions_do_not_count(changes: dict[str, Any], said: str | None):
    order = Order(
        work=Work.EVALUATE, plan="{}", stage=0, round=0, releases=(), active=(), adapter=None,
        code="c",
    )  # fmt: skip
    assert fault_of(order, scores(order, **changes)) == said


def test_scores_are_no_answer_to_a_training_order():
    order = Order(
        work=Work.TRAIN, plan="{}", stage=0, round=1, releases=(), active=(), adapter=None,
        code="c",
    )  # fmt: skip
    assert fault_of(order, scores(order)) == "found scores, expected an answer to train"


def test_a_site_that_cannot_score_is_named():
    def ask(_order: Order, _sites: Sequence[str]) -> Iterator[Answer | Refused]:
        yield Refused("b", "DataError (the site's own log has the text under ab12)")

    with pytest.raises(SiteFailed, match="site b could not evaluate stage 1: DataError"):
        score_task(plan(), 0, Model(), ask)
