"""The bytes of a bank are a contract: these digests are those of version 0.4.0.

Since 0.7.0 a release that is a part of a sum says so in its adapter_config.json, so the digests of
the second release, and of what names it, are those of 0.7.0.
"""

import hashlib
from pathlib import Path

import numpy as np

from common.adapter import Adapter, Pair, to_bytes
from common.bank.bank import Bank, export
from tests.unit.small_bank import BASE, KEY, draft

DIGESTS = {
    "bank/000-ct/adapter_config.json": "4ccd9e41bf52e571",
    "bank/000-ct/adapter_model.safetensors": "090da1d2253c964d",
    "bank/000-ct/release.json": "a72448ae91406559",
    "bank/001-mr/adapter_config.json": "e45839ef994e489d",
    "bank/001-mr/adapter_model.safetensors": "f6433f7865a1b25c",
    "bank/001-mr/release.json": "97308f8c51c1fd06",
    "bank/bank.json": "a7bd7099376234ea",
    "export/adapter_config.json": "658b429f0a8a2a6e",
    "export/adapter_model.safetensors": "9f9adb686e95c172",
    "export/provenance.json": "a4ac1c61a3d26f18",
}
HEAD = "414f42cfbc242482"


def test_the_bytes_of_a_bank_and_of_an_export_are_those_of_earlier_versions(tmp_path: Path):
    bank = Bank.create(tmp_path / "bank", BASE)
    for name, factor in (("ct", 1.0), ("mr", 0.5)):
        a = np.array([[1, 2, 3]], np.float32)
        b = np.array([[4], [-5]], np.float32)
        adapter = Adapter({"layers.0.q": Pair(factor * a, b)}, scale=1.5)
        bank = bank.add(draft(bank, name), to_bytes(adapter), KEY)
    export(bank, 1, tmp_path / "export")
    digests = {
        file.relative_to(tmp_path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        for file in tmp_path.rglob("*")
        if file.is_file()
    }
    assert digests == DIGESTS
    assert bank.head[:16] == HEAD
