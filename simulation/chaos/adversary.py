"""A seeded adversary: kills processes of a federation, keeps them down, pauses others.

Its strikes are drawn from its seed; when a process is there to be struck depends on the
machine. A process that its supervisor restarts is killed again for as long as it is to be
down; a supervisor that is killed is started again by the adversary.
"""

import math
import os
import random
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum

import psutil

from common.bank.release import RELEASE_FILE
from common.process.progress import Say
from simulation.chaos.loopback import COORDINATOR, LoopbackFederation


class Role(StrEnum):
    """What a process of a federation is."""

    SUPERLINK = "superlink"
    SUPEREXEC = "superexec"
    PROXY = "proxy"
    KEEPER = "keeper"
    SERVERAPP = "ServerApp"
    SUPERNODE = "supernode"
    TRAINER = "trainer"
    CLIENTAPP = "ClientApp"
    SUPERVISOR = "supervisor"


#: A part of the role's command line that no other process of its machine has.
_COMMANDS: Mapping[str, str] = {
    Role.SUPERLINK: "flower-superlink",
    Role.SUPEREXEC: "flower-superexec",
    Role.PROXY: "server.coordinator.proxy",
    Role.KEEPER: "server.coordinator.keeper",
    Role.SERVERAPP: "flwr-serverapp",
    Role.SUPERNODE: "client.node.supernode",
    Role.TRAINER: "client.node.trainer",
    Role.CLIENTAPP: "client.launcher",
}
_AT_COORDINATOR = (
    Role.SUPERLINK, Role.SUPEREXEC, Role.PROXY, Role.KEEPER, Role.SERVERAPP, Role.SUPERVISOR,
)  # fmt: skip
_AT_SITE = (Role.SUPERNODE, Role.SUPEREXEC, Role.TRAINER, Role.CLIENTAPP, Role.SUPERVISOR)
#: Apps start and end all the time: they are killed once and not kept down.
_APPS = (Role.SERVERAPP, Role.CLIENTAPP)


@dataclass(frozen=True, slots=True)
class StrikePace:
    """How often and how long it strikes; seconds, drawn log-uniformly between least and most.

    Attributes:
        gap: from one strike to the next.
        down: how long a killed process is kept down, if it is.
        stopped: how long a paused process stays paused (SIGSTOP).
        once: share of the kills after which the process may be restarted at once.
        stops: share of the strikes that pause a process instead of killing it.
    """

    gap: tuple[float, float] = (1.0, 20.0)
    down: tuple[float, float] = (1.0, 180.0)
    stopped: tuple[float, float] = (1.0, 60.0)
    once: float = 0.4
    stops: float = 0.25


@dataclass(frozen=True, slots=True)
class Strike:
    """One kill or pause.

    Attributes:
        stop: pause the process instead of killing it.
        seconds: how long the process is down or paused; 0 may be restarted at once.
        age_s: the process is struck at this age or later, so that short-lived processes are
            struck at any moment of their lives.
    """

    machine: str
    role: Role
    stop: bool
    seconds: float
    age_s: float


