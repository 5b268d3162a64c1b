"""`fedmslora bench`: what it prints, and where."""

import json

import pytest
from typer.testing import CliRunner

from benchmarks import features
from benchmarks.compare import BenchmarkResult
from commands.bench import app
from common.errors import PlanError


def measured(repeats: int) -> BenchmarkResult:
    print("a library that says something")
    return BenchmarkResult("features", 1.0, 3.0, 3.0, 0.0, {"repeats": repeats})


@pytest.mark.parametrize("way", [["--json"], []])
def test_only_the_result_is_on_stdout(monkeypatch: pytest.MonkeyPatch, way: list[str]):
    monkeypatch.setattr(features, "run", measured)
    done = CliRunner().invoke(app, ["features", "--repeats", "2", *way])
    assert done.exit_code == 0
    assert "says something" in done.stderr and "says something" not in done.stdout
    if way:
        assert json.loads(done.stdout)["settings"] == {"repeats": 2}
    else:
        assert done.stdout.startswith("features: ours 1 s, reference 3 s, ratio 3")


@pytest.mark.parametrize("sites", ["", "1,2", "2,x", "2,,4", "²", "9" * 5000, "-2"])
def test_numbers_of_sites_that_are_none_are_refused_before_anything_starts(sites: str):
    done = CliRunner().invoke(app, ["wire", f"--sites={sites}"])
    assert isinstance(done.exception, PlanError)
    assert str(done.exception).startswith(f"--sites: found '{sites[:60]}', expected numbers from 2")


@pytest.mark.parametrize(
    "words",
    [
        ["features", "--repeats", "1001"],
        ["step", "--tasks", "1001"],
        ["round", "--sites", "1001"],
        ["round", "--rounds", "1001"],
        ["wire", "--megabytes", "100001"],
        ["retrieval", "--vectors", "1000000001"],
    ],
)
def test_a_number_that_no_machine_would_come_to_the_end_of_is_refused(words: list[str]):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert f"{words[2]} is not in the range" in done.stderr


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ([], "Time a training step with folded earlier adapters"),
        (["features"], "Example: fedmslora bench features --json"),
        (["wire"], "Example: fedmslora bench wire --sites"),
    ],
)
def test_help_is_on_stdout(command: list[str], line: str):
    done = CliRunner().invoke(app, [*command, "--help"])
    assert done.exit_code == 0
    assert line in done.stdout
    assert done.stderr == ""
