"""A coordinator and three sites as real processes over TLS, through the command line alone."""

from pathlib import Path

import pytest

from simulation.chaos.loopback import loopback
from simulation.chaos.soak import accepted
from simulation.run import simulate
from tests.flow.small_run import bank_bytes, options, small_plan

pytestmark = pytest.mark.federated


def test_three_real_sites_end_with_the_bytes_of_one_process(tmp_path: Path):
    plan = small_plan(tmp_path / "plan.yaml")
    simulate(plan, options(tmp_path / "one"))

    with loopback(plan, tmp_path / "real") as federation:
        for machine in federation.machines:
            federation.start(machine)
        told = federation.run_plan()
        assert f"bank:   {federation.run.bank}" in told
        assert bank_bytes(federation.run.root) == bank_bytes(tmp_path / "one")

        # The same command again: all is there, nothing is asked again.
        before = accepted(federation.run)
        assert federation.run_plan() == told
        assert accepted(federation.run) == before
