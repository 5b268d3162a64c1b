"""An engine's command is replaced: what was begun with it is removed, whatever happens."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from common.errors import StateError
from simulation.containers.engine import ContainerEngine
from simulation.containers.pip_settings import pip_settings

Calls = list[Sequence[str]]


@pytest.fixture
def run_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Sequence[str]], int]], Calls]:
    """Answers every command by a function, and keeps the words."""

    def replaced(answer: Callable[[Sequence[str]], int]) -> Calls:
        calls: Calls = []

        def run(words: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
            calls.append(words[1:])
            return subprocess.CompletedProcess(words, answer(words[1:]), "", "no")

        monkeypatch.setattr(subprocess, "run", run)
        return calls

    return replaced


def test_what_was_cut_off_while_it_was_made_is_removed(
    run_by: Callable[[Callable[[Sequence[str]], int]], Calls],
):
    def cut_off(words: Sequence[str]) -> int:
        if "create" in words:
            raise KeyboardInterrupt
        return 0

    calls, engine = run_by(cut_off), ContainerEngine("podman")
    with pytest.raises(KeyboardInterrupt):
        engine.make_network("inside", internal=True)
    with pytest.raises(KeyboardInterrupt):
        engine.start("site", (), "image", ())
    engine.clean_up()
    assert calls[2:] == [["rm", "--force", "--volumes", "site"], ["network", "rm", "inside"]]


def test_one_that_can_not_be_removed_does_not_keep_the_others(
    run_by: Callable[[Callable[[Sequence[str]], int]], Calls],
):
    def slow(words: Sequence[str]) -> int:
        if words[-1] == "two":
            raise subprocess.TimeoutExpired(["podman", *words], 300)
        return 0

    calls = run_by(slow)
    engine = ContainerEngine("podman", ["one", "two", "three"], ["inside"])
    with pytest.raises(StateError, match="podman: found that two can't be removed in time"):
        engine.clean_up()
    assert [words[-1] for words in calls] == ["three", "two", "one", "inside"]


def test_a_python_without_pip_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    without = tmp_path / "python"
    without.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    without.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(without))
    with pytest.raises(StateError, match=r"exit code 1: .*python: No module named pip"):
        pip_settings()
