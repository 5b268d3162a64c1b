"""The table of pydicom's test files is what this code makes of them."""

import re
from pathlib import Path

import pydicom
import pytest

from benchmarks.pictures.dicom_agreement import ALLOWED, TABLE, Shown, shipped_files, show, table
from tests.unit.dicom_files import shipped

ROWS = {
    cells[0]: cells
    for line in TABLE.read_text(encoding="utf-8").splitlines()
    if (cells := [cell.strip() for cell in line.strip("|").split("|")])[0].endswith(".dcm")
}


def test_every_file_of_the_wheel_has_the_digest_of_its_row():
    # Those of pydicom-data are larger; the benchmark itself goes through them.
    wheel = Path(pydicom.__file__).parent
    shown = [show(file) for file in shipped_files() if file.is_relative_to(wheel)]
    assert len(shown) > 60
    assert {one.name: one.digest for one in shown} == {one.name: ROWS[one.name][3] for one in shown}
    assert all(f"{one.mean:.2f}" == ROWS[one.name][2] for one in shown)


@pytest.mark.parametrize(
    "name",
    [
        "JPEG-LL.dcm",
        "JPGLosslessP14SV1_1s_1f_8b.dcm",
        "JPEGLSNearLossless_16.dcm",
        "JPGExtended.dcm",
        "JPEG-lossy.dcm",
    ],
)
def test_what_a_jpeg_without_a_plain_twin_shows_is_its_rows_which_dcmtk_agrees_with(name: str):
    found, cells = show(shipped(name)), ROWS[name]
    assert (found.digest, f"{found.mean:.2f}") == (cells[3], cells[2])
    # In grey levels, of 12 bits in a lossy JPEG by another decoder.
    assert int(cells[4]) <= 4


def test_what_differs_by_more_than_two_levels_has_its_reason():
    apart = {name: cells for name, cells in ROWS.items() if cells[4] and int(cells[4]) > ALLOWED}
    assert len(ROWS) > 100 and 0 < len(apart) < 12
    assert all(re.search("DCMTK|decoders", cells[5]) for cells in apart.values())


@pytest.mark.parametrize(("largest", "close"), [(2, 1), (3, 0)])
def test_the_page_counts_what_is_close(largest: int, close: int):
    files = [
        Shown("a.dcm", (2, 1), 7.0, "ab", "mean 0.10", largest),
        Shown("b.dcm", (2, 1), 7.0, "ab", "DCMTK can't"),
        Shown("c.dcm", (0, 0), 0.0, "refused", "found no pixels"),
    ]
    page = table(files)
    assert f"3 files, 1 of them refused; of 1 that both read, {close} differ" in page
    assert f"| a.dcm | 2 x 1 | 7.00 | ab | {largest} | mean 0.10 |" in page
    assert "| b.dcm | 2 x 1 | 7.00 | ab |  | DCMTK can't; the pixels of a.dcm |" in page
