"""Processes forked from one that has imported the model's code already.

Importing torch and Transformers takes a process 9 s of processor time, and a test that kills
process after process spends its time on nothing else. What is forked is a process of its own:
it can be killed or stopped, and none of its state was there before.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_CONTEXT = multiprocessing.get_context("forkserver")
# DeepSpeed is not among them: it looks at the environment when it is imported.
_CONTEXT.set_forkserver_preload(
    ["client.backbones.llava", "client.orders.execute", "tests.flow.loaded_bleu"]
)


class ForkedModule:
    """`subprocess.Popen` of a command `python -m MODULE ARGUMENTS`, forked instead of started.

    Args:
        command: flags of Python's before `-m` are not looked at.
        stdout: where all output goes.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        stdout: IO[bytes],
        **_: object,
    ) -> None:
        where = command.index("-m") + 1
        module, *arguments = command[where:]
        log = Path(stdout.name).absolute()
        self._process = _CONTEXT.Process(
            target=_run_module, args=(module, arguments, dict(env), log), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, as `subprocess.Popen` gives it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code, or None while the process lives."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("a forked process", timeout)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process lives."""
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, if the process lives."""
        self.send_signal(signal.SIGKILL)


def exit_code_of(function: Callable[..., Any], *arguments: object) -> int:
    """Call a function of a module in a forked process, and return its exit code."""
    process = _CONTEXT.Process(target=function, args=arguments, daemon=True)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _run_module(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path
) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(environment)
    if "TRAINER_PID" in environment:
        # Its parent, with which it must end, is the one it was forked from.
        os.environ["TRAINER_PID"] = str(os.getppid())
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
