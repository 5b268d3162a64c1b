"""Follows a run's events for the terminal: lines that stay, and the current activity."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from common.errors import StateError
from common.plan.file import load_plan
from common.plan.plan import Plan
from common.process.progress import ProgressEvent, read_events
from server.coordinator.events import FinalEvent, read_run_events
from server.coordinator.state import RequestedRun, State
from server.coordinator.status import describe_activity


class ActivityLines:
    """The current activity as lines, for a file: when it changes, and again now and then."""

    def __init__(self, every_s: float = 10.0, repeat_s: float = 60.0) -> None:
        """Give a line at most every `every_s` seconds, the same one after `repeat_s`."""
        self._every_s = every_s
        self._repeat_s = repeat_s
        self._last = ("", float("-inf"))

    def line(self, activity: str, now: float) -> str | None:
        """Return the line that is due at this moment (seconds of a monotonic clock), if any."""
        said, at = self._last
        if now - at < (self._repeat_s if activity == said else self._every_s):
            return None
        self._last = (activity, now)
        return activity


class RunFollower:
    """Follows one run from the moment at which it was requested.

    Attributes:
        activity: what the run is doing now, in words.
    """

    def __init__(self, state: State, requested: RequestedRun) -> None:
        self._state = state
        self._requested = requested
        self._plan: Plan = load_plan(state.run(requested.run).plan)
        self._file = state.events_file(requested.run)
        self._keeper_file = self._file.with_name("keeper.jsonl")
        self._ends = {
            self._file: requested.since,
            self._keeper_file: read_events(self._keeper_file)[1],
        }
        self._final = FinalEvent(self._file, requested.since, partial(read_run_events, self._plan))
        self._printed: set[str] = set()
        self.activity = ""

    def lines(self) -> Iterator[str]:
        """Yield a line for each event since the last call that is worth keeping on screen."""
        for event in self._new_events(self._keeper_file):
            if event.get("after"):
                yield f"restarted (before: {event['after']})"
        for event in self._new_events(self._file):
            self.activity = self._activity_after(event) or self.activity
            line = _line(self._plan, event)
            # A run that resumes writes its earlier events once more.
            if line and line not in self._printed:
                self._printed.add(line)
                yield line

    def ended(self) -> bool:
        """Return whether the run is done.

        Raises:
            StateError: it failed, or somebody stopped it.
        """
        # Read before the events: a run writes its final event first, and only then is its
        # request cleared.
        requested = self._state.requested
        end = self._final.latest()
        if end is not None and end["event"] == "failed":
            raise StateError(str(end["text"]))
        if end is None and requested != self._requested:
            raise StateError(
                f"{self._requested.run}: stopped; `fedmslora coordinator run` continues it"
            )
        return end is not None

    def _new_events(self, file: Path) -> list[ProgressEvent]:
        events, self._ends[file] = read_run_events(self._plan, file, self._ends[file])
        return events

    def _activity_after(self, event: ProgressEvent) -> str:
        if event["event"] != "waiting":
            return describe_activity(self._plan, event)
        sites = ", ".join(f"{site} ({what})" for site, what in event["for"].items())
        activity = describe_activity(self._plan, event)
        activity = activity or self.activity.partition("; waiting for ")[0]
        return f"{activity}; waiting for {sites}" if sites else activity


def _line(plan: Plan, event: ProgressEvent) -> str:
    """Return the line that an event leaves on the screen; empty for most."""
    match event["event"]:
        case "stage":
            stage = plan.stages[int(event["stage"])]
            number = f"stage {event['stage'] + 1} of {len(plan.stages)}"
            return f"{number}: {stage.name} ({stage.modality}) at {', '.join(stage.sites)}"
        case "round":
            losses = ", ".join(f"{site} {loss:.3f}" for site, loss in event["losses"].items())
            rounds = plan.stages[int(event["stage"])].rounds
            return f"  round {event['round']} of {rounds}: loss {losses}"
        case "refused":
            return f"  left out: {event['text']}"
        case "report failed":
            return f"  {event['text']}"
        case "released":
            return f"  released {plan.stages[int(event['stage'])].name}"
        case "scores":
            return f"  scores: {_scores(plan, event)}"
        case "done":
            minutes, seconds = divmod(round(event["seconds"]), 60)
            return f"done in {minutes} min {seconds} s"
        case _:
            return ""


def _scores(plan: Plan, event: ProgressEvent) -> str:
    return ", ".join(
        f"{stage.name} {100 * score:.0f}"
        for stage, score in zip(plan.stages, event["scores"], strict=True)
        if score is not None
    )
