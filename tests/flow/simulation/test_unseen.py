"""A hospital that trains nothing: what it is asked, and that nothing of it is in the run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from report.heterogeneity.model import UnseenReport
from report.json_file import read_report
from report.model import RunReport
from report.write import write_report
from simulation.run import simulate
from tests.flow.small_run import OTHER, STAGE, options, small_plan

TINY = {"sites": ["a", "b"], "rounds": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with an unseen hospital that has one of the two tasks."""
    folder = tmp_path_factory.mktemp("unseen")
    plan = small_plan(
        folder / "plan.yaml",
        method={"name": "mslora_cr", "rank": 4, "alpha": 4, "contrast": None},
        stages=[{**STAGE, **TINY}, {**OTHER, **TINY}],
        simulation={
            "data": "phantoms",
            "compare": ["pooled"],
            "train_fraction": 0.1,
            "test_questions": 6,
            "hospitals": {"scanners": 0.5, "unseen": [{"name": "coast", "tasks": ["CXP"]}]},
        },
        evaluation={"earlier": "last"},
    )
    simulate(plan, options(folder / "run"))
    return folder / "run"


def report_of(run: Path) -> tuple[RunReport, UnseenReport]:
    report, _ = read_report(run)
    assert report.unseen is not None
    return report, report.unseen


def answered(site: Path, stage: str) -> list[list[dict[str, Any]]]:
    """The answers of each order, in files of the site's store."""
    files = sorted((site / "store/answers").glob(f"{stage}-*.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def test_the_unseen_hospital_is_asked_its_own_questions_before_and_after(run: Path):
    _, unseen = report_of(run)
    (coast,) = unseen.hospitals
    files = answered(run / "sites/_unseen/coast", "cxp")
    assert coast.questions == (6, 0)
    # Of the federation and of what is pooled, each before and after.
    assert [len(file) for file in files] == [6] * 4
    right = [sum(one["text"] == one["gt"] for one in file) / 6 for file in files]
    told = [one for report in read_report(run) for one in scores_on_cxp(report)]
    assert sorted(right) == sorted(told)
    assert coast.zero_shot[1] is None and coast.last[1] is None
    assert not answered(run / "sites/_unseen/coast", "pcam")


def scores_on_cxp(report: RunReport) -> list[float]:
    assert report.unseen is not None
    (coast,) = report.unseen.hospitals
    return [score for score in (coast.zero_shot[0], coast.last[0]) if score is not None]


def test_what_is_pooled_is_asked_there_too(run: Path):
    (report, unseen), pooled = report_of(run), read_report(run)[1]
    assert pooled.unseen is not None and pooled.simulated == report.simulated
    assert pooled.unseen.hospitals[0].questions == unseen.hospitals[0].questions
    assert pooled.unseen.hospitals[0].zero_shot == unseen.hospitals[0].zero_shot
    assert [(one.hospital, one.questions) for one in pooled.unseen.sites] == [("pooled", (12, 12))]


def test_beside_it_are_the_sites_that_trained(run: Path):
    report, unseen = report_of(run)
    assert [one.hospital for one in unseen.sites] == ["a", "b"]
    for task in (0, 1):
        questions = [site.questions[task] for site in unseen.sites]
        scores = [site.last[task] for site in unseen.sites]
        assert questions == [6, 6] and None not in scores
        mean = sum(score or 0 for score in scores) / 2
        assert mean == pytest.approx(report.scores[1][task])
        assert sum(site.zero_shot[task] or 0 for site in unseen.sites) / 2 == pytest.approx(
            report.zero_shot[task]
        )


def test_it_takes_no_part_in_the_run(run: Path):
    report, _ = report_of(run)
    assert set(report.cost.sites) == {"a", "b"}
    assert "coast" not in (run / "bank/bank.json").read_text()
    assert not [*(run / "sites/_unseen/coast").rglob("train.json")]


def test_an_interrupted_run_adds_its_scores_and_answers_nothing_twice(run: Path):
    report, _ = report_of(run)
    page = (run / "report.html").read_text()
    before = {file: file.stat().st_mtime_ns for file in run.rglob("answers/*.jsonl")}
    # As if it had been interrupted after the federation's last answer.
    write_report(run, [replace(report, simulated=None, unseen=None)])
    simulate(run.parent / "plan.yaml", options(run))
    assert report_of(run)[0] == report
    assert (run / "report.html").read_text() == page
    assert {file: file.stat().st_mtime_ns for file in run.rglob("answers/*.jsonl")} == before
    assert "trained nothing" in page and "How the simulated hospitals differ" in page
