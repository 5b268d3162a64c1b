"""An exported stage is one PEFT adapter, and says which releases it is the sum of."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.adapter import Adapter, from_bytes, to_bytes
from common.bank.bank import Bank, export
from common.errors import BankError
from tests.unit.small_bank import BASE, KEY, adapter, bank_of, blob, draft


def test_an_export_is_the_sum_of_the_releases_that_the_stage_sums(tmp_path: Path):
    bank = bank_of(tmp_path / "bank", "ct", "mr")
    # The third release sums itself and the first one alone.
    bank = bank.add(replace(draft(bank, "us"), sums=(0, 2)), blob(2), KEY)
    folder = tmp_path / "exports" / "of" / "us"
    assert export(bank, 2, folder) == folder
    read = from_bytes((folder / "adapter_model.safetensors").read_bytes(), "export")
    assert read.scale == 1.0 and list(read.pairs) == ["q"]
    one, other = adapter(0).pairs["q"], adapter(2).pairs["q"]
    np.testing.assert_array_equal(read.pairs["q"].a, np.concatenate([one.a, other.a]))
    np.testing.assert_array_equal(read.pairs["q"].b, np.concatenate([2 * one.b, 2 * other.b], 1))
    config = json.loads((folder / "adapter_config.json").read_bytes())
    assert (config["r"], config["base_model_name_or_path"]) == (2, "tiny")
    assert json.loads((folder / "provenance.json").read_bytes()) == {
        "base_model": {"name": "tiny", "sha256": "a" * 64},
        "stage": "us",
        "releases": [
            {"folder": "000-ct", "hash": bank.releases[0].hash},
            {"folder": "002-us", "hash": bank.releases[2].hash},
        ],
    }


def test_an_export_overwrites_nothing(tmp_path: Path):
    bank = bank_of(tmp_path / "bank", "ct")
    there = tmp_path / "there"
    there.mkdir()
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    for folder in (there, dangling):
        with pytest.raises(BankError) as refused:
            export(bank, 0, folder)
        assert str(refused.value) == (
            f"{folder}: found something there, expected a folder that does not exist"
        )
    assert not list(there.iterdir()) and not (tmp_path / "nowhere").exists()


def test_an_export_that_peft_could_not_load_names_the_bank_and_the_release(tmp_path: Path):
    bank = Bank.create(tmp_path / "bank", BASE)
    extra = to_bytes(Adapter(adapter(0).pairs, 2.0, {"prompt": np.ones(2, np.float32)}))
    bank = bank.add(draft(bank, "ct"), extra, KEY)
    bank = bank.add(replace(draft(bank, "mr"), sums=(0, 1)), extra, KEY)
    with pytest.raises(BankError) as refused:
        export(bank, 1, tmp_path / "out")
    assert str(refused.value) == (
        f"{bank.folder}, the sum for 001-mr: holds arrays beside low-rank factors, which PEFT "
        "can't load"
    )
    assert not (tmp_path / "out").exists()


def test_prompts_of_classes_are_beside_the_adapter_with_the_classes_names(tmp_path: Path):
    bank = Bank.create(tmp_path / "bank", BASE)
    prompts = np.arange(6, dtype=np.float32).reshape(2, 3)
    one = Adapter(adapter(0).pairs, 2.0, {"prompts": prompts})
    with_classes = replace(draft(bank, "derm"), classes=("nevus", "melanoma"))
    bank = bank.add(with_classes, to_bytes(one), KEY)
    assert Bank.open(bank.folder).releases[0].classes == ("nevus", "melanoma")
    folder = export(bank, 0, tmp_path / "out")
    factors = from_bytes((folder / "adapter_model.safetensors").read_bytes(), "factors")
    assert not factors.extras
    np.testing.assert_array_equal(factors.pairs["q"].b, 2 * one.pairs["q"].b)
    beside = from_bytes((folder / "extras.safetensors").read_bytes(), "extras")
    assert not beside.pairs and beside.extras["prompts"].tobytes() == prompts.tobytes()
    assert json.loads((folder / "provenance.json").read_bytes())["classes"] == ["nevus", "melanoma"]


def test_an_export_of_a_stage_that_is_not_there_is_refused(tmp_path: Path):
    bank = bank_of(tmp_path / "bank", "ct")
    with pytest.raises(BankError, match="found 1 releases, expected one at position 1"):
        export(bank, 1, tmp_path / "out")
