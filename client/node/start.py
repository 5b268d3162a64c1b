"""Starting a site: all three programs under one supervisor, or one of them in its place."""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn, TypeAlias

from client.node.check import quick, worst
from client.node.processes import Machine, PartName, part, parts
from client.site.config import Federation
from client.site.finding import Finding, Level
from common.errors import SiteFailed
from common.process.supervise import alone, keep, until_signalled

#: How often a coordinator that is away is looked for.
_LOOK_S: Final = 5.0
#: How often, and for how long, one is asked again that answers and does not know the site. The
#: coordinator's keeper tells Flower whom it has enrolled at least every 10 s
#: (server/coordinator/keeper.py).
_ASK_AGAIN_S: Final = 1.0
_UNKNOWN_S: Final = 20.0

#: Told what a start finds, one line each.
Say: TypeAlias = Callable[[str], None]
#: The quick checks; tests have their own.
Check: TypeAlias = Callable[[Federation], Sequence[Finding]]


def run_site(machine: Machine, say: Say, check: Check = quick) -> None:
    """The three programs run until SIGTERM or SIGINT. A coordinator that is away is waited for.

    Raises:
        SiteFailed: what waiting does not mend: the key, the certificate, the clock.
        StateError: this site is running already.
    """
    federation, store = machine.federation, machine.site.store
    with until_signalled() as stop, alone(store / "site.pid"):
        chosen = parts(machine)
        wait = _refused_or_away(federation, check, stop)
        if wait is not None:
            say(f"{wait} (It is waited for; meanwhile the trainer goes on with what it has.)")
            # The SuperNode tries again by itself; this one says why, if it is then refused.
            arguments = (federation, say, check, stop)
            threading.Thread(target=_tell_when_back, args=arguments, daemon=True).start()
        keep(chosen, stop)


def run_part(machine: Machine, name: PartName, say: Say, check: Check = quick) -> NoReturn:
    """This process becomes the program; the SuperNode waits here for a coordinator that is away.

    Raises:
        SiteFailed: as `run_site`.
    """
    chosen = part(machine, name)
    if name is PartName.SUPERNODE:
        # A container's first process has no other way to be ended while it waits.
        with until_signalled() as stop:
            _wait(machine.federation, say, check, stop)
        if stop.is_set():
            sys.exit(0)
    os.execve(chosen.command[0], list(chosen.command), {**os.environ, **chosen.environment})


def _wait(federation: Federation, say: Say, check: Check, stop: threading.Event) -> None:
    """The coordinator answers, and nothing is wrong; or `stop` is set."""
    said = None
    while not stop.is_set() and (wait := _refused_or_away(federation, check, stop)) is not None:
        if wait != said:
            say(f"{wait} (It is waited for.)")
        said = wait
        _pause(_LOOK_S, stop)


def _tell_when_back(federation: Federation, say: Say, check: Check, stop: threading.Event) -> None:
    try:
        _wait(federation, lambda _: None, check, stop)
    except SiteFailed as refused:
        say(str(refused))
    else:
        if not stop.is_set():
            say("The coordinator answers again, and knows this site.")


def _refused_or_away(federation: Federation, check: Check, stop: threading.Event) -> str | None:
    """That the coordinator is away, in words; None where all is well.

    Raises:
        SiteFailed: the first problem, or that the coordinator still does not know the site.
    """
    found = _settled(federation, check, stop)
    if found is None:
        return None
    if found.level is not Level.AWAY:
        raise SiteFailed(f"{found.name}: {found.text}")
    return f"{found.name}: {found.text}"


def _settled(federation: Federation, check: Check, stop: threading.Event) -> Finding | None:
    """What stops the start; that the site is unknown, only once the coordinator had its time."""
    until = time.monotonic() + _UNKNOWN_S
    while True:
        found = worst(check(federation))
        over = stop.is_set() or time.monotonic() >= until
        if found is None or found.level is not Level.UNKNOWN or over:
            return found
        _pause(_ASK_AGAIN_S, stop)


def _pause(seconds: float, stop: threading.Event) -> None:
    """Not `stop.wait`: the signal handler that sets it may run in this very thread."""
    due = time.monotonic() + seconds
    while not stop.is_set() and time.monotonic() < due:
        time.sleep(min(seconds, 0.1))
