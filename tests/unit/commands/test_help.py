"""The help of every command of the command line, and the old names that still work."""

from collections.abc import Iterator
from importlib.metadata import version

import click
import pytest
import typer.main
from typer.testing import CliRunner

from common.code_digest import code_digest
from fedmslora import app


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


ROOT = typer.main.get_command(app)
assert isinstance(ROOT, click.Group)
COMMANDS = dict(commands(ROOT))
GROUPS = sorted({path[:-1] for path in COMMANDS})


@pytest.mark.parametrize(
    "path", [path for path in COMMANDS if not COMMANDS[path].hidden], ids=" ".join
)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_a_short_and_a_long_help_with_an_example(
    path: tuple[str, ...], option: str
):
    done = CliRunner().invoke(app, [*path, option])
    assert done.exit_code == 0
    # Long examples are wrapped.
    assert f"Example: fedmslora {' '.join(path)} " in " ".join(done.stdout.split())


@pytest.mark.parametrize("group", GROUPS, ids=" ".join)
def test_every_group_lists_its_commands_but_not_their_old_names(group: tuple[str, ...]):
    listed = CliRunner().invoke(app, [*group, "-h"]).stdout
    names = {path[-1]: COMMANDS[path] for path in COMMANDS if path[:-1] == group}
    for name, command in names.items():
        assert (f" {name} " in listed) != command.hidden


def test_the_old_name_of_a_command_is_hidden_and_works():
    assert COMMANDS["data", "deal"].hidden
    done = CliRunner().invoke(app, ["data", "deal", "-h"])
    assert "Example: fedmslora data partition " in done.stdout


def test_the_old_name_of_an_option_is_hidden():
    (_,) = [option for option in COMMANDS["site", "approve"].params if "--look" in option.opts]
    assert "--look" not in CliRunner().invoke(app, ["site", "approve", "-h"]).stdout


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_argument_and_option_is_explained(path: tuple[str, ...]):
    for parameter in COMMANDS[path].params:
        if not getattr(parameter, "hidden", False):
            assert getattr(parameter, "help", None), parameter.name


def test_the_version_comes_with_the_digest_that_both_sides_compare():
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        f"fedmslora {version('fedmslora')}",
        f"code digest {code_digest()}",
    ]
