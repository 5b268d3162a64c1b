"""The README's three commands: a folder of pictures with a table becomes a running simulation."""

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.identity import ROOT
from fedmslora import app
from tests.unit.small_source import picture


def commands() -> list[list[str]]:
    """The commands of the README's part on data of one's own."""
    text = (ROOT / "README.md").read_text("utf-8").split("## Your own pictures", 1)[1]
    block = text.split("```", 2)[1]
    lines = [line.split("#")[0].strip() for line in block.splitlines() if line.strip()]
    return [shlex.split(line.removeprefix(".venv/bin/fedmslora ")) for line in lines]


def films(folder: Path) -> None:
    """Dark and bright pictures of twelve patients, as a hospital has them."""
    lines = ["File;Finding;Patient"]
    for at in range(24):
        bright = at // 2 % 2
        picture(folder / f"pictures/{at:03d}.PNG", 30 + 3 * at + 120 * bright)
        lines.append(f"pictures\\{at:03d}.png;{'bright' if bright else 'dark'};P{at // 2:02d}")
    (folder / "labels.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")


def test_a_folder_with_a_table_is_a_running_simulation_in_three_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    films(tmp_path / "films")
    three = commands()
    assert [command[:2] for command in three[:2]] == [["data", "import"], ["data", "partition"]]
    assert three[2][0] == "simulate" and len(three) == 3
    # Flower's engine takes a minute more to the same bytes.
    three[2] += ["--engine", "inprocess"]
    for command in three:
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    (report,) = tmp_path.glob("runs/*/report.json")
    found = json.loads(report.read_text())
    assert [stage["name"] for stage in found["stages"]] == ["films"]
    assert found["scores"][0][0] is not None
