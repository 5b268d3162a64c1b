"""A real site behind a line of 1 Mbit/s and 100 ms each way: slow, and nothing is lost."""

from pathlib import Path

import pytest

from common.bank.bank import Bank
from common.process.progress import read_events
from server.coordinator.superlink import make_bundle
from simulation.chaos import loopback as federations
from simulation.chaos.soak import await_end
from simulation.chaos.throttle import Link
from tests.federated.commands_here import run_commands_here
from tests.flow.small_run import STAGE, small_plan

pytestmark = [
    pytest.mark.federated,
    # Flower, which makes the code that the sites get, and its pathspec.
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]

SLOW = Link(rate_bit_s=1e6, delay_s=0.1)
#: Rank 104 of the small model is 2 MB in bf16, 17 s of this line; rank 512 is 10 MB.
RANK = 104


def test_an_adapter_goes_both_ways_over_a_slow_line_without_a_failed_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_commands_here(monkeypatch, federations)
    stage = {**STAGE, "sites": ["a"], "rounds": 2}
    method = {"name": "mslora_cr", "rank": RANK, "alpha": RANK, "active": "all", "contrast": None}
    plan = small_plan(tmp_path / "plan.yaml", stages=[stage], method=method, aggregation="fedavg")
    with federations.loopback(plan, tmp_path / "real", SLOW) as federation:
        for machine in federation.machines:
            federation.start(machine)
        federation.request_run()
        await_end(federation)
        news = read_events(federation.state.events_file(federation.plan.name))[0]
        assert federation.line is not None
        up, down = federation.line.up.carried, federation.line.down.carried
        bank = Bank.open(federation.run.bank)

    assert [one for one in news if one["event"] == "refused"] == []
    told = {state for one in news if one["event"] == "waiting" for state in one["for"].values()}
    assert not {state for state in told if "no answer" in state or "lost" in state}
    # Each round's update went up once; the second round's start and the score's went down once.
    adapter = len(bank.adapter_bytes(0))
    assert adapter > 2e6
    # A piece that is sent again would be half a MB more; signs of life are a tenth of that.
    assert 2 * adapter < up < 2 * adapter + 4e5
    # The app's own code goes down, too, once.
    assert 2 * adapter < down < 2 * adapter + len(make_bundle()) + 4e5
