"""The commands of a coordinator's processes name programs and modules that exist."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from server.coordinator.init import init_coordinator
from server.coordinator.processes import ProcessName, command, processes
from server.coordinator.state import CoordinatorSettings, State


@pytest.fixture
def state(tmp_path: Path) -> State:
    settings = CoordinatorSettings(
        hosts=("localhost",),
        port=8443,
        bind="127.0.0.1",
        inner_host="127.0.0.1",
        inner_port=8000,
        wait_s=60.0,
        slack_s=600.0,
    )
    return init_coordinator(tmp_path / "coordinator", settings)


@pytest.mark.parametrize("name", [ProcessName.EDGE, ProcessName.KEEPER])
def test_a_process_of_ours_runs_a_module_that_exists(state: State, name: ProcessName):
    program, isolated, option, module, root = command(name, state)
    assert (program, isolated, option, root) == (sys.executable, "-P", "-m", str(state.root))
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    # `python -m` runs it: it must do something then.
    assert 'if __name__ == "__main__":' in Path(spec.origin).read_text(encoding="utf-8")


def test_every_process_has_a_program_that_exists_and_a_log_of_its_own(state: State):
    programs = processes(state)
    assert [program.name for program in programs] == list(ProcessName)
    *same, dashboard = processes(state, dashboard_port=8470)
    assert tuple(same) == programs
    assert dashboard.name == "dashboard" and dashboard.command[-1] == "8470"
    assert find_spec(dashboard.command[3]) is not None
    assert all(Path(program.command[0]).exists() for program in programs)
    assert len({program.log for program in programs}) == len(programs)
