"""The soak: a federation of real processes under a seeded adversary ends as an undisturbed one.

    python -m simulation.chaos.soak --kills 40 --seed 1 --out DIR

The last line says how many kills there were and whether the banks are equal; the exit code
is 0 only if all that must hold holds.
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
from common.errors import Refusal, StateError
from common.process.progress import read_events
from server.coordinator.events import final_event
from server.run.folder import RunFolder
from simulation.chaos.adversary import Adversary, Pace, Say, adversary
from simulation.chaos.loopback import ROOT, Federation, loopback, said
from simulation.engines import Engine
from simulation.run import SimulationOptions, simulate

PLAN = ROOT / "configs" / "soak.yaml"
_TICK_S = 0.2
_LOOK_S = 1.0
#: After the last kill the run has this long to end.
PATIENCE_S = 3600.0


@dataclass(frozen=True, slots=True, order=True)
class Counted:
    """An answer that the journal holds as accepted."""

    stage: int
    round: int
    work: str
    site: str
    digest: str
    header: str


@dataclass(slots=True)
class Witness:
    """Looks into the journal again and again, and remembers every answer it ever saw in it.

    Attributes:
        seen: accepted answers, by (order's digest, site).
        faults: what must not happen and did.
    """

    folder: RunFolder
    seen: dict[tuple[str, str], Counted] = field(default_factory=dict[tuple[str, str], Counted])
    faults: list[str] = field(default_factory=list[str])
    _due: float = 0.0

    def look(self, now: float) -> None:
        """Compare the journal with what was seen before, if it is time to."""
        if now < self._due or not self.folder.journal.exists():
            return
        self._due = now + _LOOK_S
        try:
            held = accepted(self.folder)
        except sqlite3.OperationalError:
            return  # it is being written, or being made
        self.compare(held)

    def compare(self, held: Sequence[Counted]) -> None:
        """Nothing that was accepted is gone or another."""
        now_held = {(answer.digest, answer.site): answer for answer in held}
        for key, answer in self.seen.items():
            if key not in now_held:
                self.faults.append(f"accepted and gone: {_words(answer)}")
            elif now_held[key] != answer:
                self.faults.append(f"accepted twice: {_words(answer)}")
        self.seen = now_held


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the soak came to.

    Attributes:
        faults: all that must hold and does not.
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
        """Whether all that must hold holds."""
        return self.equal and not self.faults

    @property
    def last_line(self) -> str:
        """The count of kills, and whether the banks are equal."""
        banks = "the banks are equal" if self.equal else "THE BANKS DIFFER"
        return f"{self.kills} kills, {self.stops} stops, {self.seconds:.0f} s: {banks}"


def soak(plan: Path, out: Path, kills: int, seed: int, pace: Pace | None = None) -> Verdict:
    """Run the plan undisturbed, then as real processes under the adversary, and compare.

    Raises:
        StateError: the run did not end.
    """
    simulate(plan, _undisturbed(out / "undisturbed"))
    with loopback(plan, out / "real") as federation:
        for machine in federation.machines:
            federation.start(machine)
        federation.want()
        began = time.monotonic()
        say = _telling(federation, began)
        foe = adversary(federation, kills, seed, say, pace)
        witness = Witness(federation.run)

        def strike() -> bool:
            foe.act()
            witness.look(time.monotonic())
            return foe.ended

        await_end(federation, strike, PATIENCE_S)
        foe.relent()
        seconds = time.monotonic() - began
    return _judged(federation, foe, witness, seconds, out)


def accepted(folder: RunFolder) -> list[Counted]:
    """The answers that the journal holds as accepted."""
    name = f"file:{quote(str(folder.journal))}?mode=ro"
    database = sqlite3.connect(name, uri=True)
    try:
        rows = database.execute(
            "select stage, round, work, site, digest, header from answers where refused is null"
        ).fetchall()
    finally:
        database.close()
    return sorted(Counted(*row) for row in rows)


def counted_twice(answers: Sequence[Counted]) -> list[str]:
    """Sites whose update stands twice in a round."""
    updates = [(a.stage, a.round, a.site) for a in answers if a.work == "train"]
    return [
        f"counted twice: {site} in stage {stage + 1}, round {number}"
        for stage, number, site in sorted(set(updates))
        if updates.count((stage, number, site)) > 1
    ]


def bank_bytes(folder: RunFolder) -> Mapping[str, bytes]:
    """Every file of the bank, by its path."""
    files = (file for file in sorted(folder.bank.rglob("*")) if file.is_file())
    return {file.relative_to(folder.bank).as_posix(): file.read_bytes() for file in files}


def await_end(
    federation: Federation, meanwhile: Callable[[], bool] = lambda: True, patience_s: float = 900.0
) -> None:
    """The run has come to its end.

    Args:
        meanwhile: called again and again; patience begins when it is first true.

    Raises:
        StateError: it failed, or patience has ended.
    """
    news = federation.state.events_file(federation.plan.name)
    deadline: float | None = None
    while (last := final_event(read_events(news)[0])) is None:
        now = time.monotonic()
        if meanwhile():
            deadline = deadline or now + patience_s
        if deadline is not None and now > deadline:
            raise StateError(
                f"{federation.root}: the run has not ended within {patience_s:g} s, expected it "
                f"to; its last news: {read_events(news)[0][-1:]}"
            )
        time.sleep(_TICK_S)
    if last["event"] != "done":
        raise StateError(f"{federation.root}: the run failed: {last.get('text')}")


def _judged(
    federation: Federation, foe: Adversary, witness: Witness, seconds: float, out: Path
) -> Verdict:
    folder, plan = federation.run, federation.plan
    held = accepted(folder)
    witness.compare(held)
    faults = [*witness.faults, *counted_twice(held), *_missing(federation, held)]
    if foe.killed < foe.kills:
        faults.append(f"the run ended after {foe.killed} of {foe.kills} kills: too short a plan")
    if (released := len(Bank.open(folder.bank).releases)) != len(plan.stages):
        faults.append(f"found {released} stages released, expected {len(plan.stages)}")
    try:
        said("bank", "verify", str(folder.bank))
    except StateError as error:
        faults.append(str(error))
    equal = bank_bytes(folder) == bank_bytes(RunFolder(out / "undisturbed"))
    return Verdict(foe.killed, foe.stopped, seconds, len(held), tuple(faults), equal)


def _missing(federation: Federation, held: Sequence[Counted]) -> list[str]:
    """Updates that the plan asks for and the journal has not."""
    there = {(answer.stage, answer.round, answer.site) for answer in held if answer.work == "train"}
    return [
        f"missing: {site} in stage {number + 1}, round {round_number}"
        for number, stage in enumerate(federation.plan.stages)
        for round_number in range(1, stage.rounds + 1)
        for site in stage.sites
        if (number, round_number, site) not in there
    ]


def _telling(federation: Federation, began: float) -> Say:
    news = federation.state.events_file(federation.plan.name)

    def say(text: str) -> None:
        told = [one for one in read_events(news)[0] if "stage" in one]
        where = "nothing yet"
        if told:
            last = told[-1]
            where = " ".join(f"{key} {last[key]}" for key in ("stage", "round") if key in last)
            where = f"{last['event']} {where}"
        print(f"{time.monotonic() - began:6.0f} s  {text}  [{where}]", flush=True)

    return say


def _undisturbed(out: Path) -> SimulationOptions:
    return SimulationOptions(
        out=out,
        engine=Engine.IN_PROCESS,
        methods=None,
        seeds=1,
        data=None,
        base_model=None,
        quiet=True,
    )


def _words(answer: Counted) -> str:
    where = f"stage {answer.stage + 1}, round {answer.round}"
    return f"{answer.work} {where} of {answer.site} ({answer.digest[:12]})"


def main() -> int:
    """The soak from the command line; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m simulation.chaos.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), help="a new folder")
    parser.add_argument("--plan", type=Path, default=PLAN)
    wish = parser.parse_args()
    # As Ctrl-C does: no process of the federation is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        verdict = soak(wish.plan, wish.out.resolve(), wish.kills, wish.seed)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    for fault in verdict.faults:
        print(fault)
    print(
        f"{verdict.answers} answers in the journal, each once" if not verdict.faults else "FAILED"
    )
    print(verdict.last_line)
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main())
