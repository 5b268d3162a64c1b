"""A sentencepiece model is read as sentencepiece reads it, or refused in one sentence."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from pathlib import Path
from typing import Any

import pytest

from client.model.llava_med_tokenizer import read_tokenizer
from common.errors import ModelError

#: Fields of a protobuf message: (number << 3 | kind), then the value.
SCORE_OF_ONE = b"\x15\x00\x00\x80\x3f"


def message(number: int, content: bytes) -> bytes:
    """A field that holds a message or text."""
    size, count = b"", len(content)
    while count > 0x7F:
        size, count = size + bytes([count & 0x7F | 0x80]), count >> 7
    return bytes([number << 3 | 2]) + size + bytes([count]) + content


def piece(text: str, order: int | None = None) -> bytes:
    """A piece; the smaller its `order`, the sooner it is merged."""
    scores = [b"", SCORE_OF_ONE, b"\x15\x00\x00\x00\x3f", b"\x15\x00\x00\x80\x3e"]
    return message(1, message(1, text.encode()) + scores[order or 0])


FIRST = [piece(text) for text in ("<unk>", "<s>", "</s>", "<0x00>")]
BPE = message(2, b"\x18\x02")


def write(file: Path, *parts: bytes) -> Path:
    file.write_bytes(b"".join(parts))
    return file


def tokens(file: Path, count: int, text: str) -> list[str]:
    coder: Any = read_tokenizer(file, count)
    return coder.convert_ids_to_tokens(coder.encode(text, add_special_tokens=False))


def test_pieces_merge_in_the_order_of_their_scores_and_not_of_their_ids(tmp_path: Path):
    letters = [piece(letter) for letter in "▁abc"]
    early, late = piece("ab", 3), piece("bc", 1)
    file = write(tmp_path / "m", *FIRST, *letters, early, late, BPE)
    assert tokens(file, 10, "abc") == ["▁", "a", "bc"]
    early, late = piece("ab", 1), piece("bc", 3)
    file = write(tmp_path / "m", *FIRST, *letters, early, late, BPE)
    assert tokens(file, 10, "abc") == ["▁", "ab", "c"]


def test_fields_of_other_kinds_and_long_ones_are_passed_over(tmp_path: Path):
    odd = b"\x79" + bytes(8) + b"\x75" + bytes(4) + b"\x78\x96\x01" + message(14, bytes(300))
    long = piece("x" * 200)
    file = write(tmp_path / "m", odd, *FIRST, odd, piece("▁"), long, BPE, odd)
    coder: Any = read_tokenizer(file, 6)
    assert coder.convert_ids_to_tokens([4, 5]) == ["▁", "x" * 200]


def test_a_file_that_ends_too_soon_is_refused_wherever_it_ends(tmp_path: Path):
    whole = b"".join([*FIRST, piece("▁"), piece("a" * 130, 1), BPE])
    for end in range(len(whole)):
        file = write(tmp_path / "m", whole[:end])
        with pytest.raises(ModelError, match="m: found "):
            read_tokenizer(file, 6)
    assert tokens(write(tmp_path / "m", whole), 6, "</s>") == ["</s>"]


def test_text_that_is_none_is_refused(tmp_path: Path):
    file = write(tmp_path / "m", *FIRST, message(1, message(1, b"\xff\xfe")), BPE)
    with pytest.raises(ModelError, match="found a truncated file, or no sentencepiece model"):
        read_tokenizer(file, 5)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match=r"gone: the tokenizer can't be read \(No such file"):
        read_tokenizer(tmp_path / "gone", 5)
