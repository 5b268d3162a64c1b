"""The folder of a report: `report.json`, charts and page."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from common.durable import DISK, remove_if_there, write_file, writing
from common.errors import StateError
from report.answers.examples import AnsweredPicture
from report.hospitals.json_part import hospitals_document
from report.hospitals.model import HospitalsReport
from report.json_file import REPORT_FILE, check_comparable, to_document
from report.methods import PairedTest, methods_document
from report.metrics.rows import METRICS_FILE, metrics_csv
from report.model import RunReport

PAGE_FILE = "report.html"


def write_report(
    folder: Path,
    reports: Sequence[RunReport],
    tests: Sequence[PairedTest] = (),
    hospitals: HospitalsReport | None = None,
    examples: Sequence[AnsweredPicture] = (),
) -> tuple[str, ...]:
    """Write report.json, metrics.csv, the charts and report.html of one or several runs of a plan.

    The page shows the first run in full. With more runs (other methods or seeds), the document
    has all of them under `comparison`, and under `methods` their summary: mean and deviation
    over seeds, cost, and the paired `tests`. What every hospital gains is in `hospitals`,
    `all_hospitals`, `hospital_curves` and `hospitals_of`. Equal reports give equal bytes.

    `examples` are answers with their pictures, for the page alone: report.json holds none, and a
    coordinator of real sites has none.

    Returns a sentence for each chart that can't be drawn; the page says so, and has the others.

    Raises:
        DataError: the runs have different stages, so they can't be compared.
        StateError: the folder can't be written.
    """
    # Importing matplotlib takes half a second, which readers of a report need not wait for.
    from report.html import render_page
    from report.plots import draw

    # First: whatever becomes of charts and page, the numbers are there.
    write_document(folder, reports, tests, hospitals)
    drawn = draw(reports, hospitals)
    files = {chart.file: chart.content for chart in drawn.charts}
    files[PAGE_FILE] = render_page(reports, drawn, tests, hospitals, examples).encode()
    for name, content in files.items():
        _write_atomically(folder / name, content)
    return drawn.failed


def write_document(
    folder: Path,
    reports: Sequence[RunReport],
    tests: Sequence[PairedTest] = (),
    hospitals: HospitalsReport | None = None,
) -> None:
    """Write report.json and metrics.csv alone, as `write_report` does.

    Raises:
        DataError: the runs have different stages, so they can't be compared.
        StateError: the folder can't be written.
    """
    check_comparable(reports, str(folder / REPORT_FILE))
    try:
        # Before the charts are drawn, which takes seconds.
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(f"{folder}: the report can't be written ({error.strerror})") from None
    document = to_document(reports[0])
    if len(reports) > 1:
        document["comparison"] = [to_document(report) for report in reports]
        document["methods"] = methods_document(reports, tests)
    if hospitals is not None:
        document |= hospitals_document(hospitals)
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    _write_atomically(folder / REPORT_FILE, text.encode())
    _write_atomically(folder / METRICS_FILE, metrics_csv(reports).encode())


def page_is_current(folder: Path) -> bool:
    """Return whether the page was written after report.json."""
    page, document = folder / PAGE_FILE, folder / REPORT_FILE
    return page.exists() and page.stat().st_mtime_ns >= document.stat().st_mtime_ns


def _write_atomically(file: Path, content: bytes) -> None:
    try:
        write_file(file, content, DISK)
    except OSError as error:
        with suppress(OSError):
            remove_if_there(writing(file), DISK)
        raise StateError(f"{file}: the report can't be written ({error.strerror})") from None
