"""Progress as lines of JSON in files: one file per writer, any reader may follow it."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

#: One thing that happened: its name or its stage, round and step, and what is known of it.
ProgressEvent: TypeAlias = Mapping[str, Any]
#: Called with every event.
OnEvent: TypeAlias = Callable[[ProgressEvent], None]
#: Prints a line for a person, or logs it.
Say: TypeAlias = Callable[[str], None]


def write_event(folder: Path, writer: str, event: ProgressEvent) -> None:
    """Append one line to the writer's file."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{writer}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(event)) + "\n")


def read_events(file: Path, start: int = 0) -> tuple[list[ProgressEvent], int]:
    """Return the events of the whole lines from byte `start` on, and the byte where they end.

    A line that is still being written is left for the next call. No file has no events.
    """
    try:
        with file.open("rb") as opened:
            opened.seek(start)
            lines = opened.read()
    except FileNotFoundError:
        return [], start
    whole = lines[: lines.rfind(b"\n") + 1]
    events: list[ProgressEvent] = []
    for line in whole.splitlines():
        # A writer that was killed leaves half a line, to which the next one appends.
        with suppress(json.JSONDecodeError):
            events.append(json.loads(line))
    return events, start + len(whole)


class Follower:
    """Reads the events of all writers of a folder, from the moment it is made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ends: dict[Path, int] = {file: file.stat().st_size for file in folder.glob("*.jsonl")}

    def events(self) -> Iterator[tuple[str, ProgressEvent]]:
        """Yield (writer, event) of every whole line that is new since the last call."""
        for file in sorted(self._folder.glob("*.jsonl")):
            events, self._ends[file] = read_events(file, self._ends.get(file, 0))
            for event in events:
                yield file.stem, event
