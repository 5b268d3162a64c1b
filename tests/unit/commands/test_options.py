"""What several commands share: numbers in words, and options that would be ignored."""

import pytest

from commands.options import whole_number


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("40", 40), ("999999999", 999_999_999)])
def test_a_word_of_digits_is_a_whole_number(text: str, number: int):
    assert whole_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "+1", "01", "1.0", "1e3", " 1", "1_0", "\u0661", "1" * 10, "9" * 5000]
)
def test_another_word_is_none(text: str):
    assert whole_number(text) is None
