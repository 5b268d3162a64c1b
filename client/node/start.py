"""Start a site: all three programs under one supervisor, or one of them in this process."""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn, TypeAlias

from client.node.check import first_obstacle, quick_checks
from client.node.processes import Machine, ProgramName, program, programs
from client.site.config import Federation
from client.site.finding import Finding, Level
from common.errors import SiteFailed
from common.network.ports import NeededPort, check_free
from common.process.progress import Say
from common.process.supervise import single_instance, supervise, until_signalled

#: How often a coordinator that does not answer is tried again.
_RETRY_S: Final = 5.0
#: How often, and for how long, a coordinator is asked again that does not know the site yet: its
#: keeper tells Flower at least every 10 s which sites are enrolled (server/coordinator/keeper.py).
_ASK_AGAIN_S: Final = 1.0
_UNKNOWN_S: Final = 20.0

#: The quick checks before a start.
StartCheck: TypeAlias = Callable[[Federation], Sequence[Finding]]


def run_site(machine: Machine, say: Say, check: StartCheck = quick_checks) -> None:
    """Run the three programs until SIGTERM or SIGINT; wait for a coordinator that is away.

    Raises:
        SiteFailed: what waiting does not solve: the key, the certificate, the clock.
        StateError: this site is running already, or its inner port is taken.
    """
    federation, store = machine.federation, machine.site.store
    with until_signalled() as stop, single_instance(store / "site.pid"):
        chosen = programs(machine)
        check_free([_runtime_port(machine)])
        away = _refused_or_away(federation, check, stop)
        if away is not None:
            say(f"{away} (Waiting for the coordinator; the trainer continues its job.)")
            # The SuperNode retries by itself; this thread says why, if it is then refused.
            arguments = (federation, say, check, stop)
            threading.Thread(target=_say_when_back, args=arguments, daemon=True).start()
        supervise(chosen, stop)


def run_program(
    machine: Machine, name: ProgramName, say: Say, check: StartCheck = quick_checks
) -> NoReturn:
    """Replace this process by the program; the SuperNode first waits for its coordinator.

    Raises:
        SiteFailed: as `run_site`.
    """
    chosen = program(machine, name)
    if name is ProgramName.SUPERNODE:
        check_free([_runtime_port(machine)])
        # Until then no program would end a container's first process at a signal.
        with until_signalled() as stop:
            _wait(machine.federation, say, check, stop)
        if stop.is_set():
            sys.exit(0)
    os.execve(chosen.command[0], list(chosen.command), {**os.environ, **chosen.environment})


def _runtime_port(machine: Machine) -> NeededPort:
    return NeededPort(machine.host, machine.port, "--runtime-port or --runtime-host")


def _wait(federation: Federation, say: Say, check: StartCheck, stop: threading.Event) -> None:
    """Wait until the coordinator answers and nothing is wrong, or until `stop` is set."""
    said = None
    while not stop.is_set() and (away := _refused_or_away(federation, check, stop)) is not None:
        if away != said:
            say(f"{away} (Waiting for the coordinator.)")
        said = away
        _pause(_RETRY_S, stop)


def _say_when_back(
    federation: Federation, say: Say, check: StartCheck, stop: threading.Event
) -> None:
    try:
        _wait(federation, lambda _: None, check, stop)
    except SiteFailed as refused:
        say(str(refused))
    else:
        if not stop.is_set():
            say("The coordinator answers again, and knows this site.")


def _refused_or_away(
    federation: Federation, check: StartCheck, stop: threading.Event
) -> str | None:
    """Return in words that the coordinator is away; None where nothing is wrong.

    Raises:
        SiteFailed: the first problem, or that the coordinator still does not know the site.
    """
    found = _lasting_obstacle(federation, check, stop)
    if found is None:
        return None
    if found.level is not Level.AWAY:
        raise SiteFailed(f"{found.name}: {found.text}")
    return f"{found.name}: {found.text}"


def _lasting_obstacle(
    federation: Federation, check: StartCheck, stop: threading.Event
) -> Finding | None:
    """Return what keeps the site from starting; an unknown site only once it had time to pass."""
    deadline = time.monotonic() + _UNKNOWN_S
    while True:
        found = first_obstacle(check(federation))
        over = stop.is_set() or time.monotonic() >= deadline
        if found is None or found.level is not Level.UNKNOWN or over:
            return found
        _pause(_ASK_AGAIN_S, stop)


def _pause(seconds: float, stop: threading.Event) -> None:
    """Sleep until `stop` is set. Not `stop.wait`: its signal handler may run in this thread."""
    due = time.monotonic() + seconds
    while not stop.is_set() and time.monotonic() < due:
        time.sleep(min(seconds, 0.1))
