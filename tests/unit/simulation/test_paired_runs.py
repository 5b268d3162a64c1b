import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from common.errors import DataError
from common.metrics import AnsweredQuestion, AnswerKind, judge, task_metrics
from common.plan.plan import Metric
from report.answers.figures import contributions
from report.methods import EXACT_MATCH, LEARNED, PairedTest, Test
from simulation.paired_runs import PairedRun, paired_tests
from tests.unit.report.test_report import run as report

Marks = Mapping[tuple[int, int], str]
TASKS = 3


def answers(marks: str, seed: int, task: int) -> list[AnsweredQuestion]:
    """One answer for each mark: x is right."""
    return [
        AnsweredQuestion(
            f"{seed} {task} {number}", "yes" if mark == "x" else "no", "yes", AnswerKind.CLOSED
        )
        for number, mark in enumerate(marks)
    ]


def share(marks: str) -> float:
    return marks.count("x") / len(marks)


def ran(
    method: str,
    marks: Marks,
    seed: int = 0,
    metrics: Sequence[Metric] = (Metric.ACCURACY,) * TASKS,
) -> PairedRun:
    """A run whose answers to task j after stage i are right where `marks[j, i]` has an x."""
    scores = [
        [share(marks[task, stage]) if (task, stage) in marks else None for task in range(TASKS)]
        for stage in range(TASKS)
    ]
    of = {which: answers(one, seed, which[0]) for which, one in marks.items()}
    told = report(scores=scores, method=method, seed=seed, metrics=metrics)
    told = replace(told, all_tasks_at_once=method == "joint")
    return PairedRun(told, lambda task, after: of[task, after])


def everywhere(*marks: str) -> Marks:
    """The same answers to a task after every stage."""
    return {(task, stage): one for task, one in enumerate(marks) for stage in range(task, TASKS)}


def find(tests: Sequence[PairedTest], test: Test, score: str, method: str = "other") -> PairedTest:
    (found,) = [t for t in tests if (t.test, t.score, t.method) == (test, score, method)]
    return found


OWN = everywhere("xxxx", "xx..", "xxx.")


def test_mcnemar_pools_the_answers_of_all_tasks_by_hand():
    other = everywhere("x...", "xx..", "..xx")
    tests = paired_tests([ran("own", OWN), ran("other", other)])
    found = find(tests, Test.MCNEMAR, LEARNED)
    # Task 0: three that only own has right; task 2: x x x . against . . x x, two and one.
    assert (found.own_only, found.other_only, found.pairs) == (5, 1, 12)
    assert found.p == 2 * (1 + 6) / 2**6
    assert found.difference == pytest.approx(4 / 12)
    assert found.measure == EXACT_MATCH


def test_the_bootstrap_has_the_difference_of_the_mean_scores():
    other = everywhere("x...", "xx..", "..xx")
    runs = [ran("own", OWN), ran("other", other)]
    found = find(paired_tests(runs), Test.BOOTSTRAP, "last")
    mean = (3 / 4 + 0 + 1 / 4) / 3
    assert found.difference == pytest.approx(mean)
    assert found.low is not None and found.high is not None
    assert found.low < mean < found.high
    assert (found.measure, found.pairs) == ("accuracy", 12)


def test_unlike_measures_are_tested_apart():
    metrics = (Metric.ACCURACY, Metric.ACCURACY, Metric.RECALL)
    runs = [ran(name, OWN, metrics=metrics) for name in ("own", "other")]
    boots = [test for test in paired_tests(runs) if test.test is Test.BOOTSTRAP]
    assert [(test.score, test.measure, test.pairs) for test in boots] == [
        (LEARNED, "accuracy", 8),
        (LEARNED, "recall", 4),
        ("last", "accuracy", 8),
        ("last", "recall", 4),
    ]


def test_an_auc_is_no_mean_over_answers_and_is_not_drawn_anew():
    metrics = (Metric.AUC, Metric.AUC, Metric.ACCURACY)
    runs = [ran(name, OWN, metrics=metrics) for name in ("own", "other")]
    boots = [test for test in paired_tests(runs) if test.test is Test.BOOTSTRAP]
    assert [(test.score, test.measure) for test in boots] == [
        (LEARNED, "accuracy"),
        ("last", "accuracy"),
    ]


