"""Every command line that a guide prints is one that the command line takes."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

import fedmslora

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [
    ROOT / "README.md",
    *sorted(file for file in (ROOT / "docs").glob("*.md") if file.name != "log.md"),
]
#: The first or the last line of a block, which may be a step of a list.
_FENCE = re.compile(r"\s*(\d+\. )?```")
#: What follows the words of a command in a block: what it does, a redirection or a pipe.
_AFTER = re.compile(r"\s{3,}|\s+[#>|&]")
#: As it is typed on a machine, by a shell's variable, and in the containers.
_COMMAND = re.compile(r"(?:^|\s|bin/)(?:fedmslora|\$F|compose run --rm (?:admin|check)) (?!-)(.*)$")


def command_lines(guide: Path) -> Iterator[tuple[int, str]]:
    """The command lines in a guide's blocks, with their lines' numbers."""
    inside, text = False, ""
    for number, line in enumerate(guide.read_text(encoding="utf-8").splitlines(), 1):
        if _FENCE.match(line):
            inside = not inside
            continue
        text += line.lstrip() if text else line
        if text.endswith("\\"):
            text = text[:-1]
            continue
        if inside and (found := _COMMAND.search(text)) is not None:
            yield number, _AFTER.split(found.group(1))[0]
        text = ""


def fault_of(words: list[str]) -> str | None:
    """What the parser says of a command's words; nothing is run, and no path is looked for."""
    command: click.Command = typer.main.get_command(fedmslora.app)
    context = click.Context(command, info_name="fedmslora")
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0]) if words else None
        if found is None:
            return f"found no command {' '.join(words[:1])!r}"
        context = click.Context(found, parent=context, info_name=words[0])
        command, words = found, words[1:]
    try:
        given, left, _ = command.make_parser(context).parse_args(list(words))
        for one in command.params:
            value: Any = given.get(one.name or "")
            # What is not given is None, or a mark of click's own.
            is_given = type(value) in (str, list, tuple) and bool(value)
            if one.required and not is_given:
                return f"found no {one.name}"
            if is_given and "path" not in type(one.type).__name__.lower():
                one.type_cast_value(context, value)
    except click.UsageError as error:
        return error.format_message()
    return f"found {left} too many" if left else None


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_the_command_lines_of_a_guide_are_taken(guide: Path):
    faults = {
        f"{guide.name}:{number}: fedmslora {line}": fault
        for number, line in command_lines(guide)
        if (fault := fault_of(shlex.split(line.replace("$port", "9101")))) is not None
    }
    assert faults == {}


def test_command_lines_are_found_and_wrong_ones_are_told():
    found = [line for guide in GUIDES for _, line in command_lines(guide)]
    assert len(found) > 60
    assert "serve runs/demo/bank" in found
    assert fault_of(["serve"]) == "found no bank"
    assert fault_of(["serve", "bank", "--prot", "1"]) is not None
    assert fault_of(["serve", "bank", "--port", "many"]) is not None
    assert fault_of(["bank", "open"]) == "found no command 'open'"
    assert fault_of(["serve", "bank", "more"]) is not None
