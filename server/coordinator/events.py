"""The events that the ServerApp writes (server/app.py), as they are read back from their file."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field, ValidationError, create_model

from common.plan.plan import Plan
from common.process.progress import ProgressEvent, read_events

#: `done`: the run has finished. `failed`: it would fail again if it were started again.
_FINAL = ("done", "failed")

#: Words of an event `waiting` by which its readers know what a site does: it is not connected, or
#: its code is not the coordinator's.
OFFLINE: Final = "offline"
OTHER_CODE: Final = "runs code"

#: Bytes in front of the place that a file was read up to, by which it is known again.
_MARK_BYTES: Final = 512

_Place = Annotated[int, Field(ge=0)]


def _fields(kinds: Mapping[str, Any]) -> type[BaseModel]:
    fields: Any = {name: (kind, ...) for name, kind in kinds.items()}
    return create_model("_Event", **fields)


#: The fields of each event that its readers rely on.
_FIELDS: Final[Mapping[str, type[BaseModel]]] = {
    "scoring": _fields({"task": _Place, "stage": _Place | None}),
    "stage": _fields({"stage": _Place}),
    "released": _fields({"stage": _Place}),
    "round": _fields({"stage": _Place, "round": _Place, "losses": dict[str, float]}),
    "waiting": _fields({"for": dict[str, str]}),
    "refused": _fields({"stage": _Place, "site": str, "text": str}),
    "base": _fields({"task": _Place, "score": float | None}),
    "scores": _fields({"stage": _Place, "scores": list[float | None]}),
    "report failed": _fields({"text": str}),
    "failed": _fields({"text": str}),
    "done": _fields({"seconds": float}),
}


def read_run_events(plan: Plan, file: Path, start: int = 0) -> tuple[list[ProgressEvent], int]:
    """Return a run's events as `read_events` does, without those that were damaged on the disk."""
    events, end = read_events(file, start)
    return list(_whole(len(plan.stages), events)), end


def all_run_events(plan: Plan, file: Path, start: int = 0) -> list[ProgressEvent]:
    """Return a run's events from byte `start` on, reading only what is new since the last call.

    For the status, which is asked again and again; a run of weeks has a hundred thousand events.
    """
    return list(_kept_events(len(plan.stages), file, start).read_on())


def file_stamp(file: Path) -> tuple[int, int] | None:
    """Return size and modification time, which differ once something is appended; None without."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


class _KeptEvents:
    """The events of a file from a byte on, kept, and read on from the last whole line."""

    def __init__(self, stages: int, file: Path, start: int) -> None:
        self._stages, self._file, self._start = stages, file, start
        self._end = start
        self._mark = self._found_mark()
        self._events: list[ProgressEvent] = []

    def read_on(self) -> Sequence[ProgressEvent]:
        """Return the events so far; all are read anew where the file is not the one it was."""
        if self._found_mark() != self._mark:
            self._end, self._events = self._start, []
        events, self._end = read_events(self._file, self._end)
        self._events.extend(_whole(self._stages, events))
        self._mark = self._found_mark()
        return self._events

    def _found_mark(self) -> tuple[int, int, bytes] | None:
        """Return which file it is, and the last bytes of it that were read; None without one."""
        try:
            with self._file.open("rb") as opened:
                place = os.fstat(opened.fileno())
                opened.seek(max(0, self._end - _MARK_BYTES))
                return place.st_dev, place.st_ino, opened.read(min(self._end, _MARK_BYTES))
        except FileNotFoundError:
            return None


# The status asks for all events and for the latest request's; a page may show an earlier run.
_kept_events = lru_cache(maxsize=4)(_KeptEvents)


def final_event(events: Sequence[ProgressEvent]) -> ProgressEvent | None:
    """Return the event that ended the run; None if it has not ended.

    Of several only the last one counts: a run that failed and was requested again
    continues to write to the same file.
    """
    return next((event for event in reversed(events) if event.get("event") in _FINAL), None)


@dataclass(slots=True)
class FinalEvent:
    """Looks for the event that ended a run; what was read once is not read again.

    A run of weeks has a hundred thousand events, and is looked at every second.

    Attributes:
        end: the byte of the file from which on it is read next.
        read: `read_events`, or `read_run_events` of a plan.
    """

    file: Path
    end: int
    read: Callable[[Path, int], tuple[list[ProgressEvent], int]] = read_events
    _found: ProgressEvent | None = None

    def latest(self) -> ProgressEvent | None:
        """Return the last event so far that ended the run; None if it has not ended."""
        events, self.end = self.read(self.file, self.end)
        self._found = final_event(events) or self._found
        return self._found


def _whole(count: int, events: Sequence[ProgressEvent]) -> Iterator[ProgressEvent]:
    """Yield the events that have their fields, and are of stages that a plan of so many has."""
    stages = (None, *range(count))
    for event in events:
        name = event.get("event")
        if not isinstance(name, str):
            continue
        with suppress(ValidationError):
            if name in _FIELDS:
                _FIELDS[name].model_validate(event, strict=True)
            scores = event.get("scores")
            complete = scores is None or len(scores) == count
            if complete and event.get("stage") in stages and event.get("task") in stages:
                yield event
