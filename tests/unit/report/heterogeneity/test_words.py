"""What the page says of hospitals that differ, from values redone by hand."""

from dataclasses import replace

from common.plan.plan import Metric
from report.heterogeneity.model import (
    HospitalScores,
    HospitalTask,
    SimulatedHospital,
    UnseenReport,
)
from report.heterogeneity.words import answers_of_task, unseen_headline
from report.html import render_page
from report.json_file import from_document, to_document
from tests.unit.report.test_report import run

SCANNER = {
    "gamma": 1.5, "noise": 0.02, "blur": 0.01, "red": 1.1, "green": 1.0, "blue": 0.9, "coarse": 1.5,
}  # fmt: skip


def scores(hospital: str, before: float | None, after: float | None) -> HospitalScores:
    """The same on each of three tasks but the last, which is measured by F1."""
    return HospitalScores(
        hospital=hospital, questions=(20, 20, 20), zero_shot=(before, before, 0.1),
        last=(after, after, 0.2),
    )  # fmt: skip


REPORT = replace(
    run(metrics=(Metric.ACCURACY, Metric.ACCURACY, Metric.F1)),
    simulated=(
        SimulatedHospital(
            name="a",
            unseen=False,
            scanner=SCANNER,
            tasks=(
                HospitalTask(
                    hospital="a", task="tissue", train=20, test=5, wrong_labels=3,
                    answers={"e": 8, "d": 4, "c": 4, "b": 2, "a": 1, "f": 1},
                ),
            ),
        ),
        SimulatedHospital(name="coast", unseen=True, scanner=None, tasks=()),
    ),
    unseen=UnseenReport(
        hospitals=(scores("coast", 0.3, 0.6), scores("hill", 0.5, 0.7)),
        sites=(scores("a", None, 0.8), scores("b", None, None)),
    ),
)  # fmt: skip


def test_the_headline_has_the_means_of_each_measure():
    assert unseen_headline(REPORT) == (
        "2 hospitals that trained nothing: 65.0 with the bank and 40.0 without, against 80.0 at "
        "the sites that trained (accuracy, mean over 2 tasks); 20.0 with the bank and 10.0 "
        "without, against 20.0 at the sites that trained (f1, mean over 1 task)."
    )


def test_the_headline_is_about_the_tasks_that_the_unseen_hospitals_have():
    assert REPORT.unseen is not None
    coast = replace(
        REPORT.unseen.hospitals[0], questions=(20, 0, 0), zero_shot=(0.3, None, None),
        last=(0.6, None, None),
    )  # fmt: skip
    a = replace(REPORT.unseen.sites[0], last=(0.9, 0.1, 0.1))
    report = replace(REPORT, unseen=UnseenReport(hospitals=(coast,), sites=(a,)))
    assert unseen_headline(report) == (
        "1 hospital that trained nothing: 60.0 with the bank and 30.0 without, against 90.0 at "
        "the sites that trained (accuracy, mean over 1 task)."
    )


def test_every_task_counts_alike_however_many_hospitals_have_it():
    one, other = (0.5, 0.9, None), (None, 0.7, None)
    unseen = tuple(
        replace(scores(name, None, None), zero_shot=last, last=last)
        for name, last in (("coast", one), ("hill", other))
    )
    site = replace(scores("a", None, None), last=(0.4, 1.0, None))
    more = replace(scores("b", None, None), last=(0.6, None, None))
    report = replace(REPORT, unseen=UnseenReport(hospitals=unseen, sites=(site, more)))
    # (50 + (90 + 70) / 2) / 2, and ((40 + 60) / 2 + 100) / 2.
    assert unseen_headline(report).startswith(
        "2 hospitals that trained nothing: 65.0 with the bank and 65.0 without, against 75.0 at "
    )


def test_the_commonest_answers_are_listed_and_the_others_summed():
    assert REPORT.simulated is not None
    a, coast = REPORT.simulated
    assert answers_of_task(a, "tissue") == "e 40 %, d 20 %, c 20 %, b 10 %, 2 others 10 %"
    assert answers_of_task(coast, "tissue") == "\N{EN DASH}"


def test_the_page_has_the_hospitals_and_survives_its_json():
    again = from_document(to_document(REPORT), "report.json")
    assert again == REPORT
    page = render_page([again])
    assert page == render_page([REPORT])
    assert "At hospitals that trained nothing" in page and "1.50" in page
    assert "How the simulated hospitals differ" not in render_page([run()])
