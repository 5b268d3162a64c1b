"""The soak test: a federation of real processes, killed at random, ends as an undisturbed one.

    python -m simulation.chaos.soak --kills 40 --seed 1 --out DIR

The last line says how many kills there were and whether the banks are equal; the exit code
is 0 only if every check passed.
"""

import argparse
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from common.bank.bank import Bank
from common.errors import StateError
from common.identity import ROOT
from common.printable import counted
from common.process.progress import Say, read_events
from server.coordinator.events import final_event
from server.run.folder import RunFolder
from simulation.chaos.adversary import Adversary, StrikePace, adversary
from simulation.chaos.loopback import LoopbackFederation, loopback, run_command
from simulation.command_line.arguments import new_folder, whole_from
from simulation.command_line.exit_codes import with_exit_codes
from simulation.engines import Engine
from simulation.run import SimulationOptions, simulate

PLAN = ROOT / "configs" / "soak.yaml"
_TICK_S = 0.2
_JOURNAL_EVERY_S = 1.0
#: After the last kill the run has this long to end.
PATIENCE_S = 3600.0


@dataclass(frozen=True, slots=True, order=True)
class AcceptedAnswer:
    """An accepted answer in the journal."""

    stage: int
    round: int
    work: str
    site: str
    digest: str
    header: str


@dataclass(slots=True)
class Witness:
    """Reads the journal at intervals, and checks that no accepted answer is lost or changed.

    Attributes:
        seen: accepted answers of the last reading, by (order's digest, site).
        faults: what was lost or changed.
    """

    folder: RunFolder
    seen: dict[tuple[str, str], AcceptedAnswer] = field(
        default_factory=dict[tuple[str, str], AcceptedAnswer]
    )
    faults: list[str] = field(default_factory=list[str])
    _next_at: float = 0.0

    def look(self, now: float) -> None:
        """Compare the journal with what was seen before, if the interval is over."""
        if now < self._next_at or not self.folder.journal.exists():
            return
        self._next_at = now + _JOURNAL_EVERY_S
        try:
            answers = accepted(self.folder)
        except sqlite3.OperationalError:
            return  # it is being written or created
        self.compare(answers)

    def compare(self, answers: Sequence[AcceptedAnswer]) -> None:
        """Record every answer that was accepted before and is now lost or another."""
        now = {(answer.digest, answer.site): answer for answer in answers}
        for key, answer in self.seen.items():
            if key not in now:
                self.faults.append(f"accepted and lost: {_described(answer)}")
            elif now[key] != answer:
                self.faults.append(f"accepted and changed: {_described(answer)}")
        self.seen = now


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of the soak.

    Attributes:
        faults: every check that failed.
        equal: the bank is byte for byte that of the undisturbed run.
    """

    kills: int
    stops: int
    seconds: float
    answers: int
    faults: Sequence[str]
    equal: bool

    @property
    def passed(self) -> bool:
        """Whether the banks are equal and no check failed."""
        return self.equal and not self.faults

    @property
    def last_line(self) -> str:
        """The count of kills, and whether the banks are equal."""
        banks = "the banks are equal" if self.equal else "THE BANKS DIFFER"
        kills, stops = counted(self.kills, "kill"), counted(self.stops, "stop")
        return f"{kills}, {stops}, {self.seconds:.0f} s: {banks}"


def soak(plan: Path, out: Path, kills: int, seed: int, pace: StrikePace | None = None) -> Verdict:
    """Run the plan undisturbed, then as real processes under the adversary, and compare.

    Raises:
        StateError: the run did not end.
    """
    simulate(plan, undisturbed(out / "undisturbed"))
    with loopback(plan, out / "real") as federation:
        for machine in federation.machines:
            federation.start(machine)
        federation.request_run()
        began = time.monotonic()
        say = _announcer(federation, began)
        striker = adversary(federation, kills, seed, say, pace)
        witness = Witness(federation.run)

        def strike() -> bool:
            striker.act()
            witness.look(time.monotonic())
            return striker.ended

        await_end(federation, strike, PATIENCE_S)
        striker.finish()
        seconds = time.monotonic() - began
    return _verdict(federation, striker, witness, seconds, out)


def accepted(folder: RunFolder) -> list[AcceptedAnswer]:
    """Read the accepted answers in the journal."""
    name = f"file:{quote(str(folder.journal))}?mode=ro"
    database = sqlite3.connect(name, uri=True)
    try:
        rows = database.execute(
            "select stage, round, work, site, digest, header from answers where refused is null"
        ).fetchall()
    finally:
        database.close()
    return sorted(AcceptedAnswer(*row) for row in rows)


def accepted_twice(answers: Sequence[AcceptedAnswer]) -> list[str]:
    """List the updates that were accepted twice in a round."""
    updates = [(a.stage, a.round, a.site) for a in answers if a.work == "train"]
    return [
        f"accepted twice: {site} in stage {stage + 1}, round {number}"
        for stage, number, site in sorted(set(updates))
        if updates.count((stage, number, site)) > 1
    ]


def bank_bytes(folder: RunFolder) -> Mapping[str, bytes]:
    """Read every file of the bank, by its path."""
    files = (file for file in sorted(folder.bank.rglob("*")) if file.is_file())
    return {file.relative_to(folder.bank).as_posix(): file.read_bytes() for file in files}


def await_end(
    federation: LoopbackFederation,
    meanwhile: Callable[[], bool] = lambda: True,
    patience_s: float = 900.0,
) -> None:
    """Wait until the run has finished.

    Args:
        meanwhile: called at intervals; the time limit begins when it first returns true.

    Raises:
        StateError: the run failed, or the time limit is over.
    """
    events = federation.state.events_file(federation.plan.name)
    deadline: float | None = None
    while (last := final_event(read_events(events)[0])) is None:
        now = time.monotonic()
        if meanwhile():
            deadline = deadline or now + patience_s
        if deadline is not None and now > deadline:
            raise StateError(
                f"{federation.root}: the run has not ended within {patience_s:g} s, expected it "
                f"to; its last event: {read_events(events)[0][-1:]}"
            )
        time.sleep(_TICK_S)
    if last["event"] != "done":
        raise StateError(f"{federation.root}: the run failed: {last.get('text')}")


def _verdict(
    federation: LoopbackFederation, striker: Adversary, witness: Witness, seconds: float, out: Path
) -> Verdict:
    folder, plan = federation.run, federation.plan
    answers = accepted(folder)
    witness.compare(answers)
    faults = [*witness.faults, *accepted_twice(answers), *_missing(federation, answers)]
    if striker.killed < striker.kills:
        kills = f"{striker.killed} of {striker.kills} kills"
        faults.append(f"the run ended after {kills}: the plan is too short")
    if (released := len(Bank.open(folder.bank).releases)) != len(plan.stages):
        faults.append(f"found {released} stages released, expected {len(plan.stages)}")
    try:
        run_command("bank", "verify", str(folder.bank))
    except StateError as error:
        faults.append(str(error))
    equal = bank_bytes(folder) == bank_bytes(RunFolder(out / "undisturbed"))
    return Verdict(striker.killed, striker.stopped, seconds, len(answers), tuple(faults), equal)


def _missing(federation: LoopbackFederation, answers: Sequence[AcceptedAnswer]) -> list[str]:
    """List the updates that the plan asks for and the journal does not have."""
    there = {
        (answer.stage, answer.round, answer.site) for answer in answers if answer.work == "train"
    }
    return [
        f"missing: {site} in stage {number + 1}, round {round_number}"
        for number, stage in enumerate(federation.plan.stages)
        for round_number in range(1, stage.rounds + 1)
        for site in stage.sites
        if (number, round_number, site) not in there
    ]


def _announcer(federation: LoopbackFederation, began: float) -> Say:
    """Return what prints a line with the time and with the run's last event."""
    file = federation.state.events_file(federation.plan.name)

    def say(text: str) -> None:
        events = [event for event in read_events(file)[0] if "stage" in event]
        where = "nothing yet"
        if events:
            last = events[-1]
            where = " ".join(f"{key} {last[key]}" for key in ("stage", "round") if key in last)
            where = f"{last['event']} {where}"
        print(f"{time.monotonic() - began:6.0f} s  {text}  [{where}]", flush=True)

    return say


