"""The folder of a report: `report.json`, pictures and page."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from common.durable import DISK, remove_if_there, write_file, writing
from common.errors import StateError
from report.json_file import REPORT_FILE, check_comparable, to_document
from report.methods import PairedTest, methods_document
from report.model import RunReport

PAGE_FILE = "report.html"


def write_report(
    folder: Path, reports: Sequence[RunReport], tests: Sequence[PairedTest] = ()
) -> None:
    """Write report.json, the pictures and report.html of one or several runs of a plan.

    The first run is the one that is told; with more (other methods or seeds), the document
    has all of them under `comparison`, and under `methods` what they come to: mean and spread
    over seeds, cost, and the paired `tests`. Equal reports give equal bytes.

    Raises:
        DataError: the runs have different stages, so there is nothing to compare.
        StateError: the folder can't be written.
    """
    # Drawing loads matplotlib, half a second that readers of a report don't need.
    from report.html import page
    from report.plots import draw

    check_comparable(reports, str(folder / REPORT_FILE))
    _make(folder)
    document = to_document(reports[0])
    if len(reports) > 1:
        document["comparison"] = [to_document(report) for report in reports]
        document["methods"] = methods_document(reports, tests)
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    pictures = draw(reports)
    files = {REPORT_FILE: text.encode()}
    files |= {picture.file: picture.png for picture in pictures}
    files[PAGE_FILE] = page(reports, pictures, tests).encode()
    for name, content in files.items():
        _write(folder / name, content)


def _make(folder: Path) -> None:
    """The folder is there; found out before anything is drawn."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(f"{folder}: the report can't be written ({error.strerror})") from None


def _write(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    try:
        write_file(file, content, DISK)
    except OSError as error:
        with suppress(OSError):
            remove_if_there(writing(file), DISK)
        raise StateError(f"{file}: the report can't be written ({error.strerror})") from None
