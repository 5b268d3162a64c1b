"""Rules under which a part of the adapter travels: whole runs in one process, cut off and not."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.orders import execute
from client.site import own_b
from common.adapter import Adapter, from_bytes
from common.bank.bank import Bank
from common.errors import SiteFailed
from common.exchange import Answer, Order, Update
from common.partial_adapter import AdapterPart
from common.plan.file import load_plan
from common.tensors import Array
from cost.geometry import read_geometry
from cost.sizes import blob_sizes
from cost.traffic import order_traffic
from server.run.folder import RunFolder
from server.run.hospitals import hospitals_of
from server.run.journal import Journal
from simulation.hospitals import BASE_MODELS
from simulation.run import simulate
from tests.flow.small_run import OTHER, STAGE, bank_bytes, options, small_plan

ROUNDS = 3


def plan_of(file: Path, rule: str) -> Path:
    # Three rounds at two sites; then two, of which one was not there before.
    stages = [{**STAGE, "rounds": ROUNDS}, {**OTHER, "rounds": 2}]
    return small_plan(
        file, aggregation=rule, wire="fp32", stages=stages,
        method={"name": "mslora_cr", "rank": 4, "alpha": 4, "active": "all", "contrast": None},
        evaluation={"zero_shot": False, "local": True},
        simulation={"data": "phantoms", "train_fraction": 0.1, "test_questions": 6},
    )  # fmt: skip


class Watched:
    """The updates that a run's coordinator gets, by (stage, round, site)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.updates: dict[tuple[int, int, str], Adapter] = {}
        record = Journal.record

        def recorded(book: Journal, order: Order, answer: Answer, *sizes: int) -> Any:
            if isinstance(answer, Update):
                key = (order.stage, order.round, answer.site)
                self.updates[key] = from_bytes(answer.adapter, "update")
            return record(book, order, answer, *sizes)

        monkeypatch.setattr(Journal, "record", recorded)


class Finished:
    """A run that went through without an interruption."""

    def __init__(self, folder: Path, rule: str) -> None:
        self.run = folder / "run"
        self.plan = plan_of(folder / "plan.yaml", rule)
        with pytest.MonkeyPatch.context() as monkeypatch:
            self.updates = Watched(monkeypatch).updates
            simulate(self.plan, options(self.run))
        self.bank = Bank.open(self.run / "bank")


@pytest.fixture(scope="module")
def fed_sb(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("fed_sb"), "fed_sb")


@pytest.fixture(scope="module")
def fedsa(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("fedsa"), "fedsa")


def own_bs(run: Path) -> dict[str, bytes]:
    files = sorted((run / "sites").glob("*/store/own_b/**/*.safetensors"))
    return {file.relative_to(run).as_posix(): file.read_bytes() for file in files}


def parts(updates: Mapping[tuple[int, int, str], Adapter]) -> dict[tuple[int, int, str], set[str]]:
    """The kinds of arrays of every update."""
    return {
        key: {name.split(".")[1] for name in adapter.extras}
        | ({"pairs"} if adapter.pairs else set())
        for key, adapter in updates.items()
    }


def weighted(adapters: Mapping[str, Adapter], name: str, examples: Mapping[str, int]) -> Array:
    total = sum(examples.values())
    values = [examples[site] / total * one.extras[name] for site, one in adapters.items()]
    return np.asarray(np.sum(values, axis=0, dtype=np.float64))


def test_of_fed_sb_only_r_travels_after_round_1_and_the_release_is_a_pair(fed_sb: Finished):
    sent = parts(fed_sb.updates)
    assert all(
        kinds == ({"pairs"} if number == 1 else {"core"}) for (_, number, _), kinds in sent.items()
    )
    release, adapter = fed_sb.bank.releases[0], fed_sb.bank.adapter(0).loaded()
    assert release.error == 0.0
    assert adapter.pairs and not adapter.extras
    examples = release.sites
    last = {site: fed_sb.updates[0, ROUNDS, site] for site in examples}
    first = {site: fed_sb.updates[0, 1, site] for site in examples}
    total = sum(examples.values())
    for name, pair in adapter.pairs.items():
        # B A of round 1 by numpy's SVD gives U and A, up to signs; R is the mean of what came.
        a = first["a"].pairs[name].a
        b = sum(examples[site] / total * first[site].pairs[name].b for site in examples)
        left, _, right = np.linalg.svd(np.asarray(b, np.float64) @ a, full_matrices=False)
        rank = len(a)
        core = weighted(last, AdapterPart.CORE.name_of(name), examples)
        found = pair.b.astype(np.float64) @ pair.a
        signs = np.sign(np.sum(right[:rank] * pair.a, axis=1))
        expected = (left[:, :rank] * signs) @ core @ (signs[:, None] * right[:rank])
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("rule", ["fed_sb", "fedsa"])
def test_what_travels_is_what_the_plan_was_said_to_cost(rule: str, request: pytest.FixtureRequest):
    run: Finished = request.getfixturevalue(rule)
    plan, geometry = load_plan(run.plan), read_geometry(BASE_MODELS["tiny-llava"])
    sent = list(order_traffic(plan, blob_sizes(plan, geometry)))
    with closing(Journal(RunFolder(run.run), None)) as book:
        journalled = book.traffic()
    measured = {(t.work, t.stage, t.round, t.site): t for t in journalled}
    for order in sent:
        # Orders to score a task have one key; they are compared in sum.
        if order.round:
            found = measured[order.work, order.stage, order.round, order.site]
            assert order.down == found.bytes_down
            assert order.up == pytest.approx(found.bytes_up, abs=60)
    scored = [order.up for order in sent if not order.round]
    found = [one.bytes_up for one in journalled if not one.round]
    assert len(scored) == len(found)
    # The digits of the scores: of six questions a share has few.
    assert sum(scored) == pytest.approx(sum(found), abs=100 * len(found))
    # FedSA's last round has both factors, Fed-SB's first.
    up = {number: measured["train", 0, number, "a"].bytes_up for number in (1, ROUNDS)}
    share = up[1] / up[ROUNDS] if rule == "fedsa" else up[ROUNDS] / up[1]
    assert share < {"fedsa": 0.75, "fed_sb": 0.4}[rule]


