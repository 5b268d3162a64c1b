"""What single answers show: scores with intervals, gains, and confusion tables."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from common.metrics import AnsweredQuestion, AnswerKind, judge, task_metrics
from common.plan.plan import Metric
from report.answers.figures import (
    SiteAnswers,
    TaskAnswers,
    answer_figures,
    confusion,
    contributions,
    score_estimate,
)
from report.answers.model import BASE, LAST, LEARNED, MAJORITY, AnswerFigures, Gain
from report.headlines import how_sure, page_headline
from report.html import render_page
from report.json_file import from_document, to_document
from report.learned.intervals import Estimate, difference, wilson
from report.learned.rows import rows_by_site, task_scores
from report.model import RunReport
from tests.unit.report.test_report import parsed, run

NAMES = ("tissue", "quadrant", "plane")


def said(*answers: str, truth: str = "yes", question: str = "is it?") -> list[AnsweredQuestion]:
    return [
        AnsweredQuestion(question=question, answer=one, truth=truth, kind=AnswerKind.CLOSED)
        for one in answers
    ]


def right(count: int, total: int) -> list[AnsweredQuestion]:
    return said(*["yes"] * count, *["no"] * (total - count))


def site(
    name: str, model: int, base: int, total: int, pictures: Sequence[int] | None = None
) -> SiteAnswers:
    """A site of which the model answers so many of all questions rightly, the base model others."""
    return SiteAnswers(
        site=name,
        weight=0.5,
        pictures=range(total) if pictures is None else pictures,
        answers={
            LEARNED: right(model, total),
            LAST: right(model, total),
            BASE: right(base, total),
            MAJORITY: right(0, total),
        },
    )


def figures(model: int = 30, base: int = 10, total: int = 40) -> AnswerFigures:
    sites = (site("a", model, base, total), site("b", model, base, total))
    return answer_figures(
        [TaskAnswers(task=name, metric=Metric.ACCURACY, sites=sites) for name in NAMES]
    )


def told(found: AnswerFigures, score: float, base: float) -> RunReport:
    report = run(((score,) * 3,) * 3)
    return replace(report, zero_shot=(base,) * 3, majority=(0.0,) * 3, answers=found)


def test_questions_of_pictures_of_their_own_give_wilsons_interval():
    (task, *_) = figures().tasks
    score, plain = task.scores[LAST], wilson(0.75, 80)
    assert (task.questions, task.pictures) == (80, 80)
    assert score.value == pytest.approx(0.75)
    # The variance of clusters has n - 1 where Wilson's has n.
    assert (score.low, score.high) == pytest.approx((plain.low, plain.high), abs=3e-3)


def test_questions_of_one_picture_widen_the_interval_as_if_there_were_as_many_pictures():
    pictures = [place // 4 for place in range(40)]
    # Ten pictures of four questions, of which each is right in all or in none.
    of_clusters = TaskAnswers(
        task="t",
        metric=Metric.ACCURACY,
        sites=(replace(site("a", 20, 0, 40, pictures), weight=1.0),),
    )
    score = answer_figures([of_clusters]).tasks[0].scores[LAST]
    assert score.high - score.low == pytest.approx(
        wilson(0.5, 9).high - wilson(0.5, 9).low, abs=1e-9
    )


def test_pictures_with_unequal_numbers_of_questions_are_clusters_by_hand():
    # Three pictures: all of three right, none of one, one of two. The mean is 2 / 3, and what each
    # has above it 1, -2 / 3, -1 / 3: the variance is 3 / 2 * 14 / 9 / 6^2 = 7 / 108.
    values, pictures = np.array([1, 1, 1, 0, 1, 0], np.float64), [5, 5, 5, 2, 9, 9]
    found = score_estimate([(1.0, values, pictures)])
    expected = wilson(2 / 3, 2 / 9 / (7 / 108))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    # A site with one picture tells nothing of its spread: it is at most 1 / 4.
    one = score_estimate([(0.5, values, pictures), (0.5, np.ones(4), [1] * 4)])
    score, variance = (2 / 3 + 1) / 2, (7 / 108 + 1 / 4) / 4
    expected = wilson(score, score * (1 - score) / variance)
    assert (one.low, one.high) == pytest.approx((expected.low, expected.high))


def test_a_score_of_all_right_is_as_sure_as_its_pictures():
    pictures = [place // 4 for place in range(40)]
    (task,) = answer_figures(
        [TaskAnswers(task="t", metric=Metric.ACCURACY, sites=(site("a", 40, 0, 40, pictures),) * 2)]
    ).tasks
    assert task.scores[LAST].low == pytest.approx(wilson(1.0, 20).low)


def test_the_gain_is_paired_and_over_the_better_of_what_knows_nothing():
    (task, *_) = figures().tasks
    gain = task.gains[LAST]
    assert gain.estimate.value == pytest.approx(0.5)
    # 20 of 40 questions at each of two sites are won, none is lost: deviation .5 / sqrt(80).
    assert (gain.estimate.low, gain.estimate.high) == pytest.approx((0.3904, 0.6096), abs=0.02)
    assert gain.strict.low < gain.estimate.low and gain.strict.high > gain.estimate.high


def test_few_pictures_show_no_gain_whatever_their_number_of_questions():
    pictures = [place // 20 for place in range(40)]
    sites = (site("a", 30, 10, 40, pictures), site("b", 30, 10, 40, pictures))
    found = answer_figures(
        [TaskAnswers(task=name, metric=Metric.ACCURACY, sites=sites) for name in NAMES]
    )
    assert found.tasks[0].pictures == 4 and found.tasks[0].gains[LAST].estimate.low < 0
    assert "no task is shown to be learned" in page_headline([told(found, 0.75, 0.25)])


def test_from_ten_pictures_on_the_gain_is_paired_and_below_that_of_two_independent_shares():
    def gain(pictures: int) -> Gain:
        sites = (replace(site("a", pictures, 0, pictures), weight=1.0),)
        tasks = [TaskAnswers(task=name, metric=Metric.ACCURACY, sites=sites) for name in NAMES]
        return answer_figures(tasks).tasks[0].gains[LAST]

    # All pictures are won.
    assert gain(10).estimate == gain(10).strict == Estimate(1.0, 1.0, 1.0)
    few = gain(9)
    assert few.estimate == difference(wilson(1.0, 9), wilson(0.0, 9))
    level = 0.05 / len(NAMES)
    assert few.strict == difference(wilson(1.0, 9, level), wilson(0.0, 9, level))


def test_a_gain_has_the_sites_weights_of_the_score():
    sites = (replace(site("a", 20, 0, 20), weight=0.9), replace(site("b", 5, 5, 20), weight=0.1))
    (task,) = answer_figures([TaskAnswers(task="t", metric=Metric.ACCURACY, sites=sites)]).tasks
    gain = task.gains[LAST].estimate
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.9, 0.9, 0.9))


def test_the_mean_of_contributions_is_the_measure():
    answers = [*said("yes", "yes", "no"), *said("no", truth="no"), *said("red", truth="blue")]
    judged = [judge(one) for one in answers]
    measures = task_metrics(answers)
    assert measures["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    for metric in (Metric.BALANCED_ACCURACY, Metric.ACCURACY, Metric.F1, Metric.RECALL):
        found = float(contributions(metric, judged).mean())
        assert found == pytest.approx(measures[metric.value])


def test_a_report_with_answers_takes_its_intervals_from_them():
    report = told(figures(), 0.75, 0.25)
    assert page_headline([report]).startswith("Mean score at the end 75.0 %, +50.0 points [+4")
    assert "240 test pictures with their 240 questions" in how_sure([report])
    (row, *_) = task_scores(report)
    assert (row.questions, row.pictures) == (80, 80) and row.last.interval is not None
    (by_site, *_) = rows_by_site(report)
    assert [cell and (cell.site, cell.questions) for cell in by_site.cells] == [
        ("a", 40),
        ("b", 40),
    ]
    assert from_document(json.loads(json.dumps(to_document(report))), "here") == report


def test_answers_that_know_nothing_more_are_no_success():
    report = told(figures(model=11), 11 / 40, 0.25)
    assert "no task is shown to be learned" in page_headline([report])


def test_a_table_counts_each_true_answer_by_what_was_said():
    table = confusion(
        "which?", [*said("none", "0", "some", truth="none"), *said("much", "odd", truth="some")]
    )
    assert table is not None
    # "none" and "0" are equal after normalization; it is called as it is written most often.
    assert table.truths == ("none", "some")
    assert table.answers == ("none", "some", "much", "odd")
    assert table.counts == ((2, 1, 0, 0), (0, 0, 1, 1))


def test_a_table_with_too_many_rows_is_left_out_and_rare_answers_are_summed_up():
    many = [one for place in range(13) for one in said("x", truth=f"word{place}")]
    assert confusion(None, many) is None
    strange = [*said(*(f"odd{place}" for place in range(30))), *said("no", truth="no")]
    table = confusion(None, strange)
    assert table is not None and table.answers[-1] == "others" and len(table.answers) == 14
    assert sum(map(sum, table.counts)) == 31


def test_the_page_shows_tables_and_escapes_what_was_said():
    odd = TaskAnswers(
        task="tissue",
        metric=Metric.ACCURACY,
        sites=(
            SiteAnswers(
                site="a",
                weight=1.0,
                pictures=range(4),
                answers={LAST: [*said("<b>x</b>", "yes"), *said("no", "no", truth="no")]},
            ),
        ),
    )
    rest = [replace(odd, task=name) for name in NAMES[1:]]
    found = answer_figures([odd, *rest])
    page = render_page([told(found, 0.75, 0.25)])
    assert "Which answer for which" in page and "<b>x</b>" not in page
    assert "<b>x</b>" in parsed(page).text
    assert "Which answer for which" not in render_page([run()])