def test_what_was_learned_and_what_is_left_are_two_tests():
    forgets = {**OWN, (0, 1): "xx..", (0, 2): "....", (1, 2): "...."}
    tests = paired_tests([ran("own", OWN), ran("other", forgets)])
    assert find(tests, Test.MCNEMAR, LEARNED).p == 1.0
    assert find(tests, Test.MCNEMAR, "last").own_only == 6


def test_over_seeds_the_metrics_of_the_whole_run_are_paired():
    own = [ran("own", everywhere("xxxx", "xxxx", "xxxx"), seed) for seed in range(3)]
    lost = ["xx..", "x...", "...."]
    other = [
        ran("other", {**everywhere("xxxx", "xxxx", "xxxx"), (0, 2): marks}, seed)
        for seed, marks in enumerate(lost)
    ]
    found = find(paired_tests([*own, *other]), Test.T, "forgetting")
    # Of two earlier tasks one loses 2, 3 and 4 of four answers: -1/4, -3/8 and -1/2.
    assert found.difference == pytest.approx(-3 / 8)
    assert found.deviation == pytest.approx(1 / 8)
    t = (3 / 8) / (1 / 8 / math.sqrt(3))
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert found.pairs == 3
    # The runs have no model of a task's own, so there is no learning gain to test.
    assert not [test for test in paired_tests([*own, *other]) if test.score == "learning_gain"]


def test_a_single_seed_has_no_t():
    tests = paired_tests([ran("own", OWN), ran("other", OWN)])
    assert {test.test for test in tests} == {Test.MCNEMAR, Test.BOOTSTRAP}


def test_only_seeds_that_both_have_are_paired():
    runs = [ran("own", OWN, 0), ran("own", OWN, 1), ran("other", OWN, 1), ran("other", OWN, 2)]
    tests = paired_tests(runs)
    assert find(tests, Test.MCNEMAR, LEARNED).pairs == 12
    assert not [test for test in tests if test.test is Test.T]
    assert paired_tests([ran("own", OWN, 0), ran("other", OWN, 1)]) == []


def test_holm_takes_the_methods_of_one_score_together():
    worse = everywhere("....", "....", "....")
    runs = [ran("own", OWN), ran("other", worse), ran("third", OWN)]
    tests = paired_tests(runs)
    # Nine answers that only own has right: p = 2 / 2^9, the smaller one of two.
    first, second = (find(tests, Test.MCNEMAR, LEARNED, name) for name in ("other", "third"))
    assert (first.p, first.p_holm) == (2 / 2**9, 4 / 2**9)
    assert (second.p, second.p_holm) == (1.0, 1.0)


def test_nothing_is_tested_at_the_end_where_not_all_tasks_were_scored_then():
    other = {which: marks for which, marks in OWN.items() if which in {(0, 0), (1, 1), (2, 2)}}
    tests = paired_tests([ran("own", OWN), ran("other", other)])
    assert find(tests, Test.MCNEMAR, LEARNED).pairs == 12
    assert {test.score for test in tests} == {LEARNED}
    assert paired_tests([ran("own", OWN), ran("other", {(0, 0): "xxxx"})]) == []


def test_joint_training_is_compared_at_the_end_alone():
    runs = [ran(name, OWN, seed) for name in ("own", "joint") for seed in (0, 1)]
    tests = paired_tests(runs)
    assert {test.score for test in tests} == {"last"}
    assert {test.test for test in tests} == {Test.MCNEMAR, Test.BOOTSTRAP, Test.T}


def same_data(method: str, seed: int, marks: Marks) -> PairedRun:
    told = ran(method, marks, seed).report
    return PairedRun(told, lambda task, after: answers(marks[task, after], 0, task))


