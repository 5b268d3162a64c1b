"""The soak of stops: a run is stopped in mid-delivery again and again; every site stays at work.

    python -m simulation.chaos.stops --stops 30 --seed 1 --out DIR

Sites and coordinator are joined by a slow line, so an order takes seconds to arrive; each stop
comes at a random moment of that. The last line says how long the sites took after the last start,
and whether the bank is that of an undisturbed run; the exit code is 0 only if it is.
"""

import argparse
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.bank.bank import Bank
from common.errors import StateError
from common.printable import counted
from common.process.progress import Say, read_events
from common.process.supervise import log_to_stderr
from server.coordinator.events import final_event
from server.run.folder import RunFolder
from simulation.chaos.loopback import LoopbackFederation, loopback
from simulation.chaos.soak import PLAN, await_end, bank_bytes, undisturbed
from simulation.chaos.throttle import Link
from simulation.command_line.arguments import new_folder, whole_from
from simulation.command_line.exit_codes import with_exit_codes
from simulation.run import simulate

#: Over this line the app takes two seconds to a site, an order with its adapter about one.
LINK = Link(rate_bit_s=2e6, delay_s=0.02)
#: A stop comes at most so long after the first sign that a site is asked.
LONGEST_S = 4.0
_TICK_S = 0.1
#: An order is delivered this long after its run was requested, also on a busy machine.
_PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class StopsVerdict:
    """The outcome.

    Attributes:
        stops: how often the run was stopped before it had ended.
        seconds: from the last start to the run's end.
        equal: the bank is byte for byte that of the undisturbed run.
    """

    stops: int
    seconds: float
    equal: bool

    @property
    def last_line(self) -> str:
        """The count of stops, the time, and whether the banks are equal."""
        banks = "the banks are equal" if self.equal else "THE BANKS DIFFER"
        return f"{counted(self.stops, 'stop')}, then the run ended in {self.seconds:.0f} s: {banks}"


def stop_and_start(plan: Path, out: Path, stops: int, seed: int, say: Say) -> StopsVerdict:
    """Run the plan undisturbed, then as real processes with so many stops, and compare.

    Raises:
        StateError: the run did not end, or an order was not delivered.
    """
    simulate(plan, undisturbed(out / "undisturbed"))
    moments, done = random.Random(seed), 0
    with loopback(plan, out / "real", LINK) as federation:
        for machine in federation.machines:
            federation.start(machine)
        while done < stops:
            federation.request_run()
            if not _await_delivery(federation):
                break
            pause = moments.uniform(0.0, LONGEST_S)
            time.sleep(pause)
            federation.stop_run()
            done += 1
            say(f"stop {done} of {stops}, {pause:.1f} s after a site was asked")
        began = time.monotonic()
        federation.request_run()
        await_end(federation)
        seconds = time.monotonic() - began
    folder = federation.run
    Bank.open(folder.bank).verify()
    equal = bank_bytes(folder) == bank_bytes(RunFolder(out / "undisturbed"))
    return StopsVerdict(done, seconds, equal)


def _await_delivery(federation: LoopbackFederation) -> bool:
    """Wait until the run that was just requested asks a site; return False if it has ended."""
    file = federation.state.events_file(federation.plan.name)
    requested = federation.state.requested
    since = 0 if requested is None else requested.since
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        events = read_events(file, since)[0]
        if final_event(events) is not None:
            return False
        if any(event["event"] == "waiting" for event in events):
            return True
        time.sleep(_TICK_S)
    raise StateError(f"{federation.root}: no site was asked within {_PATIENCE_S:g} s")


@with_exit_codes
def main(arguments: Sequence[str] | None = None) -> int:
    """Run it from the command line, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m simulation.chaos.stops", description=__doc__)
    parser.add_argument("--stops", type=whole_from(0), default=30)
    parser.add_argument("--seed", type=whole_from(0), default=1)
    parser.add_argument("--out", type=new_folder, default="runs/stops", help="a new folder")
    parser.add_argument("--plan", type=Path, default=PLAN)
    options = parser.parse_args(arguments)
    # As Ctrl-C does: no process of the federation is left running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    verdict = stop_and_start(
        options.plan, options.out.resolve(), options.stops, options.seed, log_to_stderr
    )
    print(verdict.last_line)
    return 0 if verdict.equal else 1


if __name__ == "__main__":
    sys.exit(main())
