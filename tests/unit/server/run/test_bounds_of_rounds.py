"""With what a round's changes are compared: its learning rate, and the last round's changes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.adapter import Adapter, Pair, StoredAdapter, to_bytes
from common.exchange import Answer, Order, Update
from common.plan.file import parse_plan
from common.plan.plan import Plan
from server.aggregation.influence import RoundContext, SiteInfluence, Weighed, weigh
from server.run.stage import train_stage
from tests.unit.small_round import Sites, document, journal, run_context

#: |A|^2 is 2 / 3: that of rank 2 as PEFT draws it.
A = np.full((2, 3), 1 / 3, np.float32)


class Moving(Sites):
    """Sites that move every number of B by so much, by round and site, under a common A."""

    steps: Mapping[tuple[int, str], float]

    def answer(self, order: Order, site: str) -> Answer:
        pair = Pair(A, np.zeros((4, 2), np.float32))
        if order.adapter is not None:
            pair = StoredAdapter.in_file(self._book.blobs.path(order.adapter), "").pair("layer")
        moved = Pair(pair.a, pair.b + np.float32(self.steps[order.round, site]))
        update = super().answer(replace(order, adapter=None), site)
        assert isinstance(update, Update)
        blob = to_bytes(Adapter({"layer": moved}, 1.0))
        return replace(update, order=order.digest, examples=1, adapter=blob)


def influences(
    folder: Path, rate: float, steps: Mapping[tuple[int, str], float]
) -> tuple[Plan, dict[tuple[int, str], SiteInfluence]]:
    """A stage of two rounds at this learning rate; each site's influence by round."""
    plan = parse_plan({**document(learning_rate=rate), "aggregation": "svd"}, "p")
    book = journal(folder, plan)
    sites = Moving(book)
    sites.steps = steps
    train_stage(run_context(book, sites, of=plan)[0], 0, ())
    return plan, {(number, one.site): one for _, number, one in book.influences()}


def test_a_change_of_ten_steps_at_the_rounds_own_rate_is_not_too_large(tmp_path: Path):
    steps = {(1, "a"): 0.01, (1, "b"): 1.0, (2, "a"): 0.0, (2, "b"): 0.0}
    plan, found = influences(tmp_path, 0.03, steps)
    rate = 0.03 * plan.training.mean_rate(1, 2)
    assert rate < 0.028
    # The median says 0.02. Ten steps move each number of B by 10 * rate, and the product by that
    # times sqrt(outputs) |A|; as B moves here the product has 2 / 3 in each of 4 x 3 numbers.
    least = 10 * rate * np.sqrt(4) * np.sqrt(2 / 3)
    one = found[1, "b"]
    assert one.norm == pytest.approx(2 / 3 * np.sqrt(12))
    assert one.scaled == pytest.approx(least / one.norm) and one.scaled > 0.02


def test_a_change_as_large_as_the_last_rounds_at_this_rounds_rate_is_not_too_large(tmp_path: Path):
    steps = {(1, "a"): 1.0, (1, "b"): 1.0, (2, "a"): 0.05, (2, "b"): 1.0}
    plan, found = influences(tmp_path, 1e-9, steps)
    assert found[1, "a"].scaled == found[1, "b"].scaled == 1.0
    part = plan.training.mean_rate(2, 2) / plan.training.mean_rate(1, 2)
    assert 0.1 < part < 0.3
    one = found[2, "b"]
    # Twice the median would be 0.1 of it.
    assert one.norm * one.scaled == pytest.approx(part * found[1, "a"].norm)


def test_a_site_that_claims_more_examples_later_counts_with_those_that_it_said_at_first(
    tmp_path: Path,
):
    class Growing(Sites):
        def answer(self, order: Order, site: str) -> Answer:
            update = super().answer(order, site)
            assert isinstance(update, Update)
            return replace(update, examples=update.examples * (1000 if order.round == 2 else 1))

    book = journal(tmp_path)
    train_stage(run_context(book, Growing(book))[0], 0, ())
    assert [closed.sites for _, _, closed in book.rounds()] == [{"a": 1, "b": 3}] * 2


def test_a_site_that_counted_nothing_is_none_of_the_rounds_sites(tmp_path: Path):
    steps = {(1, "a"): 0.001, (1, "b"): 1.0, (2, "a"): 0.001, (2, "b"): 0.001}
    plan, found = influences(tmp_path, 1e-9, steps)
    assert found[1, "b"].outlier and found[1, "b"].share == 0.0
    first, second = (closed for _, _, closed in journal(tmp_path, plan).rounds())
    assert (first.sites, second.sites) == ({"a": 1}, {"a": 1, "b": 1})
    assert len(first.refusals) == 1 and "site b" in first.refusals[0]


def test_nobody_knows_the_sketchs_seed_before_all_updates_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seeds: list[int] = []

    def noting(updates: Any, examples: Any, round: RoundContext) -> Weighed:
        seeds.append(round.seed)
        return weigh(updates, examples, round)

    monkeypatch.setattr("server.run.stage.weigh", noting)
    for number, last in enumerate((1.0, 1.0, 1.001)):
        steps = {(1, "a"): 1.0, (1, "b"): last, (2, "a"): 1.0, (2, "b"): 1.0}
        influences(tmp_path / str(number), 1.0, steps)
    first, again, other = seeds[::2]
    assert first == again != other
