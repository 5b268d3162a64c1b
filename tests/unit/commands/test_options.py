"""What several commands share: numbers in words, and options that would be ignored."""

import click
import pytest

from commands.options import refuse_empty_paths, whole_number, whole_numbers
from common.errors import StateError


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("40", 40), ("999999999", 999_999_999)])
def test_a_word_of_digits_is_a_whole_number(text: str, number: int):
    assert whole_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "+1", "01", "1.0", "1e3", " 1", "1_0", "\u0661", "1" * 10, "9" * 5000]
)
def test_another_word_is_none(text: str):
    assert whole_number(text) is None


def test_numbers_in_a_list_are_all_numbers_or_none_is_taken():
    assert whole_numbers("5, 1,1") == [5, 1, 1]
    assert [whole_numbers(text) for text in ("", "5,", "5,0", "5,1_0")] == [None] * 4


def test_what_an_option_asks_of_its_path_it_asks_beside_a_name():
    option = click.Option(["--file"], type=click.Path(exists=True))
    command = click.Command("read", params=[option])
    refuse_empty_paths(command)
    with pytest.raises(StateError, match=r"^--file: found an empty text"):
        command.main(["--file", ""], standalone_mode=False)
    with pytest.raises(click.BadParameter, match="does not exist"):
        command.main(["--file", "no-such-file"], standalone_mode=False)
