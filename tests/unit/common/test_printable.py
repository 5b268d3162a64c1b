"""A site's text is one short line, without a letter that a terminal acts on."""

from common.printable import byte_size, counted, has_broken_letter, listed, printable


def test_printable_text_stays():
    assert printable("site north: 3 µm, 数") == "site north: 3 µm, 数"


def test_control_characters_become_question_marks():
    assert printable("a\x1b[2Jb\nc\rd\te\x00f\u202eg\u2028h") == "a?[2Jb?c?d?e?f?g?h"


def test_what_is_too_long_is_cut_and_marked():
    assert printable("x" * 400) == "x" * 400
    assert printable("x" * 401) == "x" * 400 + " ..."
    assert printable("\n" * 10**6) == "?" * 400 + " ..."


def test_a_number_comes_with_its_noun():
    assert [counted(number, "round") for number in (0, 1, 2)] == ["0 rounds", "1 round", "2 rounds"]
    assert [counted(number, "entry", "entries") for number in (1, 3)] == ["1 entry", "3 entries"]


def test_of_many_names_some_are_listed():
    assert listed(["a", "b"]) == "'a', 'b'"
    assert listed(map(str, range(20)), most=3) == "'0', '1', '2' and 17 more"


def test_bytes_come_with_a_unit():
    sizes = (1, 850, 999.7, 163_600, 999_499, 999_500, 335_612_201, 2e12)
    found = [byte_size(size) for size in sizes]
    assert found == [
        "1 byte", "850 bytes", "1 kB", "164 kB", "999 kB", "1 MB", "336 MB", "2 TB",
    ]  # fmt: skip


def test_half_of_a_surrogate_pair_is_no_letter():
    broken = ["\ud83d", "a\udcff", b"\xff.png".decode("utf-8", "surrogateescape")]
    assert [has_broken_letter(text) for text in broken] == [True] * 3
    assert not any(map(has_broken_letter, ["", "plain", "\u00e4", "\U0001f600"]))