def test_questions_that_every_seed_asks_again_count_once():
    first, second = everywhere("x...", "xx..", "..xx"), everywhere("xxx.", "xx..", "..xx")
    runs = [same_data("own", seed, OWN) for seed in (0, 1)]
    runs += [same_data("other", seed, marks) for seed, marks in enumerate((first, second))]
    tests = paired_tests(runs, same_questions=True)
    assert not [test for test in tests if test.test is Test.MCNEMAR]
    found = find(tests, Test.BOOTSTRAP, LEARNED)
    # Task 0: three and one of four; task 1: none; task 2: one of four, twice.
    assert found.difference == pytest.approx((2 / 4 + 0 + 1 / 4) / 3)
    assert found.pairs == 12
    assert find(paired_tests(runs), Test.BOOTSTRAP, LEARNED).pairs == 24
    alone = [run for run in runs if run.report.seed == 0]
    assert find(paired_tests(alone, same_questions=True), Test.MCNEMAR, LEARNED).pairs == 12


def test_what_rounding_leaves_is_no_difference_over_seeds():
    own = [ran("own", everywhere("x..", "xx.", "..."), seed) for seed in range(2)]
    other = [ran("other", everywhere("xx.", "x..", "..."), seed) for seed in range(2)]
    found = find(paired_tests([*own, *other]), Test.T, "last")
    assert (found.difference, found.p) == (0, 1)


def test_a_report_made_again_has_the_same_figures():
    runs = [ran("own", OWN), ran("other", everywhere("x...", "xx..", "..xx"))]
    assert paired_tests(runs) == paired_tests(runs)


def test_answers_to_other_questions_are_refused():
    strange = PairedRun(
        ran("other", OWN).report, lambda task, after: answers("xxxx", seed=9, task=task)
    )
    with pytest.raises(DataError, match="other answered other questions, expected those of own"):
        paired_tests([ran("own", OWN), strange])


def test_one_method_alone_has_nothing_to_be_tested_against():
    assert paired_tests([ran("own", OWN, 0), ran("own", OWN, 1)]) == []


@pytest.mark.parametrize("metric", [metric for metric in Metric if metric is not Metric.AUC])
def test_the_mean_contribution_of_the_answers_is_the_measure(metric: Metric):
    kind = AnswerKind.OPEN
    given = [
        AnsweredQuestion("q", "left lung", "left lung", kind),
        AnsweredQuestion("q", "left", "left lung", kind),
        AnsweredQuestion("q", "right lung", "left lung", kind),
        AnsweredQuestion(
            "q", "no mass in the left upper lobe", "no mass in the left lower lobe", kind
        ),
        AnsweredQuestion("q", "clear", "clear", kind),
    ]
    found = contributions(metric, [judge(one) for one in given])
    assert float(np.mean(found)) == pytest.approx(task_metrics(given)[metric.value], rel=1e-12)


def test_the_questions_of_a_picture_count_as_one():
    # The first is right on all four questions of one picture, the other on none.
    own, other = everywhere("xxxx....", "........", "........"), everywhere(*["........"] * 3)

    def pictures(_task: int) -> list[int]:
        return [0, 0, 0, 0, 1, 1, 1, 1]

    runs = [
        replace(ran(method, marks), pictures=pictures)
        for method, marks in (("own", own), ("other", other))
    ]
    tests = paired_tests(runs, 400)
    found = find(tests, Test.MCNEMAR, LEARNED)
    assert (found.own_only, found.other_only) == (4, 0)
    # One picture that differs: a fair coin's two sides. Four questions would give 0.125.
    assert found.p == pytest.approx(1.0)
    alone = paired_tests([replace(run, pictures=None) for run in runs], 400)
    assert find(alone, Test.MCNEMAR, LEARNED).p == pytest.approx(0.125)


def test_data_that_have_changed_since_are_refused():
    first, other = (ran(name, everywhere("xx", "x-", "--")) for name in ("own", "other"))

    def pictures(task: int) -> Sequence[int]:
        return [0, 1, 2]

    first = replace(first, pictures=pictures)
    with pytest.raises(DataError) as refused:
        paired_tests([first, other])
    assert str(refused.value).endswith(
        "seed 0: found 3 test questions in the data, expected the 2 that were answered: the data "
        "have changed since; use another folder"
    )
