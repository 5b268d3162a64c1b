import argparse
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulation.chaos.attacks import attack_names, rule_names
from simulation.command_line.arguments import address, number_from, positive, whole_from


def said_by(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str, *words: str
) -> str:
    """Run the program in this process, and return its last word, which is one of refusal."""
    monkeypatch.setattr(sys, "argv", [module, *words])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("program", ["attacks", "hostile_soak", "siege", "soak", "stops"])
def test_a_folder_that_exists_is_refused_in_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    program: str,
):
    said = said_by(monkeypatch, capsys, f"simulation.chaos.{program}", "--out", str(tmp_path))
    assert said.endswith(f"argument --out: found {tmp_path}, expected a new folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("chaos.attacks --sites 1", "argument --sites: found '1', expected a whole number from 2"),
        ("chaos.attacks --seeds 0", "argument --seeds: found '0', expected a whole number from 1"),
        ("chaos.attacks --rules mean", "argument --rules: found 'mean', expected some of "),
        ("chaos.hostile_soak --liars 0", "argument --liars: found '0', expected a whole"),
        ("chaos.siege --out {new} --rounds 0", "argument --rounds: found '0', expected a whole"),
        ("chaos.soak --kills -1", "argument --kills: found '-1', expected a whole number from 0"),
        ("chaos.stops --stops x", "argument --stops: found 'x', expected a whole number from 0"),
        ("chaos.fuzz --files 0", "argument --files: found '0', expected a whole number from 1"),
        ("chaos.strangers localhost", "argument address: found 'localhost', expected HOST:PORT"),
        ("chaos.strangers a:1 --seconds nan", "argument --seconds: found 'nan', expected a number"),
        ("chaos.throttle 0 nowhere", "argument to: found 'nowhere', expected HOST:PORT such as"),
        ("chaos.throttle 0 a:1 --rate 0", "argument --rate: found '0', expected a number above 0"),
        ("chaos.throttle 0 a:1 --delay inf", "argument --delay: found 'inf', expected a number"),
        ("scanner_shift CXP", "argument SOURCE/TASK: found 'CXP', expected one such as phantoms"),
        ("scanner_shift nope/CXP", "simulation.data: found 'nope', expected one of 'pictures'"),
        ("scanner_shift phantoms/nope", "phantom task: found 'nope', expected one of pathvqa, "),
        ("scanner_shift phantoms/CXP --seeds 0", "argument --seeds: found '0', expected a whole"),
        ("scanner_shift phantoms/CXP --strength nan", "argument --strength: found 'nan', expected"),
        ("experiments.report_retrieval --archive nowhere", "nowhere: can't be read as an archive"),
        ("pretraining.make_base --out {new} --scale 0", "argument --scale: found '0', expected a"),
        ("pretraining.make_base --out {new} --threads 0", "argument --threads: found '0', expect"),
        (
            "pretraining.make_clip --out {new} --scale nan",
            "argument --scale: found 'nan', expected",
        ),
        ("pretraining.make_clip --out .", ": found something that is no model, expected a model"),
        ("chaos.throttle 70000 a:1", "port 70000: can't listen there (bind(): port must be 0-"),
    ],
)
def test_a_bad_option_of_a_program_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    said: str,
):
    module, *options = words.format(new=tmp_path / "new").split()
    # The default of --out is relative.
    monkeypatch.chdir(tmp_path)
    assert said in said_by(monkeypatch, capsys, f"simulation.{module}", *options)


def test_an_attack_that_is_none_is_refused_and_not_left_out():
    with pytest.raises(argparse.ArgumentTypeError, match="found 'tinny', expected some of none, "):
        attack_names("tiny,tinny")
    assert attack_names("none,tiny") == ["none", "tiny"]
    assert rule_names("svd,krum") == ["svd", "krum"]


@pytest.mark.parametrize(
    ("read", "text", "found"),
    [
        (whole_from(0), "0", 0),
        (whole_from(1), "123456789", 123456789),
        (number_from(0), "0", 0.0),
        (number_from(0.5), "2.5", 2.5),
        (positive, "1e6", 1e6),
        (address, "127.0.0.1:80", ("127.0.0.1", 80)),
    ],
)
def test_what_an_option_takes_is_read(read: Callable[[str], Any], text: str, found: object):
    assert read(text) == found


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (whole_from(1), "0"), (whole_from(0), "1" * 10), (whole_from(0), "1.0"),
        (whole_from(0), "\u0664"), (number_from(0), "-1"), (number_from(0), "nan"), (positive, "0"),
        (positive, "inf"), (positive, ""), (address, "a"), (address, "a:0"),
    ],
)  # fmt: skip
def test_what_an_option_does_not_take_is_refused(read: Callable[[str], Any], text: str):
    with pytest.raises(argparse.ArgumentTypeError, match="expected"):
        read(text)
