"""The headlines of made-up results, good and bad: none may sound better than its evidence."""

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from common.plan.plan import Metric
from report.headlines import (
    comparison_headline,
    forgetting_headline,
    how_sure,
    learning_headline,
    page_headline,
)
from report.hospitals.model import HospitalsReport, Interval
from report.hospitals.words import gain_headline, who_gains
from report.html import render_page
from report.model import RunReport
from report.sites.model import SiteClaim, SiteParts
from tests.unit.report.hospitals.test_words import GAINS, of
from tests.unit.report.test_report import SCORES, parsed, run

MINUS = "\N{MINUS SIGN}"
MAJORITY = (0.5, 0.4, 0.3)
#: All that sounds as if something had been achieved.
SUCCESS = re.compile(
    r"(?<!shown to be )learned(?! is not known)|kept|nothing is forgotten|lead|highest|"
    r"\d of \d tasks? (is|are) shown|every hospital gains|hospital gains",
    re.IGNORECASE,
)


def made(
    scores: Sequence[Sequence[float | None]],
    questions: int | None = 300,
    metrics: Sequence[Metric] = (Metric.ACCURACY,) * 3,
) -> RunReport:
    """A run whose two sites have these questions together of each task."""
    report = replace(run(scores, metrics=metrics), zero_shot=(0.1, 0.2, 0.3), majority=MAJORITY)
    if questions is None:
        return report
    half = SiteClaim(examples=100, questions=questions // 2, scores={})
    by_site = {stage.name: {"a": half, "b": half} for stage in report.stages}
    return replace(report, sites=SiteParts(self_reported=by_site, updates=()))


LEARNED = made(SCORES)
AT_MAJORITY = made((MAJORITY,) * 3)
NOTHING = made(((0.52, 0.4, 0.3), (0.52, 0.42, 0.3), (0.52, 0.42, 0.29)))
WORSE = made(((0.05, 0.05, 0.1),) * 3)
FORGOT = made((SCORES[0], (0.9, 0.9, 0.4), (0.0, 0.1, 1.0)))
FEW = made(((0.75, 0.3, 0.2), (0.75, 0.6, 0.4), (0.75, 0.6, 0.5)), questions=8)


def headlines(report: RunReport) -> list[str]:
    """Every headline of the page and the charts."""
    said = (page_headline([report]), forgetting_headline(report), learning_headline(report))
    return [*said, comparison_headline([report])]


def test_score_gain_and_interval_come_first_then_what_was_learned_and_kept():
    # The mean of .8 .9 1.0, less that of the majority answers .5 .4 .3.
    assert re.fullmatch(
        r"Mean score at the end 90\.0 %, \+50\.0 points \[\+4[0-9.]+, \+5[0-9.]+\] over the "
        r"better of base model and majority answer: 3 of 3 tasks learned; 2 earlier ones kept, as "
        r"measured at the end",
        page_headline([LEARNED]),
    )
    assert forgetting_headline(LEARNED) == (
        "No score is lower at the end than when learned, of 2 earlier tasks"
    )
    assert learning_headline(LEARNED) == (
        "3 of 3 tasks are shown to be above both zero-shot and the majority answer after their own "
        "stage"
    )


@pytest.mark.parametrize("report", [AT_MAJORITY, NOTHING, WORSE, FEW])
def test_a_run_that_learned_nothing_has_no_headline_that_sounds_like_success(report: RunReport):
    for said in headlines(report):
        assert not SUCCESS.search(said), said
    title = re.search(r"<h1>(.*?)</h1>", render_page([report]))
    assert title and not SUCCESS.search(title[1])
    assert "no task is shown to be learned" in page_headline([report])
    # Worse is said of what is shown to be worse alone.
    assert ("worse" in page_headline([report])) == (report is WORSE)


def test_what_learned_nothing_is_not_said_to_have_forgotten_nothing():
    assert (
        forgetting_headline(AT_MAJORITY)
        == "No task is shown to be learned, so none could be forgotten"
    )
    text = parsed(render_page([AT_MAJORITY])).text
    assert "Nothing is forgotten" not in text
    assert re.search(r"Forgetting\s*\N{EN DASH}\s*no task is shown to be learned", text)


def test_a_run_below_what_knows_nothing_says_so():
    assert re.search(
        rf"6\.7 %, {MINUS}33\.3 points \[{MINUS}3[0-9.]+, {MINUS}2[0-9.]+\].*: worse than without "
        r"training; no task is shown to be learned; 3 worse than without training",
        page_headline([WORSE]),
    )


def test_few_questions_show_nothing_and_their_number_is_said():
    assert page_headline([FEW]).endswith("no task is shown to be learned by 8 questions a task")
    # The same scores of many questions do.
    many = replace(FEW, sites=LEARNED.sites)
    assert "3 of 3 tasks learned" in page_headline([many])


def test_what_was_learned_and_then_lost_is_told_after_the_score_at_the_end():
    said = page_headline([FORGOT])
    assert said.startswith(f"Mean score at the end 36.7 %, {MINUS}3.3 points [")
    assert said.endswith("3 of 3 tasks learned; 2 lose score since, tissue most: 90.0 points")
    assert (
        forgetting_headline(FORGOT) == "2 of 2 earlier tasks lose score, tissue most: 90.0 points"
    )


def test_without_the_number_of_questions_nothing_is_called_learned():
    unknown = made(SCORES, questions=None)
    assert page_headline([unknown]) == (
        "Mean score at the end 90.0 %, +50.0 points over the better of base model and majority "
        "answer: whether a task was learned is not known"
    )
    assert "how sure is not known" in learning_headline(unknown)
    # As good as the majority answers is not above them.
    assert learning_headline(made((MAJORITY,) * 3, questions=None)).startswith(
        "0 of 3 tasks score above both"
    )
    assert how_sure([unknown]).startswith("One seed, and no interval: the number of questions")
    for said in headlines(unknown):
        assert not SUCCESS.search(said), said


def test_a_measure_that_is_no_mean_over_questions_has_no_interval():
    by_auc = made(SCORES, metrics=(Metric.AUC,) * 3)
    assert "whether a task was learned is not known" in page_headline([by_auc])
    assert "no mean over questions" in how_sure([by_auc])


def test_one_seed_says_that_another_may_do_otherwise_and_several_have_their_own_interval():
    assert how_sure([LEARNED]).endswith(
        "with one seed: what another seed would do it does not say."
    )
    low, high = (replace(made(((s,) * 3,) * 3), seed=seed) for seed, s in ((1, 0.7), (2, 0.8)))
    # The mean of .3 and .4; t at 0.975 with one degree of freedom is 12.706, and the deviation
    # of the mean .05.
    said = page_headline([low, high])
    assert f"75.0 %, +35.0 points [{MINUS}28.5, +98.5]" in said and said.endswith("(seed 1)")
    assert how_sure([low, high]) == "In brackets the 95 % interval over 2 seeds (Student's t)."
    # Where a seed's gain is not known all of it is the first's, and is said to be.
    lost = replace(high, zero_shot=(0.1, 0.2, None), majority=(0.5, 0.4, None))
    for runs in ([low, lost], [low, high, lost]):
        assert page_headline(runs) == f"{page_headline([low])} (seed 1)"
        assert how_sure(runs) == how_sure([low])


def test_a_single_task_has_no_forgetting():
    one = LEARNED
    one = replace(
        one, stages=one.stages[:1], scores=((0.8,),), zero_shot=(0.1,), majority=(0.5,),
        task_metrics=one.task_metrics[:1],
    )  # fmt: skip
    assert page_headline([one]).endswith(
        "1 of 1 task learned; forgetting is not known: none of them is an earlier one"
    )


def test_what_hospitals_gain_is_no_headline_where_no_task_was_learned():
    told = of(GAINS)
    first = re.search(r"<h1>(.*?)</h1>", render_page([AT_MAJORITY], hospitals=told))
    assert first and "no task is shown to be learned" in first[1]
    first = re.search(r"<h1>(.*?)</h1>", render_page([LEARNED], hospitals=told))
    assert first and first[1].startswith("By the federation a hospital gains +4.0")


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (Interval(mean=-0.05, low=-0.08, high=-0.02), "The federation is worse than staying alone"),
        (Interval(mean=-0.05), "No gain over staying alone is shown"),
        (Interval(mean=0.05), "without an interval no gain is shown"),
    ],
)
def test_a_federation_that_gains_nothing_for_sure_does_not_say_so(gain: Interval, said: str):
    told: HospitalsReport = of(replace(GAINS, gain=gain))
    told = replace(told, together=(replace(told.together[0], gain=gain),))
    assert said in gain_headline(told)
    assert "Every hospital gains" not in who_gains(told)
