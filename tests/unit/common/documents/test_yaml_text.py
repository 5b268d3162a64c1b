"""YAML is counted as it would become, before anything is made of it."""

import json
from pathlib import Path

import pytest
import yaml

from common.documents.bounded import OutOfBounds
from common.documents.yaml_text import MOST_NODES, check_bounds, load_yaml, yaml_name


def test_an_alias_counts_as_all_that_it_stands_for():
    tens = "a: &a [" + ",".join("1234567890") + "]\nb: &b [" + ",".join(["*a"] * 10) + "]\n"
    # The mapping, three names, 11 values of a; b is 1 + 10 aliases of 11 each; c itself.
    of_b = 1 + 10 * 11
    most = (MOST_NODES - (1 + 3 + 11) - of_b - 1) // of_b
    check_bounds(tens + "c: [" + ",".join(["*b"] * most) + "]")
    with pytest.raises(OutOfBounds, match="found more than 30,000 values"):
        check_bounds(tens + "c: [" + ",".join(["*b"] * (most + 1)) + "]")


def test_numbers_without_a_dot_and_twice_the_same_field(tmp_path: Path):
    file = tmp_path / "a.yaml"
    file.write_text("a: 1e-3\nb: 0x10\nc: 1.5\n")
    assert load_yaml(file) == {"a": 0.001, "b": 16, "c": 1.5}
    file.write_text("a: 1\na: 2\n")
    with pytest.raises(yaml.YAMLError, match="the field 'a' stands twice"):
        load_yaml(file)


@pytest.mark.parametrize("number", ["0777", "-010", "0_1", "1:30", "+12:30:45", "1:30.5"])
def test_a_number_that_yaml_does_not_read_in_tens_is_refused(tmp_path: Path, number: str):
    file = tmp_path / "a.yaml"
    file.write_text(f"rounds: {number}\n")
    with pytest.raises(yaml.YAMLError, match=r"which YAML reads in (eights|sixties), expected"):
        load_yaml(file)
    file.write_text(f"rounds: '{number}'\n")
    assert load_yaml(file) == {"rounds": number}


@pytest.mark.parametrize("name", ["2024-01-01", "on", "1.5", "null", "="])
def test_a_name_that_is_no_text_is_refused(tmp_path: Path, name: str):
    file = tmp_path / "a.yaml"
    file.write_text(f"a: 1\n{name}: 2\n")
    with pytest.raises(yaml.YAMLError, match=f"^line 2, column 1: found the name {name}, which is"):
        load_yaml(file)
    file.write_text(f"'{name}': 2\n12: 3\n<<: {{b: 4}}\n")
    assert load_yaml(file) == {name: 2, 12: 3, "b": 4}


def test_letters_of_two_escapes_are_joined_and_halves_refused(tmp_path: Path):
    file = tmp_path / "a.yaml"
    file.write_text(json.dumps({"a": ["\U0001f600x", "é"]}))
    assert load_yaml(file) == {"a": ["\U0001f600x", "é"]}
    file.write_text('{"a": ["\\ud83dx"]}')
    with pytest.raises(yaml.YAMLError, match=r"^line 1, column 8: found half of a letter"):
        load_yaml(file)


def test_an_anchor_within_an_anchor_is_counted_once_each():
    check_bounds("a: &a {b: &b [1, 2], c: *b}\nd: *a")
    with pytest.raises(OutOfBounds, match=r"found \*x, expected an anchor before it"):
        check_bounds("a: *x")


@pytest.mark.parametrize("name", ["12", "null", "no", "Yes", "1e3", "2024-01-01", "2024-13-01"])
def test_a_name_that_would_be_something_else_is_quoted(name: str):
    assert yaml_name(name) == f'"{name}"'
    assert yaml.safe_load(yaml_name(name)) == name


def test_a_name_stays_as_it_is():
    assert yaml_name("north-2") == "north-2"
