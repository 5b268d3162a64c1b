"""The same plan through Flower's simulation engine, from the command line."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulation.run import simulate
from tests.flow.small_run import bank_bytes, options, small_plan

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.federated


def command(plan: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "fedmslora", "simulate", str(plan), "--out", str(out), "--json"]


def test_flowers_engine_ends_with_the_bytes_of_one_process_even_when_interrupted(tmp_path: Path):
    plan, out = small_plan(tmp_path / "plan.yaml"), tmp_path / "flower"
    simulate(plan, options(tmp_path / "one"))

    # Interrupted as by Ctrl-C, once the first release is there.
    running = subprocess.Popen(
        command(plan, out), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while running.poll() is None and not (out / "bank/000-cxp").exists():
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate()
    assert running.returncode == 130, said
    assert "The same command continues" in said

    resumed = subprocess.run(
        command(plan, out), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr == ""
    document = json.loads(resumed.stdout)
    assert document["metrics"]["forgetting"] == 0
    assert bank_bytes(out) == bank_bytes(tmp_path / "one")


def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path: Path):
    plan = small_plan(tmp_path / "plan.yaml")
    plan.write_text(plan.read_text(encoding="utf-8").replace("rank: 4", "rank: 0"))
    done = subprocess.run(
        command(plan, tmp_path / "run"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    said = f"{plan}: method.rank: found 0, expected at least 1"
    assert (done.stderr, json.loads(done.stdout)) == (f"{said}\n", {"error": said})
    assert not (tmp_path / "run").exists()
