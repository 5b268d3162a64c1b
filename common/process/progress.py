"""Progress as lines of JSON in files: one file per writer, any reader may follow it."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias, cast

from common.documents.bounded import parse_json

#: One thing that happened: its name or its stage, round and step, and what is known of it.
ProgressEvent: TypeAlias = Mapping[str, Any]
#: Called with every event.
OnEvent: TypeAlias = Callable[[ProgressEvent], None]
#: Prints a line for a person, or logs it.
Say: TypeAlias = Callable[[str], None]


def write_event(folder: Path, writer: str, event: ProgressEvent) -> None:
    """Append one line to the writer's file; half a line that is there stays a line of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{writer}.jsonl").open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            # A writer that was killed has left half a line.
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(dict(event)).encode() + b"\n")


def read_events(file: Path, start: int = 0) -> tuple[list[ProgressEvent], int]:
    """Return the events of the whole lines from byte `start` on, and the byte where they end.

    A line that is still being written is left for the next call; one that is no JSON object is
    passed over. No file has no events; one that has become shorter than `start` is read from its
    beginning.
    """
    try:
        with file.open("rb") as opened:
            start = start if start <= opened.seek(0, os.SEEK_END) else 0
            opened.seek(start)
            lines = opened.read()
    except FileNotFoundError:
        return [], start
    whole = lines[: lines.rfind(b"\n") + 1]
    events: list[ProgressEvent] = []
    for line in whole.split(b"\n"):
        # A writer that was killed leaves half a line, and a disk that fails other bytes.
        with suppress(ValueError):
            event = parse_json(line)
            if isinstance(event, dict):
                events.append(cast(dict[str, Any], event))
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
