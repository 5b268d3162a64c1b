import argparse
import runpy
import sys
from pathlib import Path

import pytest

from simulation.chaos.attacks import attack_names


@pytest.mark.parametrize("program", ["attacks", "hostile_soak", "siege", "soak", "stops"])
def test_a_folder_that_exists_is_refused_in_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    program: str,
):
    module = f"simulation.chaos.{program}"
    monkeypatch.setattr(sys, "argv", [program, "--out", str(tmp_path)])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].endswith(f"argument --out: found {tmp_path}, expected a new folder")
    assert list(tmp_path.iterdir()) == []


def test_an_attack_that_is_none_is_refused_and_not_left_out():
    with pytest.raises(argparse.ArgumentTypeError, match="found 'tinny', expected some of none, "):
        attack_names("tiny,tinny")
    assert attack_names("none,tiny") == ["none", "tiny"]
