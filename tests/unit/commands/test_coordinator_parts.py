"""The parts of a coordinator, each a process of its own."""

import os
from pathlib import Path

import pytest

from server.coordinator.init import init_coordinator
from server.coordinator.processes import ProcessName, command, environment
from server.coordinator.state import CoordinatorSettings, State
from tests.unit.commands.coordinator_calls import called, refusal


def test_an_unknown_part_is_refused(state: State):
    told = refusal(state, "start", "--part", "trainer")
    assert told == ("--part: found 'trainer', expected one of superlink, superexec, edge, keeper")


def test_a_part_replaces_this_process(state: State, monkeypatch: pytest.MonkeyPatch):
    became: list[tuple[str, list[str], dict[str, str]]] = []

    def execvpe(file: str, words: list[str], variables: dict[str, str]) -> None:
        became.append((file, words, variables))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execvpe", execvpe)
    assert called(state, "start", "--part", "superlink").exit_code == 0
    ((file, words, variables),) = became
    assert file.endswith("flower-superlink")
    assert words[0] == file
    assert variables["FLWR_HOME"] == str(state.flower)


def test_the_superlink_is_closed_to_all_but_its_own(state: State):
    words = list(command(ProcessName.SUPERLINK, state))
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--isolation") + 1] == "process"
    assert words[words.index("--superexec-auth-secret-file") + 1] == str(state.secret)
    assert "--enable-supernode-auth" in words
    assert "--insecure" not in words


def test_among_containers_the_superlink_listens_to_its_network(tmp_path: Path):
    settings = CoordinatorSettings(
        hosts=("fed.example.org",),
        port=8443,
        bind="0.0.0.0",
        inner_host="superlink",
        inner_port=8000,
        wait_s=60.0,
        slack_s=600.0,
    )
    state = init_coordinator(tmp_path / "state", settings)
    words = list(command(ProcessName.SUPERLINK, state))
    assert words[words.index("--host") + 1] == "0.0.0.0"
    assert "superlink:8000" in command(ProcessName.SUPEREXEC, state)


def test_no_part_asks_the_world(state: State):
    variables = environment(state)
    assert variables["FLWR_TELEMETRY_ENABLED"] == "0"
    assert variables["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert variables["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert variables["HF_HUB_OFFLINE"] == "1"


def test_a_damaged_file_is_named(state: State):
    state.settings_file.write_text("{", encoding="utf-8")
    assert "coordinator.json: can't be read" in refusal(state, "start")
