"""A coordinator, and one with two sites."""

from pathlib import Path

import pytest

from server.coordinator.init import init_coordinator
from server.coordinator.state import CoordinatorSettings, State
from simulation.chaos.loopback import free_port
from tests.unit.commands.coordinator_calls import public_key, said


@pytest.fixture
def state(tmp_path: Path) -> State:
    settings = CoordinatorSettings(
        hosts=("localhost",),
        port=free_port(),
        bind="127.0.0.1",
        inner_host="127.0.0.1",
        inner_port=free_port(),
        wait_s=60.0,
        slack_s=600.0,
    )
    return init_coordinator(tmp_path / "coordinator", settings)


@pytest.fixture
def sites(state: State, tmp_path: Path) -> State:
    for name in ("north", "south"):
        key = public_key(tmp_path / f"{name}.pub")
        said(state, "enroll", key, "--name", name, "--modality", "pathology")
    return state
