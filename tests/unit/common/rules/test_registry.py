"""A rule is one file of common/rules/: a new one is found by plan, client and server."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.adapter import Adapter, Pair
from common.bank.bank import Bank, verify_bank
from common.bank.check import Expected
from common.errors import AggregationError, PlanError, SiteFailed
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.rules.interface import Factor
from common.rules.registry import rule_named, rules
from server.aggregation.round import SiteUpdate
from server.run.stage import train_stage
from tests.unit.new_rule import LARGEST_SITE, rule_file
from tests.unit.server.aggregation.aggregated import aggregate
from tests.unit.small_bank import BASE, KEY, blob, draft
from tests.unit.small_round import document, journal, run_context


def plan_with(**changes: Any) -> Plan:
    return parse_plan({**document(rounds=1), **changes}, "p.yaml")


def update(site: str, examples: int, value: float, rank: int = 2) -> SiteUpdate:
    pair = Pair(np.full((rank, 3), value, np.float32), np.full((4, rank), 2 * value, np.float32))
    return SiteUpdate(site, examples, Adapter({"layer": pair}, 1.0))


@pytest.fixture
def largest_site(tmp_path: Path) -> Iterator[None]:
    with rule_file(tmp_path / "rules", "largest_site"):
        yield


@pytest.mark.usefixtures("largest_site")
def test_a_new_rule_is_one_new_file(tmp_path: Path):
    # The plan knows it, and says so where another is asked for.
    found = plan_with(aggregation="largest_site")
    with pytest.raises(PlanError, match="'krum', 'largest_site', 'median', "):
        plan_with(aggregation="largest")
    # Sites may begin with different adapters if it says that they may.
    nearest = {
        "name": "mslora_cr",
        "rank": 2,
        "alpha": 2,
        "active": "all",
        "contrast": None,
        "start": "nearest",
    }
    assert plan_with(aggregation="largest_site", method=nearest).rule is found.rule
    with pytest.raises(PlanError, match="or the rule 'krum' or 'largest_site' or 'svd'"):
        plan_with(aggregation="fedavg", method=nearest)
    # It says what is trained.
    assert [found.rule.trained_factors(number) for number in (1, 2)] == [Factor.B, Factor.BOTH]
    # Its own merge and error are those of the aggregate: sqrt(1 / 4).
    updates = [update("a", 1, 1.0), update("b", 3, 5.0)]
    merged = aggregate(found.rule, updates, None, 2)
    np.testing.assert_array_equal(merged.adapter.pairs["layer"].a, 5.0)
    assert merged.error == 0.5
    # Ranks may not differ, as it says.
    with pytest.raises(AggregationError, match="site a: found rank 2, expected 3"):
        aggregate(found.rule, updates, None, 3)
    # A site that changes the factor that is not trained is refused by name.
    book = journal(tmp_path / "run", found)
    with pytest.raises(SiteFailed, match="site b could not train stage 1, round 1: found another"):
        train_stage(run_context(book, of=found)[0], 0, ())


@pytest.mark.parametrize("text", ["", "RULE = 'nothing'", LARGEST_SITE])
def test_a_file_without_a_rule_of_its_own_name_is_an_error(tmp_path: Path, text: str):
    said = r"common\.rules\.other_name: found RULE = .* 'other_name'"
    with rule_file(tmp_path / "rules", "other_name", text), pytest.raises(TypeError, match=said):
        rules()


def test_a_rule_that_is_not_there_is_an_error_that_lists_those_that_are():
    with pytest.raises(PlanError) as caught:
        rule_named("mean")
    assert str(caught.value) == (
        "aggregation: found 'mean', expected one of 'alternating', 'fed_sb', 'fedavg', 'fedsa', "
        "'fedsvd', 'frozen_a', 'krum', 'median', 'rotated', 'svd' or 'trimmed_mean'"
    )


def test_a_bank_made_with_a_rule_that_is_not_there_any_more_still_opens(tmp_path: Path):
    bank = Bank.create(tmp_path, BASE)
    bank.add(replace(draft(bank, "ct"), rule="largest_site"), blob(0), KEY)
    opened = verify_bank(tmp_path, Expected())
    assert Bank.open(tmp_path) == opened
    assert opened.releases[0].rule == "largest_site"
