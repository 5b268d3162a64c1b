"""The same plan through Flower's simulation engine, from the command line."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulation.engines import Engine
from simulation.run import Wish, simulate

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.federated

PLAN = """
name: small
seed: 5
base_model: {{name: tiny-llava, sha256: {digest}}}
method: {{name: mslora_cr, rank: 4, alpha: 4, contrast: {{}}}}
aggregation: svd
stages:
  - &stage
    {{name: cxp, modality: radiology, task: CXP, sites: [a, b], rounds: 2, local_epochs: 0.5,
     learning_rate: 5e-3, batch_size: 8, max_new_tokens: 4}}
  - {{<<: *stage, name: pcam, modality: pathology, task: PCAM, sites: [b, c]}}
simulation: {{data: phantoms, train_fraction: 0.3, test_questions: 12}}
"""


def plan_file(folder: Path) -> Path:
    from client.model import base_digest
    from simulation.hospitals import BASE_MODELS

    file = folder / "plan.yaml"
    digest = base_digest(BASE_MODELS["tiny-llava"])
    file.write_text(PLAN.format(digest=digest), encoding="utf-8")
    return file


def command(plan: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "fedmslora", "simulate", str(plan), "--out", str(out), "--json"]


def bank_bytes(folder: Path) -> dict[str, bytes]:
    bank = folder / "bank"
    files = (file for file in bank.rglob("*") if file.is_file())
    return {file.relative_to(bank).as_posix(): file.read_bytes() for file in files}


def test_flowers_engine_ends_with_the_bytes_of_one_process_even_when_interrupted(tmp_path: Path):
    plan, out = plan_file(tmp_path), tmp_path / "flower"
    one = Wish(
        out=tmp_path / "one", engine=Engine.IN_PROCESS, methods=None, seeds=1, data=None,
        base_model=None, quiet=True,
    )  # fmt: skip
    simulate(plan, one)

    # Interrupted as by Ctrl-C, once the first release is there.
    running = subprocess.Popen(
        command(plan, out), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while running.poll() is None and not (out / "bank/000-cxp").exists():
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate()
    assert running.returncode == 130, said
    assert "the same command goes on" in said

    resumed = subprocess.run(
        command(plan, out), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr == ""
    document = json.loads(resumed.stdout)
    assert document["metrics"]["forgetting"] == 0
    assert bank_bytes(out) == bank_bytes(tmp_path / "one")


def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path: Path):
    plan = plan_file(tmp_path)
    plan.write_text(plan.read_text(encoding="utf-8").replace("rank: 4", "rank: 0"))
    done = subprocess.run(
        command(plan, tmp_path / "run"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == f"{plan}: method.rank: found 0, expected at least 1\n"
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()
