"""What is called learned, and what the mean gain of a run is, of made-up scores."""

from dataclasses import replace

import pytest

from common.plan.plan import Metric
from report.answers.model import LEARNED, AnswerFigures, Gain, TaskFigures
from report.learned.intervals import Estimate, difference, mean_of, wilson
from report.learned.verdict import GainVerdict, gains_at_end, gains_when_learned, run_gain
from report.model import RunReport
from tests.unit.report.learned.test_headlines import made
from tests.unit.report.test_report import SCORES


def first_task_alone(report: RunReport) -> RunReport:
    return replace(
        report, stages=report.stages[:1], scores=(report.scores[0][:1],), zero_shot=(0.1,),
        majority=report.majority[:1], task_metrics=report.task_metrics[:1],
    )  # fmt: skip


def test_of_several_tasks_each_takes_surer_evidence_than_a_single_one():
    # 64 against 50 of 100: above zero at 95 %, and not at 1 - 0.05 / 3.
    three = made(((0.64, 0.4, 0.3),) * 3, questions=100)
    (one,) = gains_when_learned(first_task_alone(three))
    among = gains_when_learned(three)[0]
    plain = difference(wilson(0.64, 100), wilson(0.5, 100))
    assert one.interval == among.interval == plain and plain.low > 0
    assert (one.verdict, among.verdict) == (GainVerdict.LEARNED, GainVerdict.NOT_SHOWN)


@pytest.mark.parametrize(
    ("strict", "verdict"),
    [
        (Estimate(0.1, 0.01, 0.2), GainVerdict.LEARNED),
        (Estimate(0.1, 0.0, 0.2), GainVerdict.NOT_SHOWN),
        (Estimate(-0.1, -0.2, 0.0), GainVerdict.NOT_SHOWN),
        (Estimate(-0.1, -0.2, -0.01), GainVerdict.WORSE),
    ],
)
def test_an_interval_that_ends_at_zero_shows_nothing(strict: Estimate, verdict: GainVerdict):
    # A bootstrap's percentile is often 0 itself.
    gain = Gain(estimate=Estimate(0.1, 0.05, 0.15), strict=strict)
    figures = TaskFigures(
        task="x", questions=9, pictures=9, scores={}, gains={LEARNED: gain}, by_site=(),
        confusion=(),
    )  # fmt: skip
    report = replace(made(SCORES), answers=AnswerFigures(tasks=(figures,) * 3, mean_gains={}))
    assert [one.verdict for one in gains_when_learned(report)] == [verdict] * 3


def test_the_gain_of_a_run_is_that_of_all_its_tasks_or_unknown():
    known = run_gain(made(SCORES))
    assert known is not None and known.tasks == 3
    assert known.gain == pytest.approx((0.8 + 0.9 + 1.0 - 0.5 - 0.4 - 0.3) / 3)
    parts = [one.interval for one in gains_at_end(made(SCORES)) if one.interval is not None]
    assert known.interval == mean_of(parts) and len(parts) == 3
    lacking = replace(made(SCORES), zero_shot=(0.1, 0.2, None), majority=(0.5, 0.4, None))
    found = run_gain(lacking)
    assert found is not None and found.score == pytest.approx(0.9)
    assert (found.gain, found.interval) == (None, None)


def test_where_one_task_was_not_scored_at_the_end_a_run_is_judged_when_its_tasks_were_learned():
    found = run_gain(made((SCORES[0], (0.1, 0.9, 0.4), (None, 0.2, 1.0))))
    assert found is not None and not found.at_end
    assert found.score == pytest.approx((0.8 + 0.9 + 1.0) / 3)
    # Of other measures that were not scored nothing is said.
    mixed = made((SCORES[0], SCORES[1], (0.1, 0.2, None)), metrics=(Metric.F1, Metric.F1,
                 Metric.ACCURACY))  # fmt: skip
    found = run_gain(mixed)
    assert found is not None and found.at_end and (found.tasks, found.of) == (2, 2)
    assert found.score == pytest.approx(0.15)