@dataclass(slots=True)
class Adversary:
    """Strikes until it has killed `kills` times. Call `act` often, until `ended`.

    Attributes:
        killed: kills so far, without those that only kept a process down.
        repeated: kills that only kept a process down.
        stopped: processes that were paused.
    """

    federation: LoopbackFederation
    kills: int
    say: Say
    strikes: Iterator[Strike]
    gaps: Iterator[float]
    killed: int = 0
    repeated: int = 0
    stopped: int = 0
    _finishing: bool = False
    _next_at: float = 0.0
    _next: Strike | None = None
    _give_up_at: float = 0.0
    _kept_down: dict[tuple[str, Role], float] = field(default_factory=dict[tuple[str, Role], float])
    _paused: list[tuple[psutil.Process, float]] = field(
        default_factory=list[tuple[psutil.Process, float]]
    )
    _supervisors: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def ended(self) -> bool:
        """Whether all kills are done and nothing is down or paused any more."""
        done = self._finishing or self.killed >= self.kills
        return done and not (self._kept_down or self._paused or self._supervisors)

    def act(self) -> None:
        """Do what is due: strike, keep down, resume, restart."""
        now = time.monotonic()
        self._kill_again(now)
        self._restore(now)
        if not self._finishing and now >= self._next_at and self.killed < self._due_kills():
            self._strike(now)

    def finish(self) -> None:
        """Resume and restart everything; no further strike."""
        self._finishing = True
        self._kept_down = dict.fromkeys(self._kept_down, 0.0)
        self._paused = [(process, 0.0) for process, _ in self._paused]
        self._supervisors = dict.fromkeys(self._supervisors, 0.0)
        self.act()

    def _due_kills(self) -> int:
        """Return the kills up to this stage: half of those left in each, all in the last.

        A run that is struck makes little progress: otherwise all would fall into the first stage.
        """
        released = len(list(self.federation.run.bank.glob(f"*/{RELEASE_FILE}")))
        if released + 1 >= len(self.federation.plan.stages):
            return self.kills
        return self.kills - self.kills // 2 ** (released + 1)

    def _strike(self, now: float) -> None:
        if self._next is None:
            self._next, self._give_up_at = next(self.strikes), now + 30.0
        for machine in self._machines(self._next):
            strike = replace(self._next, machine=machine)
            struck = self._find(strike)
            if struck is not None and self._carry_out(strike, struck, now):
                self._next, self._next_at = None, now + next(self.gaps)
                return
        if now > self._give_up_at:
            # The process is down anyway, or none was started in all that time.
            self._next = None

    def _machines(self, strike: Strike) -> Sequence[str]:
        """Return the machines to search: any site for a ClientApp, which lives for seconds only."""
        if strike.role is not Role.CLIENTAPP:
            return (strike.machine,)
        others = (site for site in self.federation.plan.sites if site != strike.machine)
        return (strike.machine, *others)

    def _find(self, strike: Strike) -> psutil.Process | None:
        if strike.machine in self._supervisors or (strike.machine, strike.role) in self._kept_down:
            return None
        for process in self._processes(strike.machine, strike.role):
            with suppress(psutil.NoSuchProcess):
                if time.time() - process.create_time() >= strike.age_s:
                    return process
        return None

    def _processes(self, machine: str, role: Role) -> list[psutil.Process]:
        """Return the processes of this role among the descendants of the machine's supervisor."""
        found: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            supervisor = psutil.Process(self.federation.process(machine).pid)
            if role is Role.SUPERVISOR:
                return [supervisor]
            for process in supervisor.children(recursive=True):
                with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    if any(_COMMANDS[role] in word for word in process.cmdline()):
                        found.append(process)
        return found

    def _carry_out(self, strike: Strike, process: psutil.Process, now: float) -> bool:
        if strike.stop:
            if not _send(process, signal.SIGSTOP):
                return False
            self._paused.append((process, now + strike.seconds))
            self.stopped += 1
            self.say(f"pause {strike.machine}'s {strike.role} for {strike.seconds:.0f} s")
            return True
        if not _send(process, signal.SIGKILL):
            return False
        self.killed += 1
        if strike.role is Role.SUPERVISOR:
            self.federation.process(strike.machine).wait()
            self._supervisors[strike.machine] = now + strike.seconds
        elif strike.seconds:
            self._kept_down[strike.machine, strike.role] = now + strike.seconds
        after = f"for {strike.seconds:.0f} s" if strike.seconds else "once"
        self.say(f"kill {self.killed} of {self.kills}: {strike.machine}'s {strike.role}, {after}")
        return True

    def _kill_again(self, now: float) -> None:
        for (machine, role), until in list(self._kept_down.items()):
            if now >= until:
                del self._kept_down[machine, role]
                continue
            for process in (
                self._processes(machine, role) if machine not in self._supervisors else ()
            ):
                self.repeated += _send(process, signal.SIGKILL)

    def _restore(self, now: float) -> None:
        for process, until in list(self._paused):
            if now >= until:
                self._paused.remove((process, until))
                _send(process, signal.SIGCONT)
        for machine, until in list(self._supervisors.items()):
            if now >= until:
                del self._supervisors[machine]
                self.federation.start(machine)
                self.say(f"{machine} is started again")


def adversary(
    federation: LoopbackFederation, kills: int, seed: int, say: Say, pace: StrikePace | None = None
) -> Adversary:
    """Return an adversary whose strikes are drawn from `seed`."""
    drawn = pace or StrikePace()
    return Adversary(
        federation,
        kills,
        say,
        strikes=strikes(seed, federation.plan.sites, drawn),
        gaps=_log_uniform(random.Random(f"{seed} gaps"), drawn.gap),
    )


def strikes(seed: int, sites: Sequence[str], pace: StrikePace) -> Iterator[Strike]:
    """Yield strikes on every role in turn, shuffled anew each time, so that none is left out."""
    draw = random.Random(f"{seed} strikes")
    down, stopped = _log_uniform(draw, pace.down), _log_uniform(draw, pace.stopped)
    while True:
        roles = [(COORDINATOR, role) for role in _AT_COORDINATOR]
        roles += [(draw.choice(sites), role) for role in _AT_SITE]
        draw.shuffle(roles)
        for machine, role in roles:
            age_s = draw.uniform(0.0, 2.0) if role is Role.CLIENTAPP else 0.0
            if draw.random() < pace.stops:
                yield Strike(machine, role, stop=True, seconds=next(stopped), age_s=age_s)
                continue
            once = role in _APPS or (role is not Role.SUPERVISOR and draw.random() < pace.once)
            seconds = 0.0 if once else next(down)
            yield Strike(machine, role, stop=False, seconds=seconds, age_s=age_s)


def _log_uniform(draw: random.Random, limits: tuple[float, float]) -> Iterator[float]:
    least, most = map(math.log, limits)
    while True:
        yield math.exp(draw.uniform(least, most))


def _send(process: psutil.Process, number: signal.Signals) -> bool:
    """Send the signal; return whether the process was there to get it."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        if process.is_running():
            os.kill(process.pid, number)
            return True
    return False
