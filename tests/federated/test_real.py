"""A coordinator and three sites as real processes over TLS, through the command line alone."""

import time
from pathlib import Path

import pytest

from common.bank import Bank
from server.folder import RunFolder
from server.news import ending, read_news
from simulation.loopback import Federation, loopback
from simulation.run import simulate
from tests.flow.small_run import bank_bytes, small_plan, wish

pytestmark = pytest.mark.federated


def wait_for_the_end(federation: Federation) -> None:
    """The run has ended; a part that never comes up ends the test's patience."""
    news = federation.state.coordinator_news(federation.plan.name)
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        if (last := ending(read_news(news))) is not None:
            assert last["event"] == "done", last
            return
        time.sleep(0.5)
    raise AssertionError(f"not done: {read_news(news)[-3:]}")


def test_three_real_sites_end_with_the_bytes_of_one_process(tmp_path: Path):
    plan = small_plan(tmp_path / "plan.yaml")
    simulate(plan, wish(tmp_path / "one"))

    with loopback(plan, tmp_path / "real") as federation:
        for machine in federation.machines:
            federation.start(machine)
        federation.want()
        wait_for_the_end(federation)
        run: RunFolder = federation.run
        assert Bank.open(run.bank).releases
        assert bank_bytes(run.root) == bank_bytes(tmp_path / "one")
