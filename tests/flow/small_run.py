"""A plan of two stages and three sites on a few phantoms, and what a run of it leaves."""

import os
import signal
from pathlib import Path
from typing import Any

import yaml

from client.model.base_digest import base_digest
from server.run.journal import Journal
from simulation.engines import Engine
from simulation.hospitals import BASE_MODELS
from simulation.run import SimulationOptions, simulate

STAGE: dict[str, Any] = {
    "name": "cxp", "modality": "radiology", "task": "CXP", "sites": ["a", "b"], "rounds": 2,
    "local_epochs": 0.5, "learning_rate": 5e-3, "batch_size": 8, "max_new_tokens": 4,
}  # fmt: skip
OTHER: dict[str, Any] = {
    **STAGE, "name": "pcam", "modality": "pathology", "task": "PCAM", "sites": ["b", "c"],
}  # fmt: skip


def small_plan(file: Path, **changes: Any) -> Path:
    """The plan, written to `file`; `changes` take the place of its fields."""
    plan: dict[str, Any] = {
        "name": "small",
        "seed": 5,
        "base_model": {"name": "tiny-llava", "sha256": base_digest(BASE_MODELS["tiny-llava"])},
        "method": {"name": "mslora_cr", "rank": 4, "alpha": 4, "active": "all", "contrast": {}},
        "aggregation": "svd",
        "stages": [STAGE, OTHER],
        "simulation": {"data": "phantoms", "train_fraction": 0.3, "test_questions": 12},
        **changes,
    }
    file.write_text(yaml.safe_dump(plan), encoding="utf-8")
    return file


def options(out: Path, **changes: Any) -> SimulationOptions:
    """The options of a quiet run in this process, into `out`."""
    fields: dict[str, Any] = {
        "out": out, "engine": Engine.IN_PROCESS, "methods": None, "seeds": 1, "data": None,
        "base_model": None, "quiet": True,
    }  # fmt: skip
    return SimulationOptions(**{**fields, **changes})


def bank_bytes(run: Path) -> dict[str, bytes]:
    """Every file of the run's bank with its bytes."""
    bank = run / "bank"
    files = (file for file in bank.rglob("*") if file.is_file())
    return {file.relative_to(bank).as_posix(): file.read_bytes() for file in files}


def killed_after(answers: int, plan: Path, out: Path, **changes: Any) -> None:
    """Run the plan, and kill this process when so many answers are in the journal."""
    record = Journal.record

    def recorded(journal: Journal, *given: Any) -> Any:
        found = record(journal, *given)
        if len(journal.traffic()) == answers:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    Journal.record = recorded  # pyright: ignore[reportAttributeAccessIssue]
    simulate(plan, options(out, **changes))
