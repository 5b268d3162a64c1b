"""What `fedmslora coordinator run` prints while the run goes on."""

import time
from contextlib import closing
from datetime import UTC, datetime

from rich.console import Console

from server.coordinator.follow import ActivityLines, RunFollower
from server.coordinator.state import RequestedRun, State
from server.coordinator.superlink import SuperLink, SuperLinkUnavailable


def follow(opened: State, requested: RequestedRun) -> None:
    """Print the run's progress until it ends.

    On a terminal the current activity is a line that changes in place, in a file lines of its own.

    Raises:
        StateError: it failed, or somebody stopped it.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with closing(SuperLink(opened)) as superlink:
        try:
            superlink.runs()
        except SuperLinkUnavailable as away:
            console.print(f"waiting for the SuperLink: {away}", markup=False)
    run, lines = RunFollower(opened, requested), ActivityLines()
    over = False
    with console.status("") as shown:
        while not over:
            try:
                over = run.ended()
            finally:
                # Also the last lines, and those before a failure.
                for line in run.lines():
                    console.print(line, markup=False)
            activity = run.activity or "waiting for the keeper to start the run"
            shown.update(activity)
            due = None if over or console.is_terminal else lines.line(activity, time.monotonic())
            if due is not None:
                console.print(f"{datetime.now(UTC):%H:%M:%S} UTC  {due}", markup=False)
            time.sleep(0 if over else 0.5)
