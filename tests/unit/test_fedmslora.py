"""The command line as a process ends it: exit codes, stdout and stderr, whatever they are."""

import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TextIO

import pytest

import fedmslora

ROOT = Path(__file__).resolve().parents[2]


def ended(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    """Call the command line; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["fedmslora", *words])
    with pytest.raises(SystemExit) as left:
        fedmslora.main()
    return left.value.code


def full() -> io.TextIOWrapper:
    """A stream on a disk without space."""
    return io.TextIOWrapper(io.FileIO("/dev/full", "w"), encoding="utf-8")


def broken_pipe() -> io.TextIOWrapper:
    """A stream whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return io.TextIOWrapper(io.FileIO(writer, "w"), encoding="utf-8")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("opened", [full, broken_pipe, nullcontext])
def test_a_refusal_that_nobody_reads_keeps_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    opened: Callable[[], AbstractContextManager[TextIO | None]],
):
    # None is what Python has for a stream that was closed before it started.
    with opened() as stream, monkeypatch.context() as patch:
        patch.setattr(sys, name, stream)
        assert ended(patch, "plan", "check", "none.yaml", "--json") == 2


def test_a_name_does_not_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert ended(monkeypatch, "plan", "check", "\x1b[31mé\u202e", "--json") == 2
    said = capsys.readouterr()
    assert said.err.startswith("\\x1b[31mé\\u202e: can't be read as a plan")
    assert json.loads(said.out)["error"].startswith("\x1b[31mé\u202e: can't be read as a plan")


@pytest.mark.parametrize(
    ("encoding", "name", "shown"),
    [("utf-8", "\udcff", "\\udcff"), ("latin-1", "€", "\\u20ac"), ("utf-8", "é", "é")],
)
def test_a_name_that_the_terminal_can_not_show_is_escaped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str, name: str, shown: str
):
    plan = tmp_path / f"{name}.yaml"
    plan.write_bytes((ROOT / "configs" / "demo.yaml").read_bytes())
    written = io.BytesIO()
    with io.TextIOWrapper(written, encoding=encoding) as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert ended(patch, "plan", "check", str(plan)) == 0
        stream.flush()
        said = written.getvalue().decode(encoding)
    assert said.startswith(f"{tmp_path}/{shown}.yaml: a valid plan")


def test_an_interrupted_command_says_so_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(_file: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("common.plan.file.load_plan", interrupted)
    assert ended(monkeypatch, "plan", "check", "x.yaml", "--json") == 130
    assert list(json.loads(capsys.readouterr().out)) == ["error"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--json", "--nosuch"), "No such option '--nosuch'."),
        (("--json=1",), "Option '--json' does not take a value."),
    ],
)
def test_a_wrong_option_is_json_where_json_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    error: str,
):
    assert ended(monkeypatch, "plan", "check", *words) == 2
    assert json.loads(capsys.readouterr().out) == {"error": error}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("simulate", "configs/demo.yaml", "--out", ""), "--out"),
        (("simulate", ""), "PLAN"),
        (("coordinator", "init", "--state="), "--state"),
        (("bank", "verify", ""), "BANK"),
        (("plan", "cost", "configs/demo.yaml", "--model", ""), "--model"),
    ],
)
def test_an_empty_path_is_not_the_working_directory(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: tuple[str, ...],
    named: str,
):
    plan = str(ROOT / "configs" / "demo.yaml")
    monkeypatch.chdir(tmp_path)
    given = [plan if word == "configs/demo.yaml" else word for word in words]
    assert ended(monkeypatch, *given) == 2
    said = capsys.readouterr().err
    assert said == f"{named}: found an empty text, expected the name of a file or folder\n"
    assert not list(tmp_path.iterdir())


def test_an_image_without_simulation_tells_costs_and_says_what_it_can_not_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in [one for one in sys.modules if one.partition(".")[0] == "simulation"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "simulation", None)
    plan = str(ROOT / "configs" / "demo.yaml")
    assert ended(monkeypatch, "plan", "cost", plan, "--json") == 0
    assert [one["model"] for one in json.loads(capsys.readouterr().out)["models"]] == ["7b"]
    assert ended(monkeypatch, "simulate", plan) == 2
    assert capsys.readouterr().err == (
        "found no simulation/, which an image does not have, expected the whole repository\n"
    )
