"""The index at the end of docs/architecture.md: `python -m tests.file_index` writes it anew.

A module's line is the first paragraph of its docstring, that of a plan or of a container's file the
first sentence of its first comment, an experiment's its question: what the files say of themselves.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from common.printable import counted

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
HEADING = "## Every file in a line"
#: In the order of the rooms on the page.
ROOMS = (
    "commands", "benchmarks", "simulation", "server", "client", "serving", "retrieval", "report",
    "cost", "interchange", "common", "configs", "docker", "sites",
)  # fmt: skip
_ABOUT = "What each says of itself; `python -m tests.file_index` writes this part."


def with_index(page: str) -> str:
    """Return the page with the index of today in place of the one that it has, if any."""
    before = page.partition(HEADING)[0].rstrip("\n")
    parts = [_folded(room, _lines_of(room)) for room in ROOMS]
    return "\n".join([before, "", HEADING, "", _ABOUT, *parts, ""])


def _folded(room: str, lines: Mapping[str, str]) -> str:
    entries = "\n".join(f"- `{path}`: {line}" for path, line in lines.items())
    head = f"<details><summary><code>{room}/</code>, {counted(len(lines), 'file')}</summary>"
    return f"\n{head}\n\n{entries}\n\n</details>"


def _lines_of(room: str) -> dict[str, str]:
    files = sorted(
        file
        for suffix in ("*.py", "*.yaml", "*.Dockerfile")
        for file in (ROOT / room).rglob(suffix)
        if file.name != "__init__.py"
    )
    return {file.relative_to(ROOT).as_posix(): _line_of(file) for file in files}


def _line_of(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        paragraph = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
        return " ".join(paragraph.split())
    if question := re.search(r"^question: (.+)$", text, re.MULTILINE):
        return question[1]
    return _first_sentence([*takewhile(lambda line: line.startswith("#"), text.splitlines())])


def _first_sentence(comment: Sequence[str]) -> str:
    text = " ".join(line.lstrip("# ") for line in comment)
    return re.split(r"(?<=\.) ", text)[0]


def main() -> None:
    """Write the page."""
    PAGE.write_text(with_index(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
