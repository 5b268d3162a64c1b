"""A seeded adversary: kills parts of a federation, keeps them down, stops and continues others.

What it does is drawn from its seed; when a process is there to be struck depends on the
machine. A part whose supervisor starts it again at once is killed again and again for as
long as it is to be down; a supervisor that is killed is started again by the adversary.
"""

import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum

import psutil

from common.bank.release import RELEASE_FILE
from simulation.chaos.loopback import COORDINATOR, Federation

#: Told of every strike.
Say = Callable[[str], None]


class Role(StrEnum):
    """What a process of a federation is."""

    SUPERLINK = "superlink"
    SUPEREXEC = "superexec"
    EDGE = "edge"
    KEEPER = "keeper"
    SERVERAPP = "ServerApp"
    SUPERNODE = "supernode"
    TRAINER = "trainer"
    CLIENTAPP = "ClientApp"
    SUPERVISOR = "supervisor"


#: A role -> what its command line has that no other's of its machine has.
_MARKS: Mapping[str, str] = {
    Role.SUPERLINK: "flower-superlink",
    Role.SUPEREXEC: "flower-superexec",
    Role.EDGE: "server.coordinator.proxy",
    Role.KEEPER: "server.coordinator.keeper",
    Role.SERVERAPP: "flwr-serverapp",
    Role.SUPERNODE: "flower-supernode",
    Role.TRAINER: "client.node.trainer",
    Role.CLIENTAPP: "client.launcher",
}
_AT_COORDINATOR = (
    Role.SUPERLINK, Role.SUPEREXEC, Role.EDGE, Role.KEEPER, Role.SERVERAPP, Role.SUPERVISOR,
)  # fmt: skip
_AT_SITE = (Role.SUPERNODE, Role.SUPEREXEC, Role.TRAINER, Role.CLIENTAPP, Role.SUPERVISOR)
#: Apps come and go by themselves: they are killed once and not kept down.
_APPS = (Role.SERVERAPP, Role.CLIENTAPP)


@dataclass(frozen=True, slots=True)
class Pace:
    """How hard it strikes; times in seconds, drawn log-uniformly between least and most.

    Attributes:
        gap: from one strike to the next.
        down: how long what was killed is kept down, where it is.
        stopped: how long what was stopped stands still.
        once: share of the kills after which a part may come back at once.
        stops: share of the strikes that stop instead of kill.
    """

    gap: tuple[float, float] = (1.0, 20.0)
    down: tuple[float, float] = (1.0, 180.0)
    stopped: tuple[float, float] = (1.0, 60.0)
    once: float = 0.4
    stops: float = 0.25


@dataclass(frozen=True, slots=True)
class Strike:
    """One deed.

    Attributes:
        seconds: how long the process is down or stands still; 0 comes back at once.
        age_s: it is struck at this age or later, so that short lives are hit at any moment.
    """

    machine: str
    role: Role
    stop: bool
    seconds: float
    age_s: float


