"""How hospitals differ, added to a finished run's report, takes nothing out of it."""

from pathlib import Path

from common.plan.file import load_plan
from report.heterogeneity.model import HospitalTask
from report.hospitals.json_part import read_hospitals
from report.json_file import read_report
from report.write import write_document
from server.run.folder import RunFolder
from simulation.heterogeneity.facts import write_facts
from simulation.planned_run import PlannedRun
from simulation.unseen import report_differences
from tests.flow.small_run import STAGE, small_plan
from tests.unit.report.hospitals.test_words import GAINS, of
from tests.unit.report.test_report import run


def test_what_every_hospital_gains_stays_in_the_report(tmp_path: Path):
    simulation = {"data": "phantoms", "hospitals": {"scanners": 0.5}}
    plan = load_plan(small_plan(tmp_path / "plan.yaml", stages=[STAGE], simulation=simulation))
    sites, folder = tmp_path / "sites", RunFolder(tmp_path / "run")
    task = plan.stages[0].task
    for site in plan.sites:
        drawn = HospitalTask(
            hospital=site, task=task, train=3, test=2, wrong_labels=0, answers={"yes": 3}
        )
        write_facts(sites / site, task, [drawn])
    write_document(folder.root, [run()], (), of(GAINS))
    report_differences(PlannedRun("svd", plan, folder, sites), plan, sites)
    (report,) = read_report(folder.root)
    assert report.simulated is not None
    assert [one.name for one in report.simulated] == list(plan.sites)
    assert read_hospitals(folder.root) == of(GAINS)
