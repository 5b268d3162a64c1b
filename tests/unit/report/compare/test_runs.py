"""Two runs side by side: what their difference is, and what may be said of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from common.plan.plan import Metric
from report.compare.model import Basis
from report.compare.runs import FinishedRun, compare_runs, plan_differences
from report.learned.intervals import difference, wilson
from report.model import RunReport
from report.sites.model import SiteClaim, SiteParts
from tests.unit.report.test_report import run

MINUS = "\N{MINUS SIGN}"
PLAN: dict[str, Any] = {
    "name": "a", "seed": 0, "base_model": {"sha256": "cd" * 32},
    "stages": [{"name": "tissue", "rounds": 2}, {"name": "plane", "rounds": 3}],
}  # fmt: skip


def made(*scores: float, questions: int = 300, **changes: Any) -> RunReport:
    report = run([list(scores)] * 3)
    claim = SiteClaim(examples=9, questions=questions, scores={})
    claims = {stage.name: {"a": claim} for stage in report.stages}
    return replace(report, sites=SiteParts(self_reported=claims, updates=()), **changes)


def finished(*reports: RunReport, plan: dict[str, Any] = PLAN) -> FinishedRun:
    return FinishedRun(reports=reports, plan=plan)


def with_rounds(rounds: int, **more: Any) -> dict[str, Any]:
    return {**PLAN, **more, "stages": [{"name": "tissue", "rounds": rounds}, PLAN["stages"][1]]}


def test_each_task_has_both_scores_and_their_difference_with_its_interval():
    first, second = made(0.5, 0.6, 0.7), made(0.8, 0.6, 0.65)
    found = compare_runs(finished(first), finished(second))
    tissue = found.tasks[0]
    assert (tissue.first, tissue.second, tissue.difference) == (0.5, 0.8, pytest.approx(0.3))
    assert tissue.interval == difference(wilson(0.8, 300), wilson(0.5, 300))
    assert [task.differs for task in found.tasks] == [True, False, False]
    (mean,) = found.means
    assert (mean.tasks, mean.first, mean.second) == (
        3,
        pytest.approx(0.6),
        pytest.approx(0.6833333),
    )


def said(first: Sequence[float], second: Sequence[float], questions: int = 300) -> str:
    one, other = (made(*scores, questions=questions) for scores in (first, second))
    return compare_runs(finished(one), finished(other, plan=with_rounds(9))).may_be_said


def test_the_sentence_says_who_is_better_only_where_the_interval_says_so():
    assert said((0.5, 0.5, 0.5), (0.8, 0.8, 0.8)).startswith(
        "The second run scores higher over 3 tasks (accuracy): +30.0 points [+"
    )
    assert said((0.8, 0.8, 0.8), (0.5, 0.5, 0.5)).startswith("The first run scores higher")
    assert said((0.5, 0.5, 0.5), (0.52, 0.5, 0.5)).startswith("No difference is shown over 3 tasks")
    # The same scores of few questions.
    assert said((0.5, 0.5, 0.5), (0.7, 0.7, 0.7), questions=8).startswith("No difference is shown")


def test_the_sentence_says_what_the_difference_may_come_from():
    one = "The plans differ in stages.tissue.rounds alone. With one seed each, nothing is said"
    assert one in said((0.5, 0.5, 0.5), (0.8, 0.8, 0.8))
    first = finished(made(0.5, 0.5, 0.5))
    several = finished(made(0.5, 0.5, 0.5), plan=with_rounds(9, seed=1))
    text = compare_runs(first, several).may_be_said
    assert "differ in 2 fields (seed, stages.tissue.rounds), so it is not the effect of one" in text
    missing = compare_runs(first, finished(made(0.5, 0.5, 0.5), plan={})).may_be_said
    assert "A plan is missing" in missing
    assert "The plans are equal." in compare_runs(first, first).may_be_said


def test_without_a_number_of_questions_nothing_is_shown():
    bare = finished(run())
    found = compare_runs(bare, finished(run([(0.9, 0.9, 0.9)] * 3)))
    assert found.tasks[0].interval is None and not found.tasks[0].differs
    assert "without an interval no more is shown" in found.may_be_said


def test_runs_of_the_same_seeds_are_paired_seed_by_seed():
    first = finished(made(0.5, 0.5, 0.5, seed=1), made(0.7, 0.7, 0.7, seed=2))
    second = finished(made(0.8, 0.8, 0.8, seed=2), made(0.6, 0.6, 0.6, seed=1))
    found = compare_runs(first, second)
    assert found.basis is Basis.SEEDS
    interval = found.means[0].interval
    # Both seeds gain 0.1, so the deviation is 0.
    assert interval is not None
    assert (interval.low, interval.value, interval.high) == pytest.approx((0.1, 0.1, 0.1))
    assert "one seed" not in found.may_be_said


def test_means_over_other_seeds_have_no_interval_which_would_be_of_two_of_the_runs():
    first = finished(made(0.9, 0.9, 0.9, seed=1), made(0.1, 0.1, 0.1, seed=2))
    found = compare_runs(first, finished(made(0.5, 0.5, 0.5, seed=3)))
    assert found.basis is Basis.QUESTIONS
    assert [(task.difference, task.interval) for task in found.tasks] == [(0.0, None)] * 3
    assert not any(task.differs for task in found.tasks)
    assert found.means[0].interval is None
    assert "an interval needs the same seeds in both runs, or one each: found 1, 2 and 3. The" in (
        found.may_be_said
    )
    assert "one seed each, nothing" not in found.may_be_said


def test_tasks_that_only_one_run_has_are_named():
    other = run(names=("tissue", "quadrant", "side"))
    unlike = run(metrics=(Metric.RECALL,) * 3)
    found = compare_runs(finished(run()), finished(other))
    assert (found.only_first, found.only_second) == (("plane",), ("side",))
    nothing = compare_runs(finished(run()), finished(unlike))
    assert nothing.tasks == () and nothing.may_be_said.startswith("Nothing may be said")


def test_plans_differ_by_dotted_names_and_code_is_told_beside_them():
    first, second = made(0.5, 0.5, 0.5), made(0.5, 0.5, 0.5)
    moved = replace(second, provenance=replace(second.provenance, code="4567"))
    found = plan_differences(finished(first), finished(moved, plan=with_rounds(9, name="b")))
    assert found == {"stages.tissue.rounds": (2, 9), "code": ("0123", "4567")}