@dataclass(slots=True)
class Adversary:
    """Strikes until it has killed `kills` times. Call `act` often; `ended` says when all is up.

    Attributes:
        killed: kills so far; what was killed again to be kept down counts once.
        again: kills that only kept a part down.
        stopped: processes that were stopped and continued.
    """

    federation: Federation
    kills: int
    say: Say
    strikes: Iterator[Strike]
    gaps: Iterator[float]
    killed: int = 0
    again: int = 0
    stopped: int = 0
    _relented: bool = False
    _due: float = 0.0
    _next: Strike | None = None
    _patience: float = 0.0
    _held: dict[tuple[str, Role], float] = field(default_factory=dict[tuple[str, Role], float])
    _still: list[tuple[psutil.Process, float]] = field(
        default_factory=list[tuple[psutil.Process, float]]
    )
    _down: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def ended(self) -> bool:
        """All kills are done, and nothing is down or stopped any more."""
        struck_out = self._relented or self.killed >= self.kills
        return struck_out and not (self._held or self._still or self._down)

    def act(self) -> None:
        """Do what is due: strike, keep down, continue, start again."""
        now = time.monotonic()
        self._keep_down(now)
        self._let_go(now)
        if not self._relented and now >= self._due and self.killed < self._due_kills():
            self._strike(now)

    def relent(self) -> None:
        """Nothing is kept down or stopped any more."""
        self._relented = True
        self._held = dict.fromkeys(self._held, 0.0)
        self._still = [(process, 0.0) for process, _ in self._still]
        self._down = dict.fromkeys(self._down, 0.0)
        self.act()

    def _due_kills(self) -> int:
        """Every stage takes half of the kills that are left, the last one all.

        Under fire a run makes little headway: else all would fall into the first stage.
        """
        released = len(list(self.federation.run.bank.glob(f"*/{RELEASE_FILE}")))
        if released + 1 >= len(self.federation.plan.stages):
            return self.kills
        return self.kills - self.kills // 2 ** (released + 1)

    def _strike(self, now: float) -> None:
        if self._next is None:
            self._next, self._patience = next(self.strikes), now + 30.0
        for machine in self._where(self._next):
            strike = replace(self._next, machine=machine)
            struck = self._find(strike)
            if struck is not None and self._hit(strike, struck, now):
                self._next, self._due = None, now + next(self.gaps)
                return
        if now > self._patience:
            # It is down anyway, or none was started in all that time.
            self._next = None

    def _where(self, strike: Strike) -> Sequence[str]:
        """The machine; or any site for a ClientApp, which lives for seconds and must be caught."""
        if strike.role is not Role.CLIENTAPP:
            return (strike.machine,)
        others = (site for site in self.federation.plan.sites if site != strike.machine)
        return (strike.machine, *others)

    def _find(self, strike: Strike) -> psutil.Process | None:
        if strike.machine in self._down or (strike.machine, strike.role) in self._held:
            return None
        for process in self._processes(strike.machine, strike.role):
            with suppress(psutil.NoSuchProcess):
                if time.time() - process.create_time() >= strike.age_s:
                    return process
        return None

    def _processes(self, machine: str, role: Role) -> list[psutil.Process]:
        """The processes of this role that the machine's supervisor has below it."""
        found: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            supervisor = psutil.Process(self.federation.process(machine).pid)
            if role is Role.SUPERVISOR:
                return [supervisor]
            for process in supervisor.children(recursive=True):
                with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    if any(_MARKS[role] in word for word in process.cmdline()):
                        found.append(process)
        return found

    def _hit(self, strike: Strike, process: psutil.Process, now: float) -> bool:
        if strike.stop:
            if not _send(process, signal.SIGSTOP):
                return False
            self._still.append((process, now + strike.seconds))
            self.stopped += 1
            self.say(f"stops {strike.machine}'s {strike.role} for {strike.seconds:.0f} s")
            return True
        if not _send(process, signal.SIGKILL):
            return False
        self.killed += 1
        if strike.role is Role.SUPERVISOR:
            self.federation.process(strike.machine).wait()
            self._down[strike.machine] = now + strike.seconds
        elif strike.seconds:
            self._held[strike.machine, strike.role] = now + strike.seconds
        after = f"for {strike.seconds:.0f} s" if strike.seconds else "once"
        self.say(f"kill {self.killed} of {self.kills}: {strike.machine}'s {strike.role}, {after}")
        return True

    def _keep_down(self, now: float) -> None:
        for (machine, role), until in list(self._held.items()):
            if now >= until:
                del self._held[machine, role]
                continue
            for process in self._processes(machine, role) if machine not in self._down else ():
                self.again += _send(process, signal.SIGKILL)

    def _let_go(self, now: float) -> None:
        for process, until in list(self._still):
            if now >= until:
                self._still.remove((process, until))
                _send(process, signal.SIGCONT)
        for machine, until in list(self._down.items()):
            if now >= until:
                del self._down[machine]
                self.federation.start(machine)
                self.say(f"{machine} is started again")


def adversary(
    federation: Federation, kills: int, seed: int, say: Say, pace: Pace | None = None
) -> Adversary:
    """An adversary whose deeds are drawn from `seed`."""
    drawn = pace or Pace()
    return Adversary(
        federation,
        kills,
        say,
        strikes=strikes(seed, federation.plan.sites, drawn),
        gaps=_log_uniform(random.Random(f"{seed} gaps"), drawn.gap),
    )


def strikes(seed: int, sites: Sequence[str], pace: Pace) -> Iterator[Strike]:
    """Every role in turn, shuffled anew each time round, so that none is left out."""
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
    """Whether the process was there to get the signal."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        if process.is_running():
            os.kill(process.pid, number)
            return True
    return False