def test_of_fedsa_b_leaves_with_the_last_round_alone(fedsa: Finished):
    last = {0: ROUNDS, 1: 2}
    for (stage, number, _), kinds in parts(fedsa.updates).items():
        assert kinds == ({"pairs"} if number == last[stage] else {"a"})


def test_a_release_of_fedsa_has_the_mean_of_a_and_that_of_b(fedsa: Finished):
    release, adapter = fedsa.bank.releases[0], fedsa.bank.adapter(0)
    total = sum(release.sites.values())
    for name in adapter.modules:
        pairs = [
            (n / total, fedsa.updates[0, ROUNDS, site].pairs[name])
            for site, n in release.sites.items()
        ]
        for factor in ("a", "b"):
            mean = sum(weight * getattr(pair, factor) for weight, pair in pairs)
            np.testing.assert_allclose(getattr(adapter.pair(name), factor), mean, atol=1e-6)
    assert release.rule == "fedsa"


def test_each_site_keeps_its_own_b_and_answers_with_it(fedsa: Finished, tmp_path: Path):
    plan = load_plan(fedsa.plan)
    kept = own_bs(fedsa.run)
    assert len({file.split("/")[1] for file in kept}) == 3
    for site in ("a", "b"):
        found = own_b.latest(fedsa.run / "sites" / site / "store", plan.digest, 0)
        sent = fedsa.updates[0, ROUNDS, site]
        assert found is not None
        for name, pair in sent.pairs.items():
            np.testing.assert_array_equal(found.extra(AdapterPart.B.name_of(name)), pair.b)
    # Both are in the release's scores: what the sites answer with, and what everybody gets.
    scores = fedsa.bank.releases[0].scores
    assert {name.removeprefix("released_") for name in scores} < set(scores)


@pytest.mark.parametrize("rule", ["fed_sb", "fedsa"])
def test_a_site_that_trains_alone_sends_its_scores(rule: str, request: pytest.FixtureRequest):
    finished: Finished = request.getfixturevalue(rule)
    report = hospitals_of(load_plan(finished.plan), RunFolder(finished.run))
    assert report is not None
    alone = [one.tasks[task]["alone"] for one in report.hospitals for task in one.tasks]
    assert len(alone) == 4 and all(score is not None and 0 <= score <= 1 for score in alone)


@pytest.mark.parametrize("rule", ["fed_sb", "fedsa"])
def test_a_run_that_is_cut_off_again_and_again_ends_with_the_same_bytes(
    rule: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole: Finished = request.getfixturevalue(rule)

    class PowerCut(Exception):
        pass

    record, train = Journal.record, execute.train
    left = [0]

    def recorded(book: Journal, *args: Any) -> Any:
        found = record(book, *args)
        left[0] -= 1
        if left[0] == 0:
            raise PowerCut
        return found

    def trained(*args: Any) -> Any:
        update = train(*args)
        left[0] -= 1
        if left[0] == 0:
            # The site has its own B, and its answer is lost.
            raise PowerCut
        return update

    monkeypatch.setattr(Journal, "record", recorded)
    monkeypatch.setattr(execute, "train", trained)
    # Before, between and after the answers to an order; each try begins after the last one.
    for calls in (1, 2, 3, 3, 1, 4, 2):
        left[0] = calls
        with pytest.raises((PowerCut, SiteFailed)):
            simulate(whole.plan, options(tmp_path / "run"))
    left[0] = -1
    simulate(whole.plan, options(tmp_path / "run"))
    assert bank_bytes(tmp_path / "run") == bank_bytes(whole.run)
    assert own_bs(tmp_path / "run") == own_bs(whole.run)
