"""Starting a site: all three programs under one supervisor, or one of them in its place."""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn, TypeAlias

from client.check import quick, worst
from client.finding import Finding, Level
from client.parts import Machine, PartName, part, parts
from client.site import Federation
from common.errors import SiteFailed
from common.supervise import alone, keep, until_signalled

#: How often a coordinator that is away is looked for.
_LOOK_S: Final = 5.0

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
        wait = _refused_or_away(check(federation))
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
    while not stop.is_set() and (wait := _refused_or_away(check(federation))) is not None:
        if wait != said:
            say(f"{wait} (It is waited for.)")
        said = wait
        due = time.monotonic() + _LOOK_S
        # Not `stop.wait`: the signal handler that sets it runs in this very thread.
        while not stop.is_set() and time.monotonic() < due:
            time.sleep(0.1)


def _tell_when_back(federation: Federation, say: Say, check: Check, stop: threading.Event) -> None:
    try:
        _wait(federation, lambda _: None, check, stop)
    except SiteFailed as refused:
        say(str(refused))
    else:
        if not stop.is_set():
            say("The coordinator answers again, and knows this site.")


def _refused_or_away(findings: Sequence[Finding]) -> str | None:
    """That the coordinator is away, in words; None where all is well.

    Raises:
        SiteFailed: the first problem.
    """
    found = worst(findings)
    if found is None:
        return None
    if found.level is Level.PROBLEM:
        raise SiteFailed(f"{found.name}: {found.text}")
    return f"{found.name}: {found.text}"
