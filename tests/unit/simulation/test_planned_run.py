"""A simulation's run that is taken up again: what is looked at, and how often it is read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.bank.bank import Bank
from common.errors import BankError, StateError
from common.signing import SigningKey
from server.app import check_history
from server.run.folder import RunFolder
from server.run.journal import ClosedRound
from simulation import planned_run
from simulation.engines import Engine
from simulation.planned_run import PlannedRun, carry_out, check_resumable, simulation_key
from tests.unit.small_bank import blob, draft
from tests.unit.small_round import ORDER, journal, plan

ADAPTER = "bank/000-one/adapter_model.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> PlannedRun:
    """A run with one release, its journal and its key."""
    book, key = journal(tmp_path), simulation_key(plan())
    for number in (1, 2):
        book.close_round(replace(ORDER, round=number), ClosedRound({"a": 3}, (), "c" * 64, 0.0))
    book.close()
    key.save(tmp_path / "signing.key")
    bank = Bank.create(tmp_path / "bank", plan().base_model)
    bank.add(replace(draft(bank, "one"), plan=plan().digest), blob(0), key)
    return PlannedRun("mslora", plan(), RunFolder(tmp_path), tmp_path / "sites")


@pytest.fixture
def told(run: PlannedRun, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens: a release is read for its digest, or the run's apps are started."""
    events: list[str] = []
    read = Bank.adapter_bytes

    def adapter_bytes(self: Bank, stage: int) -> bytes:
        events.append("read")
        return read(self, stage)

    def run_apps(*_: Any) -> None:
        # As the ServerApp does first.
        events.append("started")
        check_history(run.plan, run.folder)

    monkeypatch.setattr(Bank, "adapter_bytes", adapter_bytes)
    monkeypatch.setattr(planned_run, "run_apps", run_apps)
    monkeypatch.setattr(planned_run, "prepare", nothing)
    return events


def nothing(*_: Any) -> None:
    """The sites are there."""


def carried_out(run: PlannedRun) -> None:
    carry_out(run, Engine.IN_PROCESS, Path("base"), quiet=True)


def test_a_release_is_read_before_all_runs_and_by_the_run_that_goes_on(
    run: PlannedRun, told: list[str]
):
    check_resumable(run)
    assert told == ["read"]
    told.clear()
    carried_out(run)
    assert told == ["started", "read"]


def test_one_that_was_damaged_is_found_at_either_time(run: PlannedRun, told: list[str]):
    file = run.folder.root / ADAPTER
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    for check in (check_resumable, carried_out):
        with pytest.raises(BankError, match=r"adapter_model\.safetensors: found"):
            check(run)
    assert told == ["read", "started", "read"]


def test_without_its_journal_or_key_a_run_touches_no_store(run: PlannedRun, told: list[str]):
    kept = run.sites / "a" / "store" / "blobs" / "kept"
    kept.parent.mkdir(parents=True)
    kept.touch()
    journal_bytes = run.folder.journal.read_bytes()
    run.folder.journal.unlink()
    with pytest.raises(StateError, match="found no last round of one, expected that of all"):
        carried_out(run)
    run.folder.journal.write_bytes(journal_bytes)
    run.folder.key.unlink()
    SigningKey.from_seed(b"1" * 32).save(run.folder.key)
    with pytest.raises(StateError, match=r"signing\.key: found the key"):
        carried_out(run)
    assert kept.exists() and not told and not run.folder.plan.exists()