def undisturbed(out: Path) -> SimulationOptions:
    """Return the options of the plan's run in this process, with which a soak is compared."""
    return SimulationOptions(
        out=out,
        engine=Engine.IN_PROCESS,
        methods=None,
        seeds=1,
        data=None,
        base_model=None,
        quiet=True,
    )


def _described(answer: AcceptedAnswer) -> str:
    where = f"stage {answer.stage + 1}, round {answer.round}"
    return f"{answer.work} {where} of {answer.site} ({answer.digest[:12]})"


@with_exit_codes
def main() -> int:
    """Run the soak from the command line, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m simulation.chaos.soak", description=__doc__)
    parser.add_argument("--kills", type=whole_from(0), default=40)
    parser.add_argument("--seed", type=whole_from(0), default=1)
    parser.add_argument("--out", type=new_folder, default="runs/soak", help="a new folder")
    parser.add_argument("--plan", type=Path, default=PLAN)
    options = parser.parse_args()
    # As Ctrl-C does: no process of the federation is left running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    verdict = soak(options.plan, options.out.resolve(), options.kills, options.seed)
    for fault in verdict.faults:
        print(fault)
    print(
        f"{counted(verdict.answers, 'answer')} in the journal, each once"
        if not verdict.faults
        else "FAILED"
    )
    print(verdict.last_line)
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main())
