"""The time of a round while strangers besiege the edge, beside that of an undisturbed round.

    python -m simulation.chaos.siege --out DIR --count 200 --rounds 4

One federation of real processes (simulation/chaos/loopback.py): its first round loads the base
model and does not count, then rounds are undisturbed, then as many besieged by a process of
strangers (simulation/chaos/strangers.py). Prints one JSON document.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from common.errors import StateError
from common.identity import ROOT
from common.process.progress import read_events
from server.coordinator.events import final_event
from simulation.chaos.loopback import LoopbackFederation, loopback
from simulation.chaos.soak import PLAN
from simulation.command_line.arguments import new_folder, whole_from
from simulation.command_line.exit_codes import with_exit_codes

_TICK_S = 0.05
_PATIENCE_S = 900.0
#: Rounds that the strangers have to arrive before rounds count.
_ARRIVE_ROUNDS = 1


def besieged(out: Path, count: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of each undisturbed and each besieged round, and their medians' ratio.

    Raises:
        StateError: the run failed, or a round did not end.
    """
    out.mkdir(parents=True)
    # One stage of three sites, as the soak's first, and with no other before it.
    fields = yaml.safe_load(PLAN.read_text(encoding="utf-8"))
    stage = {**fields["stages"][0], "rounds": 1 + rounds + _ARRIVE_ROUNDS + rounds}
    plan = out / "plan.yaml"
    plan.write_text(yaml.safe_dump({**fields, "stages": [stage]}), encoding="utf-8")
    with loopback(plan, out / "federation") as federation:
        for machine in federation.machines:
            federation.start(machine)
        federation.request_run()
        undisturbed = _seconds(federation, 1, rounds)
        with _strangers(federation, count, out / "strangers.txt"):
            disturbed = _seconds(federation, 1 + rounds + _ARRIVE_ROUNDS, rounds)
    return {
        "strangers": count,
        "undisturbed_s": undisturbed,
        "besieged_s": disturbed,
        "ratio": median(disturbed) / median(undisturbed),
    }


def _seconds(federation: LoopbackFederation, first: int, rounds: int) -> list[float]:
    """Return how long each of these rounds took: from the end of the one before it."""
    ends = [_end_of_round(federation, first + number) for number in range(rounds + 1)]
    return [round(after - before, 2) for before, after in pairwise(ends)]


def _end_of_round(federation: LoopbackFederation, number: int) -> float:
    file = federation.state.events_file(federation.plan.name)
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        events = read_events(file)[0]
        if any(event["event"] == "round" and event["round"] == number for event in events):
            return time.monotonic()
        if (last := final_event(events)) is not None:
            raise StateError(f"{federation.root}: the run ended early: {last.get('text')}")
        time.sleep(_TICK_S)
    raise StateError(
        f"{federation.root}: round {number} has not ended within {_PATIENCE_S:g} s, expected it to"
    )


@contextmanager
def _strangers(federation: LoopbackFederation, count: int, log: Path) -> Generator[None]:
    port = federation.state.settings.port
    words = (sys.executable, "-m", "simulation.chaos.strangers", f"127.0.0.1:{port}")
    with log.open("wb") as output:
        process = subprocess.Popen(
            (*words, "--count", str(count), "--seconds", str(_PATIENCE_S)), cwd=ROOT, stdout=output
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait()


@with_exit_codes
def main() -> int:
    """Measure it, print the result, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m simulation.chaos.siege", description=__doc__)
    parser.add_argument("--out", type=new_folder, required=True, help="a new folder")
    parser.add_argument("--count", type=whole_from(1), default=200, help="of strangers")
    parser.add_argument("--rounds", type=whole_from(1), default=4, help="of each kind")
    options = parser.parse_args()
    # As Ctrl-C does: no process of the federation is left running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    found = besieged(options.out.resolve(), options.count, options.rounds)
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
