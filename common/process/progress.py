"""What is going on, as lines of JSON in a folder: one file per writer, any reader may follow."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

#: One thing that happened: stage and round where they apply, and what a person would say.
News: TypeAlias = Mapping[str, Any]
#: Takes one piece of it.
Tell: TypeAlias = Callable[[News], None]


def tell(folder: Path, writer: str, news: News) -> None:
    """Append one line to the writer's file."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{writer}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(news)) + "\n")


class Follower:
    """Reads what has been told since it last looked, over all writers of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {file: file.stat().st_size for file in folder.glob("*.jsonl")}

    def news(self) -> Iterator[tuple[str, News]]:
        """(writer, news) of every whole line that is new."""
        for file in sorted(self._folder.glob("*.jsonl")):
            start = self._read.get(file, 0)
            with file.open("rb") as opened:
                opened.seek(start)
                lines = opened.read()
            whole = lines[: lines.rfind(b"\n") + 1]
            self._read[file] = start + len(whole)
            for line in whole.splitlines():
                # Half a line is left by a writer that was killed.
                with suppress(json.JSONDecodeError):
                    yield file.stem, json.loads(line)
