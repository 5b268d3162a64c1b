"""Sites that come late, leave, or hold unequal data: the coordinator's run with much patience."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp

from client.app import app as client_app
from client.node.jobs import Jobs
from common.adapter import from_bytes
from common.bank.bank import Bank
from common.code_digest import code_digest
from common.exchange import Order, Update
from common.plan.file import load_plan
from common.plan.plan import Plan
from common.work import Work
from report.json_file import read_report
from report.write import write_report
from server import app as coordinator
from server import network
from server.app import SiteConnection, run
from server.asked_site import Patience
from server.run.folder import RunFolder
from server.run.journal import Journal
from simulation.hospitals import BASE_MODELS, prepare
from simulation.inprocess import InProcessGrid, run_in_process
from tests.flow.small_run import OTHER, STAGE, small_plan

PATIENT = Patience(wait_s=0.0, slack_s=100.0, poll_s=0.01, appear_s=None)
#: Whether a site is there, by its name and how many stages are released.
There = Callable[[str, int], bool]


def released(folder: RunFolder) -> int:
    return len(Bank.open(folder.bank).releases) if (folder.bank / "bank.json").exists() else 0


def run_with(plan: Plan, folder: RunFolder, there: There) -> None:
    """The whole run, with sites that come and go."""
    sites = folder.root / "sites"
    prepare(plan, sites, None, BASE_MODELS["tiny-llava"])
    server = ServerApp()

    @server.main()
    def main(grid: Grid, _context: Context) -> None:  # pyright: ignore[reportUnusedFunction]
        assert isinstance(grid, InProcessGrid)
        everyone = grid.get_nodes

        def present() -> Iterable[NodeInfo]:
            return [node for node in everyone() if there(node.name, released(folder))]

        grid.get_nodes = present
        report = run(plan, folder, grid, SiteConnection(PATIENT, lambda: plan.sites))
        write_report(folder.root, [report])

    nodes = [{"name": site, "site-file": str(sites / site / "site.yaml")} for site in plan.sites]
    run_in_process(server, client_app, nodes, {})


def quick(tmp_path: Path, stages: list[dict[str, Any]]) -> Plan:
    simulation = {"data": "phantoms", "train_fraction": 0.1, "test_questions": 4}
    return load_plan(small_plan(tmp_path / "plan.yaml", stages=stages, simulation=simulation))


THIRD: Mapping[str, Any] = {
    **STAGE, "name": "derm", "modality": "dermatology", "task": "derm", "sites": ["c"], "rounds": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "OFFLINE_GRACE_S", 0.0)
    monkeypatch.setattr(network, "NODE_LIST_S", 0.0)


def test_a_site_that_leaves_in_stage_2_does_not_hold_up_stage_3(tmp_path: Path):
    second = {**OTHER, "quorum": 1, "deadline_hours": 1e-6}
    plan = quick(tmp_path, [STAGE, second, dict(THIRD)])
    folder = RunFolder(tmp_path / "run")
    run_with(plan, folder, lambda name, stages: name != "b" or stages == 0)
    bank = Bank.open(folder.bank)
    assert [dict(release.sites).keys() for release in bank.releases] == [{"a", "b"}, {"c"}, {"c"}]
    (report,) = read_report(folder.root)
    # What a site taught that has left is scored by the others of its stage.
    assert all(report.scores[stage][0] is not None for stage in range(3))
    refusals = [
        closed.refusals for stage, _, closed in Journal(folder, None).rounds() if stage == 1
    ]
    assert all("site b could not train stage 2" in why and "late" in why for (why,) in refusals)


def test_a_task_whose_every_site_has_left_has_no_later_scores(tmp_path: Path):
    plan = quick(tmp_path, [{**STAGE, "sites": ["a"]}, dict(THIRD)])
    folder = RunFolder(tmp_path / "run")
    run_with(plan, folder, lambda name, stages: name != "a" or stages == 0)
    (report,) = read_report(folder.root)
    assert report.scores[1][0] is None
    assert (folder.root / "report.html").exists()


def test_a_site_that_joins_at_the_last_stage_gets_the_bank_once_and_takes_part(tmp_path: Path):
    plan = quick(tmp_path, [STAGE, {**OTHER, "sites": ["a", "b"]}, {**THIRD, "rounds": 2}])
    folder = RunFolder(tmp_path / "run")
    run_with(plan, folder, lambda name, stages: name != "c" or stages >= 2)
    bank = Bank.open(folder.bank)
    assert dict(bank.releases[2].sites).keys() == {"c"}
    adapter = len(bank.adapter_bytes(0))
    traffic = [t for t in Journal(folder, None).traffic() if t.site == "c"]
    down = {t.round: t.bytes_down for t in traffic if t.work == "train"}
    # The two releases come with the first order; then only what is in training.
    assert 2 * adapter < down[1] < 2.2 * adapter
    assert adapter < down[2] < 1.2 * adapter
    # Beside them, the candidate that is scored; as a release it is there already.
    assert 4 * adapter < sum(t.bytes_down for t in traffic) < 4.5 * adapter


def test_a_run_that_is_taken_up_again_asks_nobody_who_has_left(tmp_path: Path):
    plan = quick(tmp_path, [STAGE, dict(THIRD)])
    folder = RunFolder(tmp_path / "run")
    run_with(plan, folder, lambda name, stages: name == "c" or stages == 0)
    before = (folder.root / "report.json").read_bytes()
    run_with(plan, folder, lambda _name, _stages: False)
    assert (folder.root / "report.json").read_bytes() == before


def test_sites_of_unequal_size_weigh_as_much_as_their_examples(tmp_path: Path):
    one_round = {**STAGE, "rounds": 1}
    plan = quick(tmp_path, [one_round]).model_copy(update={"aggregation": "fedavg"})
    folder = RunFolder(tmp_path / "run")
    sites = folder.root / "sites"
    prepare(plan, sites, None, BASE_MODELS["tiny-llava"])
    # Site b loses half of its training examples.
    train = sites / "b/data/CXP/train.json"
    examples = json.loads(train.read_text(encoding="utf-8"))
    train.write_text(json.dumps(examples[: len(examples) // 2]), encoding="utf-8")
    run_with(plan, folder, lambda _name, _stages: True)
    release = Bank.open(folder.bank).releases[0]
    assert release.sites["b"] == len(examples) // 2 < release.sites["a"]
    mean = weighted_mean(folder, plan, release.sites)
    for module, pair in Bank.open(folder.bank).adapter(0).pairs.items():
        np.testing.assert_allclose(pair.b, mean[module], rtol=1e-2, atol=1e-6)


def weighted_mean(folder: RunFolder, plan: Plan, examples: Mapping[str, int]) -> dict[str, Any]:
    """Every layer's B, averaged by examples over what the sites still have on their disks."""
    order = order_of(plan)
    total = sum(examples.values())
    mean: dict[str, Any] = {}
    for site, count in examples.items():
        update = Jobs(folder.root / "sites" / site / "store").answer(order.digest)
        assert isinstance(update, Update)
        for module, pair in from_bytes(update.adapter, site).pairs.items():
            mean[module] = mean.get(module, 0) + pair.b * (count / total)
    return mean


def order_of(plan: Plan) -> Order:
    return Order(
        work=Work.TRAIN, plan=plan.digest, stage=0, round=1, releases=(), active=(),
        adapter=None, code=code_digest(),
    )  # fmt: skip
