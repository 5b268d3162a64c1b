"""The events of a run (common/process/progress.py), read from the beginning or from a place."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from common.process.progress import News

#: What ends a run: it has all it was to have, or starting it again would not mend it.
_ENDINGS = ("done", "failed")


def read_on(file: Path, since: int) -> tuple[list[News], int]:
    """Every whole line behind the first `since` bytes, and how many bytes are read then."""
    try:
        with file.open("rb") as opened:
            opened.seek(since)
            lines = opened.read()
    except FileNotFoundError:
        return [], since
    whole = lines[: lines.rfind(b"\n") + 1]
    news: list[News] = []
    for line in whole.splitlines():
        # Half a line is left by a writer that was killed.
        with suppress(json.JSONDecodeError):
            news.append(json.loads(line))
    return news, since + len(whole)


def read_news(file: Path, since: int = 0) -> list[News]:
    """Every whole line of the file behind its first `since` bytes; none if there is no file."""
    return read_on(file, since)[0]


def told_bytes(file: Path) -> int:
    """How many bytes of whole lines the file has; 0 if there is none."""
    return read_on(file, 0)[1]


def ending(news: Sequence[News]) -> News | None:
    """What ended the run, if it has ended.

    Only the last one counts: a run that was ended and wanted again goes on telling.
    """
    return next((one for one in reversed(news) if one["event"] in _ENDINGS), None)
