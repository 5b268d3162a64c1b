"""Sites that train a stage alone, by an order, so that the report says what each gains."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from client.app import app as client_app
from client.site import audit
from common.metrics import read_answers, task_metrics
from common.plan.file import load_plan
from common.plan.plan import Evaluation, Plan
from report.hospitals.model import HospitalsReport
from report.hospitals.words import who_gains
from server.app import SiteConnection, run
from server.run.folder import RunFolder
from server.run.hospitals import hospitals_of
from simulation.baselines import changed
from simulation.hospitals import BASE_MODELS, prepare
from simulation.inprocess import run_in_process
from tests.flow.small_run import OTHER, STAGE, bank_bytes, small_plan


def run_with(plan: Plan, root: Path) -> HospitalsReport | None:
    """The whole run; site c does not allow training alone."""
    sites, folder = root / "sites", RunFolder(root)
    prepare(plan, sites, None, BASE_MODELS["tiny-llava"])
    file = sites / "c/site.yaml"
    fields = json.loads(file.read_text(encoding="utf-8"))
    fields["policy"]["train_alone"] = False
    file.write_text(json.dumps(fields), encoding="utf-8")
    server = ServerApp()

    @server.main()
    def main(grid: Grid, _context: Context) -> None:  # pyright: ignore[reportUnusedFunction]
        run(plan, folder, grid, SiteConnection())

    nodes = [{"name": site, "site-file": str(sites / site / "site.yaml")} for site in plan.sites]
    run_in_process(server, client_app, nodes, {})
    return hospitals_of(plan, folder)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    file = tmp_path_factory.mktemp("plan") / "plan.yaml"
    stages = [STAGE, {**OTHER, "sites": ["c"], "rounds": 1}]
    simulation = {"data": "phantoms", "train_fraction": 0.1, "test_questions": 4}
    written = small_plan(file, stages=stages, simulation=simulation, evaluation={"local": True})
    return load_plan(written)


@pytest.fixture(scope="module")
def root(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    run_with(plan, root)
    return root


def test_the_report_has_each_sites_score_alone_and_says_where_it_was_not_measured(
    plan: Plan, root: Path
):
    report = hospitals_of(plan, RunFolder(root))
    assert report is not None
    told = {one.site: one for one in report.hospitals}
    for site in "ab":
        alone, federated = (told[site].tasks["cxp"][name] for name in ("alone", "federated"))
        answers = (root / f"sites/{site}/store/answers").glob("cxp-*.jsonl")
        scores = {task_metrics(read_answers(file))["accuracy"] for file in answers}
        assert alone in scores and federated in scores
        assert told[site].gain is not None
    assert told["c"].mean["alone"] is None
    assert "Not measured at c" in who_gains(report)


def test_only_scores_leave_and_no_adapter_stays(plan: Plan, root: Path):
    with closing(sqlite3.connect(root / "journal.sqlite")) as journal:
        rows = journal.execute("select site, header from answers where work = 'train_alone'")
        found = {site: json.loads(header) for site, header in rows}
    assert set(found) == {"a", "b"}
    assert set(found["a"]) == {"order", "site", "questions", "metrics", "majority"}
    orders = [
        entry
        for entry in audit.read(root / "sites/a/store")
        if entry.subject is not None and entry.subject.work == "train_alone"
    ]
    assert [(entry.kind.value, entry.parts) for entry in orders] == [("order", ()), ("scores", ())]
    assert "train alone, for a score and no adapter, stage 1" in audit.describe(orders[0])


def test_the_bank_does_not_depend_on_it_and_a_finished_run_asks_nobody_again(
    plan: Plan, root: Path, tmp_path: Path
):
    lines = len(list(audit.read(root / "sites/a/store")))
    with closing(sqlite3.connect(root / "journal.sqlite")) as journal:
        before = journal.execute("select count(*) from answers").fetchone()
        assert run_with(plan, root) == hospitals_of(plan, RunFolder(root))
        assert journal.execute("select count(*) from answers").fetchone() == before
    # It only says again which site it is.
    assert len(list(audit.read(root / "sites/a/store"))) <= lines + 2
    without = changed(plan, evaluation=Evaluation())
    assert '"local"' not in without.canonical()
    assert run_with(without, tmp_path) is None
    adapters = [name for name in bank_bytes(root) if name.endswith(".safetensors")]
    assert {n: bank_bytes(root)[n] for n in adapters} == {
        n: bank_bytes(tmp_path)[n] for n in adapters
    }
