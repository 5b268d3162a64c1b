"""What every hospital gains in words, on the page, in the terminal and in report.json."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import DataError
from common.plan.plan import Metric
from report.format import DASH
from report.hospitals.curve import TrainedOn, local_curve
from report.hospitals.json_part import hospitals_document, read_hospitals
from report.hospitals.model import HospitalResult, HospitalsReport, Interval, Sample
from report.hospitals.words import (
    gain_headline,
    how_measured,
    share_of_way,
    table_heads,
    table_rows,
    who_gains,
    worth_headline,
    worth_sentences,
)
from report.json_file import read_report
from report.terminal import hospitals_text
from report.write import write_report
from tests.unit.report.test_report import run

#: As numbers are printed.
MINUS = "\N{MINUS SIGN}"


def hospital(site: str, low: float | None, mean: float, high: float | None) -> HospitalResult:
    scores = {"alone": 0.8, "federated": 0.8 + mean, "pooled": 0.9}
    return HospitalResult(
        site=site,
        measure=Metric.ACCURACY,
        tasks={"stain": {**scores, "sequential": 0.4}},
        mean={**scores, "sequential": 0.4},
        no_data={"alone": 0.25, "federated": 0.75, "pooled": None},
        all_tasks=scores,
        gain=Interval(mean=mean, low=low, high=high, n=3),
        way=mean / 0.1,
    )


def of(*hospitals: HospitalResult) -> HospitalsReport:
    return HospitalsReport(
        method="mslora_cr",
        seeds=(7, 8, 9),
        hospitals=hospitals,
        together=(replace(hospital("all hospitals", 0.01, 0.04, 0.07), tasks={}),),
    )


GAINS = hospital("north", 0.02, 0.05, 0.08)
UNSHOWN = hospital("south", -0.01, 0.03, 0.07)
NOTHING = hospital("west", -0.06, -0.02, 0.02)


def test_a_hospital_that_gains_nothing_is_named():
    assert who_gains(of(GAINS)) == "Every hospital gains."
    # Nothing at all, and an interval that begins at zero.
    none, least = hospital("east", 0.0, 0.0, 0.0), hospital("east", 0.0, 0.01, 0.02)
    assert who_gains(of(none)).startswith("Nothing is gained at east (0.0 [0.0, 0.0] points)")
    assert who_gains(of(least)).startswith("No gain is shown at east (+1.0 [0.0, +2.0] points)")
    assert who_gains(of(GAINS, UNSHOWN, NOTHING)) == (
        f"Nothing is gained at west ({MINUS}2.0 [{MINUS}6.0, +2.0] points). No gain is shown at "
        f"south (+3.0 [{MINUS}1.0, +7.0] points): the interval includes zero."
    )


def test_the_headline_has_the_gain_its_interval_and_the_share_of_the_way():
    told = of(GAINS, NOTHING)
    assert gain_headline(told) == (
        "By the federation a hospital gains +4.0 [+1.0, +7.0] points (3 seeds) over staying alone, "
        "40 % of the way to pooled data"
    )
    unshown = Interval(mean=0.01, low=-0.02, high=0.04, n=1233, over=Sample.PICTURES)
    without = replace(told.together[0], gain=unshown)
    assert gain_headline(replace(told, together=(without,))) == (
        f"No gain over staying alone is shown: +1.0 [{MINUS}2.0, +4.0] points "
        "(one seed, 1233 test pictures)"
    )
    assert how_measured(told) == "In brackets 95 % intervals over 3 seeds (Student's t)."


def test_the_headline_says_of_which_measure_it_is_where_tasks_have_several():
    told = of(GAINS)
    bleu = replace(told.together[0], measure=Metric.BLEU)
    assert gain_headline(replace(told, together=(*told.together, bleu))) == (
        "By the federation a hospital gains +4.0 [+1.0, +7.0] points in accuracy (3 seeds) over "
        "staying alone, 40 % of the way to pooled data"
    )
    unshown = replace(told.together[0], gain=Interval(mean=0.01, low=-0.02, high=0.04, n=2))
    assert gain_headline(replace(told, together=(unshown, bleu))) == (
        f"No gain over staying alone is shown: +1.0 [{MINUS}2.0, +4.0] points in accuracy (2 seeds)"
    )


def test_a_learning_rate_of_its_own_is_told():
    told = replace(of(GAINS), rates={"alone": 2.5e-3, "sequential": 1.25e-3})
    assert how_measured(told) == (
        "In brackets 95 % intervals over 3 seeds (Student's t). The plan gives some a learning "
        "rate of their own: alone 0.0025, sequential 0.00125."
    )
    # As of a federation without a test by its hospitals alone: no interval.
    without = replace(told, together=(replace(told.together[0], gain=None),))
    assert how_measured(without).startswith("The plan gives some a learning rate of their own")


@pytest.mark.parametrize(
    ("way", "told"),
    [(-0.2, "none"), (0.0, "0 %"), (0.404, "40 %"), (1.0, "100 %"), (1.37, "all")],
)
def test_a_share_of_the_way_beyond_its_ends_is_no_percentage(way: float, told: str):
    assert share_of_way(way) == told
    ahead = of(replace(GAINS, way=way))
    assert told in table_rows(ahead)[0].cells


def test_the_table_has_a_row_for_each_hospital_and_their_mean():
    told = of(GAINS, NOTHING)
    assert table_heads(told) == [
        "alone", "federated", "pooled", "gain", "way to pooled", "no data: base model",
        "no data: federated", "no data: pooled", "sequential",
    ]  # fmt: skip
    assert [(row.name, row.together) for row in table_rows(told)] == [
        ("north", False), ("west", False), ("all hospitals", True)
    ]  # fmt: skip
    assert table_rows(told)[0].cells == (
        "80.0", "85.0", "90.0", "+5.0 [+2.0, +8.0]", "50 %", "25.0", "75.0", DASH, "40.0"
    )  # fmt: skip
    assert [row.name for row in table_rows(of(GAINS))] == ["north"]


def test_one_seed_says_that_its_interval_is_over_pictures():
    pictures = Interval(mean=0.04, low=0.01, high=0.07, n=50, over=Sample.PICTURES)
    told = of(GAINS)
    told = replace(told, together=(replace(told.together[0], gain=pictures),))
    assert "bootstrap of 50 test pictures" in how_measured(told)


def test_what_the_federation_is_worth_is_told_in_pictures():
    points = [TrainedOn(10, 5, 0.5), TrainedOn(40, 20, 0.7)]
    inside = local_curve("north", Metric.ACCURACY, [points], [0.6])
    beyond = local_curve("west", Metric.ACCURACY, [points], [0.8])
    assert worth_sentences(replace(of(GAINS), curves=(inside, beyond))) == [
        "north: the federation is worth 10 local pictures (20 questions) of a task.",
        "west: the federation is worth more than the 20 pictures (40 questions) that it has of a "
        "task.",
    ]
    assert "more than all pictures" in worth_headline([inside, beyond])
    assert worth_headline([inside]).endswith(" worth 10 pictures of its own for each task")
    further = local_curve("east", Metric.ACCURACY, [points], [0.7])
    assert worth_headline([further, inside]).endswith(
        " worth 10 to 20 pictures of its own for each task"
    )


def test_where_the_fewest_questions_go_as_far_as_the_federation_fewer_may_do():
    points = [TrainedOn(1, 1, 0.5), TrainedOn(40, 20, 0.7)]
    at_once = local_curve("coast", Metric.ACCURACY, [points], [0.4])
    inside = local_curve("north", Metric.ACCURACY, [points], [0.7])
    assert worth_sentences(replace(of(GAINS), curves=(at_once,))) == [
        "coast: the federation is worth at most 1 local picture (1 question) of a task."
    ]
    assert worth_headline([at_once, inside]).endswith(
        " worth at most 20 pictures of its own for each task"
    )


def test_the_report_keeps_what_every_hospital_gains_and_shows_it_first(tmp_path: Path):
    points = [TrainedOn(10, 5, 0.5), TrainedOn(40, 20, 0.7)]
    curve = local_curve("north", Metric.ACCURACY, [points, points], [0.6, 0.61])
    told = replace(of(GAINS, NOTHING), curves=(curve,))
    write_report(tmp_path, [run()], (), told)
    assert read_hospitals(tmp_path) == told
    assert read_report(tmp_path) == [run()]
    first = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["hospitals"][0]
    assert (first["site"], first["mean"]["federated"]) == ("north", pytest.approx(0.85))
    assert first["tasks"]["stain"]["alone"] == 0.8
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.index("<table>") > page.index("What each hospital gains")
    assert page.index("<svg") < page.index("What the model knows after every stage</h2>")
    assert "Nothing is gained at west" in page and "No gain" not in page
    assert (tmp_path / "hospital_curves.svg").exists()
    assert hospitals_text(told).count("\n") == 8


def test_a_report_without_hospitals_reads_as_none_and_a_damaged_part_is_named(tmp_path: Path):
    write_report(tmp_path, [run()])
    assert read_hospitals(tmp_path) is None
    document = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    document |= hospitals_document(of(GAINS))
    del document["hospitals"][0]["site"]
    (tmp_path / "report.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(DataError, match=r"report\.json, hospitals\.0\.site"):
        read_hospitals(tmp_path)
