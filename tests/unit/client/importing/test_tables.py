"""Tables as people and spreadsheets write them are read, or refused in a sentence."""

from pathlib import Path

import pytest

from client.importing.question import summed_up
from client.importing.tables import read_table
from common.errors import DataError


def rows(tmp_path: Path, blob: bytes, name: str = "t.csv") -> list[dict[str, object]]:
    file = tmp_path / name
    file.write_bytes(blob)
    return [dict(row.cells) for row in read_table(file, name).rows]


@pytest.mark.parametrize(
    ("blob", "name"),
    [
        (b"file,label\na.png,x\n", "t.csv"),
        (b"\xef\xbb\xbffile,label\r\na.png,x\r\n", "t.csv"),
        (b"file;label\na.png;x\n", "t.csv"),
        (b'"file";"label"\r\n"a.png";"x"\r\n', "t.csv"),
        (b"sep=;\r\nfile;label\r\na.png;x\r\n", "t.csv"),
        (b"file\tlabel\na.png\tx\n", "t.tsv"),
        (b"file|label\na.png|x", "t.csv"),
        ("file,label\na.png,x\n".encode("utf-16"), "t.csv"),
        (b" file , label \n\n  \na.png,x,,\n", "t.csv"),
        (b"file,label\ra.png,x\r", "t.csv"),
        (b"\r\n;;\r\nfile;label;\r\na.png;x;\r\n", "t.csv"),
        (b"sep=\t\nfile\tlabel\na.png\tx\n", "t.csv"),
        (b'"sep=;"\rfile;label\ra.png;x', "t.csv"),
        ("file,label\na.png,x\n".encode("utf-16-le"), "t.csv"),
        ("file,label\na.png,x\n".encode("utf-16-be"), "t.csv"),
        ("file,label\na.png,x\n".encode("utf-32"), "t.csv"),
    ],
)
def test_marks_separators_and_line_ends_do_not_matter(tmp_path: Path, blob: bytes, name: str):
    (row,) = rows(tmp_path, blob, name)
    assert {key: str(value).strip() for key, value in row.items()} == {
        "file": "a.png",
        "label": "x",
    }


def test_a_quoted_cell_may_have_separators_quotes_and_new_lines(tmp_path: Path):
    file = tmp_path / "t.csv"
    file.write_bytes(b'file,answer\na.png,"one;\r\n""two"", three"\nb.png,x\n')
    table = read_table(file, "t.csv")
    assert table.rows[0].cells["answer"] == 'one;\r\n"two", three'
    # The second row begins on the line that an editor shows.
    assert str(table.rows[1].place) == "t.csv: line 4"


def test_a_cell_may_be_longer_than_pythons_bound(tmp_path: Path):
    (row,) = rows(tmp_path, b"file,answer\na.png," + b"x" * 200_000)
    assert row["answer"] == "x" * 200_000


def test_a_row_of_another_length_is_named_and_equal_ones_are_summed_up(tmp_path: Path):
    file = tmp_path / "t.csv"
    file.write_text("file,label\na.png\nb.png,x,y\n" + "c.png\n" * 5)
    bad = read_table(file, "t.csv").bad_rows
    assert summed_up(bad) == [
        "t.csv: line 2, line 4, line 5 and 3 more: found 1 cell, expected 2 as in the header",
        "t.csv: line 3: found 3 cells, expected 2 as in the header",
    ]


def test_windows_letters_are_read_and_said(tmp_path: Path):
    file = tmp_path / "t.csv"
    file.write_bytes("file,label\na.png,Lungenentzündung\n".encode("cp1252"))
    table = read_table(file, "t.csv")
    assert table.rows[0].cells["label"] == "Lungenentzündung"
    assert table.notes == ["t.csv is not UTF-8 and was read as Windows-1252: look at its accents"]


@pytest.mark.parametrize(
    ("blob", "sentence"),
    [
        (b"", "t.csv: found an empty file, expected a table with a header"),
        (b"a,b,a\n1,2,3\n", "t.csv: found the column 'a' twice, expected it once"),
        (b'a,b\n"1,2\n', "t.csv: line 2: found no table (unexpected end of data)"),
        (
            b"file,label\na.png,x\0\n",
            "t.csv: found a file that is not text, expected CSV or TSV (a ",
        ),
        ("file,label".encode("utf-16")[:-1], "t.csv: found no UTF-16 at byte 20, expected a text"),
        (b"PK\x03\x04\0\0\0", "t.csv: found a file that is not text, expected CSV or TSV (a "),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, blob: bytes, sentence: str):
    with pytest.raises(DataError) as found:
        rows(tmp_path, blob)
    assert str(found.value).startswith(sentence)
