"""Files from outside are read up to a bound, and JSON is never a traceback."""

from pathlib import Path

import pytest

from common.documents.bounded import OutOfBounds, parse_json, read_bytes, read_text


def test_a_file_of_exactly_the_bound_is_read_and_one_byte_more_is_not(tmp_path: Path):
    file = tmp_path / "a"
    file.write_bytes(b"x" * 1000)
    assert read_bytes(file, 1000) == b"x" * 1000
    with pytest.raises(OutOfBounds, match="found more than 999 bytes, expected at most so many"):
        read_bytes(file, 999)


def test_text_is_utf_8(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "a")


@pytest.mark.parametrize("text", ["[" * 100_000, "7" * 5000, "{", b"\xff"])
def test_what_is_no_json_is_a_value_error(text: str | bytes):
    with pytest.raises(ValueError):
        parse_json(text)
