"""The help of every command of the command line, and the old names that still work."""

import errno
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from unittest.mock import Mock

import click
import pytest
import typer.main
from typer.testing import CliRunner

from common.code_digest import code_digest
from fedmslora import app, main
from tests.unit.small_bank import bank_of


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


@pytest.mark.parametrize("extra", ["tensorboard", "mlflow"])
def test_the_help_of_report_names_the_extra_to_install(extra: str):
    # Brackets in a help are rich's markup, which is not printed.
    assert f"'.[{extra}]'" in CliRunner().invoke(app, ["report", "-h"]).stdout


def test_the_version_comes_with_the_digest_that_both_sides_compare():
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        f"fedmslora {version('fedmslora')}",
        f"code digest {code_digest()}",
    ]


@pytest.mark.parametrize("path", [*GROUPS, ("data", "import")], ids=" ".join)
def test_help_fits_60_columns(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = CliRunner().invoke(app, [*path, "-h"], terminal_width=60).stdout.splitlines()
    assert len(lines) > 5
    assert max(map(len, lines)) <= 60


def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[int, str, str]:
    """The exit code of a command line, and what it wrote to stdout and stderr."""
    monkeypatch.setattr("sys.argv", ["fedmslora", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    written = capsys.readouterr()
    return ended.value.code, written.out, written.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("bank", "list", "nowhere"), "nowhere/bank.json: can't be read"),
        (("plan", "show", "nowhere.yaml"), "nowhere.yaml: "),
        (("bank", "list"), "Missing argument 'BANK'"),
        (("bank", "list", "nowhere", "--wrong"), "No such option"),
    ],
)
def test_under_json_a_mistake_is_one_object_with_the_same_code(
    words: tuple[str, ...],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    code, out, _ = refused(capsys, monkeypatch, *words)
    assert (code, out) == (2, "")
    code, out, err = refused(capsys, monkeypatch, *words, "--json")
    assert code == 2
    assert sentence in json.loads(out)["error"]
    assert json.loads(out)["error"] in err


def test_under_json_a_command_that_works_ends_with_code_0(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    bank_of(tmp_path / "bank", "first")
    for folder in (tmp_path, tmp_path / "bank"):
        code, out, err = refused(capsys, monkeypatch, "bank", "list", str(folder), "--json")
        assert (code, err) == (0, "")
        assert [one["name"] for one in json.loads(out)["releases"]] == ["first"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete_commands(shell: str):
    done = CliRunner().invoke(
        app, env={"_FEDMSLORA_COMPLETE": f"source_{shell}"}, prog_name="fedmslora"
    )
    assert "_FEDMSLORA_COMPLETE=complete_" in done.stdout or "complete" in done.stdout


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk: can't be read or written"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "/a: can't be read or written"),
    ],
)
def test_what_the_system_says_of_a_disk_or_a_path_is_a_sentence(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    said: str,
):
    monkeypatch.setattr("common.bank.bank.Bank.open", Mock(side_effect=error))
    code, out, written = refused(capsys, monkeypatch, "bank", "list", "runs")
    assert (code, out) == (2, "")
    assert written == f"{said} ({error.strerror})\n"


def test_what_it_says_of_a_connection_is_not_said_of_a_disk(monkeypatch: pytest.MonkeyPatch):
    error = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    monkeypatch.setattr("common.bank.bank.Bank.open", Mock(side_effect=error))
    monkeypatch.setattr("sys.argv", ["fedmslora", "bank", "list", "runs"])
    with pytest.raises(ConnectionRefusedError):
        main()
