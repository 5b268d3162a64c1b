"""The keeper: supervises the requested run, and restarts it until it is done.

A ServerApp that has died is final for Flower, and a run that was interrupted resumes from its
own folder (server/run/journal.py). So the keeper starts a new run of Flower's whenever none is
active for the requested run. It also synchronizes Flower's nodes with the enrolled sites.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Protocol

from common.errors import Refusal
from common.process.progress import Say, write_event
from common.process.supervise import log_to_stderr, until_signalled
from server.coordinator.events import FinalEvent
from server.coordinator.flower_nodes import NodeApi, sync_nodes
from server.coordinator.state import RequestedRun, State
from server.coordinator.superlink import (
    FlowerRun,
    SuperLink,
    make_bundle,
)
from server.run.folder import is_running

#: Pause between two reconciliations; each costs a request of about a millisecond.
INTERVAL_S = 2.0
#: How often the enrolled sites are compared with Flower's nodes, if they have not changed.
_SYNC_NODES_S = 10.0
#: Pause before a run that ended at once is restarted; doubled each time, up to the longest.
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
#: A run that was active for so long did not end at once.
_STABLE_S = 60.0
#: A run whose folder no ServerApp has locked for so long has lost its process; Flower itself
#: notices after one to two minutes. Doubled each time, in case starts are slow.
_LOST_S = 30.0


class ControlApi(NodeApi, Protocol):
    """The SuperLink's calls that the keeper needs (server/coordinator/superlink.py)."""

    def runs(self) -> Sequence[FlowerRun]:
        """Return the newest runs, newest first."""
        ...

    def start(self, bundle: bytes, config: Mapping[str, str | float]) -> int:
        """Start a run of the bundled app with this run config; return its id."""
        ...

    def stop(self, run_id: int) -> None:
        """Stop the run."""
        ...


class Keeper:
    """Compares, at intervals, what is requested with what Flower does, and acts on differences."""

    def __init__(self, state: State, superlink: ControlApi, bundle: Callable[[], bytes]) -> None:
        """`bundle` makes the Flower App Bundle that a run is started with."""
        self._state = state
        self._superlink = superlink
        self._bundle = bundle
        #: Modification time of the registry at the last synchronization, and when that was.
        self._synced: tuple[float, float] | None = None
        #: The request that was looked at last, and what ends its run.
        self._followed: tuple[RequestedRun, FinalEvent] | None = None
        self._started_at = float("-inf")
        self._pause_s = _FIRST_PAUSE_S
        self._locked_at: float | None = None
        self._lost_s = _LOST_S

    def reconcile(self, now: float) -> None:
        """Do what is due at the moment `now` (seconds of a monotonic clock).

        Raises:
            Refusal: the SuperLink is away or refuses, or a file is damaged; the next call tries
                again.
        """
        self._sync_nodes(now)
        requested = self._state.requested
        if requested is None:
            return
        if requested.stop:
            stop_run(self._state, self._superlink, requested)
        elif self._has_ended(requested):
            self._state.clear_request(requested)
        else:
            self._keep_running(requested.run, now)

    def _has_ended(self, requested: RequestedRun) -> bool:
        if self._followed is None or self._followed[0] != requested:
            file = self._state.events_file(requested.run)
            self._followed = requested, FinalEvent(file, requested.since)
        return self._followed[1].latest() is not None

    def _sync_nodes(self, now: float) -> None:
        file = self._state.registry
        changed = file.stat().st_mtime if file.exists() else 0.0
        last = self._synced
        if last is None or last[0] != changed or now - last[1] >= _SYNC_NODES_S:
            self._synced = None
            sync_nodes(self._state, self._superlink)
            self._synced = (changed, now)

    def _keep_running(self, run: str, now: float) -> None:
        folder = str(self._state.run(run).root)
        ours = [one for one in self._superlink.runs() if one.folder == folder]
        active = [one for one in ours if one.active]
        for one in active if self._has_lost_its_process(run, active, now) else ():
            self._superlink.stop(one.run_id)
        if active:
            return
        if now - self._started_at >= _STABLE_S:
            self._pause_s = _FIRST_PAUSE_S
        elif now - self._started_at < self._pause_s:
            return
        run_id = self._superlink.start(self._bundle(), run_config(self._state, run))
        self._started_at, self._pause_s = now, min(2 * self._pause_s, _LONGEST_PAUSE_S)
        after = f"{ours[0].sub_status}: {ours[0].details}" if ours else None
        wall_time = datetime.now(UTC).isoformat(timespec="seconds")
        event = {"event": "started", "run": run_id, "after": after, "time": wall_time}
        write_event(self._state.run(run).progress, "keeper", event)

    def _has_lost_its_process(self, run: str, active: Sequence[FlowerRun], now: float) -> bool:
        """Return whether Flower still lists a run as running whose ServerApp has died."""
        running = any(one.status == "running" for one in active)
        if self._locked_at is None or not running or is_running(self._state.run(run)):
            self._locked_at = now
        if now - self._locked_at < self._lost_s:
            return False
        self._locked_at, self._lost_s = now, 2 * self._lost_s
        return True


def stop_run(state: State, superlink: ControlApi, requested: RequestedRun) -> None:
    """Stop Flower's active runs of the requested run, then clear the request."""
    folder = str(state.run(requested.run).root)
    for one in superlink.runs():
        if one.active and one.folder == folder:
            superlink.stop(one.run_id)
    state.clear_request(requested)


def run_config(state: State, run: str) -> Mapping[str, str | float]:
    """Return the run config that the ServerApp reads (server/app.py)."""
    folder = state.run(run)
    return {
        "plan": str(folder.plan),
        "folder": str(folder.root),
        "registry": str(state.registry),
        "wait-s": state.settings.wait_s,
        "slack-s": state.settings.slack_s,
    }


def run_keeper(state: State, superlink: ControlApi, stop: Event, say: Say) -> None:
    """Reconcile at intervals until `stop` is set; log when the SuperLink comes or goes."""
    keeper, logged = Keeper(state, superlink, make_bundle), ""
    while not stop.is_set():
        problem = ""
        try:
            keeper.reconcile(time.monotonic())
        except Refusal as error:
            # Also a file that is damaged: once it is mended the next call goes on.
            problem = str(error)
        if problem != logged:
            say(problem or "the SuperLink answers")
            logged = problem
        time.sleep(INTERVAL_S)


def _main(root: Path) -> None:
    state = State.open(root)
    with until_signalled() as stop, closing(SuperLink(state)) as superlink:
        run_keeper(state, superlink, stop, log_to_stderr)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
