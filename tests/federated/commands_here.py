"""Commands of fedmslora in the test's own process: a process for each would import for 2 s."""

from types import ModuleType

import pytest
from typer.testing import CliRunner

from common.errors import StateError
from fedmslora import app


def run_here(*words: str, timeout_s: float = 120.0) -> str:
    """Run `fedmslora WORDS` as `simulation.chaos.loopback.run_command` does, in this process.

    Raises:
        StateError: it failed.
    """
    done = CliRunner().invoke(app, words)
    if done.exit_code:
        raise StateError(f"fedmslora {' '.join(words)}: {done.exception!r}") from done.exception
    return done.stdout


def run_commands_here(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Have the modules run in this process the commands that set a federation up.

    The programs that they start stay processes; test_real.py types every command.
    """
    for module in modules:
        monkeypatch.setattr(module, "run_command", run_here)
