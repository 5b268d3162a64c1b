"""A coordinator and three sites as real processes over TLS, through the command line alone."""

from pathlib import Path

import pytest

from common.bank import Bank
from server.folder import RunFolder
from simulation.loopback import loopback
from simulation.run import simulate
from simulation.soak import await_end
from tests.flow.small_run import bank_bytes, small_plan, wish

pytestmark = pytest.mark.federated


def test_three_real_sites_end_with_the_bytes_of_one_process(tmp_path: Path):
    plan = small_plan(tmp_path / "plan.yaml")
    simulate(plan, wish(tmp_path / "one"))

    with loopback(plan, tmp_path / "real") as federation:
        for machine in federation.machines:
            federation.start(machine)
        federation.want()
        await_end(federation)
        run: RunFolder = federation.run
        assert Bank.open(run.bank).releases
        assert bank_bytes(run.root) == bank_bytes(tmp_path / "one")
