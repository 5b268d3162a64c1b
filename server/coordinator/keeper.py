"""The keeper: the wanted run goes on until it is done, whatever dies in between.

A ServerApp that has died is final for Flower, and a run that was cut off resumes from its
own folder (server/run/journal.py). So keeping a run going is starting a new run of Flower's
whenever none is active.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Protocol

from common.process.progress import tell
from common.process.supervise import Say, until_signalled
from server.coordinator.events import ending, read_news
from server.coordinator.flower_nodes import Nodes, introduce
from server.coordinator.state import State, Wanted
from server.coordinator.superlink import (
    FlowerRun,
    SuperLink,
    SuperLinkAway,
    SuperLinkRefused,
    make_bundle,
)
from server.run.folder import held

#: Pause between two looks; one costs a request of a millisecond.
LOOK_S = 2.0
#: How often the enrolled sites are compared with those that Flower knows.
_INTRODUCE_S = 10.0
#: Pause before a run that ended at once is started again; doubled each time, up to the most.
_FIRST_PAUSE_S = 1.0
_MOST_PAUSE_S = 60.0
#: A run that was active for so long had not ended at once.
_SETTLED_S = 60.0
#: A run whose ServerApp has not held the run's folder for so long has lost it. Flower itself
#: notices after one to two minutes. Twice as long after each time, should starts be slow.
_DESERTED_S = 30.0


class Runs(Nodes, Protocol):
    """What the keeper asks of the SuperLink (server/coordinator/superlink.py)."""

    def runs(self) -> Sequence[FlowerRun]:
        """The newest runs, the newest first."""
        ...

    def start(self, bundle: bytes, config: Mapping[str, str | float]) -> int:
        """Start a run of the bundled app with this run config; its number."""
        ...

    def stop(self, number: int) -> None:
        """The run is stopped."""
        ...


class Keeper:
    """Looks now and then at what is wanted and at what Flower does, and mends the difference."""

    def __init__(self, state: State, superlink: Runs, bundle: Callable[[], bytes]) -> None:
        """`bundle` makes the code that a run is started with."""
        self._state = state
        self._superlink = superlink
        self._bundle = bundle
        self._introduced: tuple[float, float] | None = None
        self._started_at = float("-inf")
        self._pause_s = _FIRST_PAUSE_S
        self._held_at: float | None = None
        self._deserted_s = _DESERTED_S

    def look(self, now: float) -> None:
        """Do what is to be done at the moment `now` (seconds of a clock that never jumps).

        Raises:
            SuperLinkAway, SuperLinkRefused: it will have to be done at another look.
        """
        self._introduce(now)
        wanted = self._state.wanted
        if wanted is None:
            return
        if wanted.stop:
            stop_run(self._state, self._superlink, wanted)
        elif ending(read_news(self._state.coordinator_news(wanted.run), wanted.since)):
            self._state.settle(wanted)
        else:
            self._keep(wanted.run, now)

    def _introduce(self, now: float) -> None:
        file = self._state.registry
        changed = file.stat().st_mtime if file.exists() else 0.0
        last = self._introduced
        if last is None or last[0] != changed or now - last[1] >= _INTRODUCE_S:
            self._introduced = None
            introduce(self._state, self._superlink)
            self._introduced = (changed, now)

    def _keep(self, run: str, now: float) -> None:
        ours = [
            found for found in self._superlink.runs() if found.folder == _folder(self._state, run)
        ]
        active = [found for found in ours if found.active]
        for found in active if self._deserted(run, active, now) else ():
            self._superlink.stop(found.number)
        if active:
            return
        if now - self._started_at >= _SETTLED_S:
            self._pause_s = _FIRST_PAUSE_S
        elif now - self._started_at < self._pause_s:
            return
        number = self._superlink.start(self._bundle(), run_config(self._state, run))
        self._started_at, self._pause_s = now, min(2 * self._pause_s, _MOST_PAUSE_S)
        after = f"{ours[0].how}: {ours[0].why}" if ours else None
        time_now = datetime.now(UTC).isoformat(timespec="seconds")
        news = {"event": "started", "run": number, "after": after, "time": time_now}
        tell(self._state.run(run).progress, "keeper", news)

    def _deserted(self, run: str, active: Sequence[FlowerRun], now: float) -> bool:
        """Whether Flower takes a run for running whose process has died."""
        running = any(found.status == "running" for found in active)
        if self._held_at is None or not running or held(self._state.run(run)):
            self._held_at = now
        if now - self._held_at < self._deserted_s:
            return False
        self._held_at, self._deserted_s = now, 2 * self._deserted_s
        return True


def stop_run(state: State, superlink: Runs, wanted: Wanted) -> None:
    """No run of Flower's is active for the wanted run, and it is wanted no more."""
    for found in superlink.runs():
        if found.active and found.folder == _folder(state, wanted.run):
            superlink.stop(found.number)
    state.settle(wanted)


def run_config(state: State, run: str) -> Mapping[str, str | float]:
    """What the ServerApp of this run is told (server/app.py)."""
    folder = state.run(run)
    return {
        "plan": str(folder.plan),
        "folder": str(folder.root),
        "registry": str(state.registry),
        "wait-s": state.settings.wait_s,
        "slack-s": state.settings.slack_s,
    }


def run_keeper(state: State, superlink: Runs, stop: Event, say: Say) -> None:
    """Look every few seconds until `stop` is set."""
    keeper, told = Keeper(state, superlink, make_bundle), ""
    while not stop.is_set():
        trouble = ""
        try:
            keeper.look(time.monotonic())
        except (SuperLinkAway, SuperLinkRefused) as error:
            trouble = str(error)
        if trouble != told:
            say(trouble or "the SuperLink answers")
            told = trouble
        time.sleep(LOOK_S)


def _folder(state: State, run: str) -> str:
    return str(state.run(run).root)


def _say(line: str) -> None:
    sys.stderr.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}\n")
    sys.stderr.flush()


def _main(root: Path) -> None:
    state = State.open(root)
    with until_signalled() as stop, closing(SuperLink(state)) as superlink:
        run_keeper(state, superlink, stop, _say)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
