"""The soak in short: one stage, three kills and a few stops, short times down."""

from pathlib import Path

import pytest

from simulation.chaos import loopback, soak
from simulation.chaos.adversary import StrikePace
from tests.federated.commands_here import run_commands_here
from tests.flow.small_run import STAGE, small_plan

pytestmark = pytest.mark.federated

#: Everything is back within seconds, and a kill once is as likely as being kept down.
QUICK = StrikePace(gap=(1.0, 4.0), down=(1.0, 6.0), stopped=(1.0, 4.0), once=0.5, stops=0.2)


def test_a_federation_that_is_struck_at_random_ends_with_the_undisturbed_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_commands_here(monkeypatch, loopback, soak)
    stage = {**STAGE, "sites": ["a", "b"], "rounds": 3, "local_epochs": 2}
    plan = small_plan(tmp_path / "plan.yaml", stages=[stage])
    verdict = soak.soak(plan, tmp_path / "soak", kills=3, seed=4, pace=QUICK)
    assert list(verdict.faults) == []
    assert verdict.equal
    assert verdict.last_line.startswith("3 kills")
