"""A bank of one small layer, and what continues it, for the tests of the bank."""

from pathlib import Path

import numpy as np

from common.adapter import Adapter, Pair, to_bytes
from common.bank.bank import Bank
from common.bank.release import Draft
from common.plan_fields import BaseModelPin, Modality, Precision
from common.signing import SigningKey

BASE = BaseModelPin(name="tiny", sha256="a" * 64)
KEY = SigningKey.from_seed(bytes(32))


def adapter(seed: int, rank: int = 1) -> Adapter:
    """One layer of three inputs and two outputs."""
    draw = np.random.default_rng(seed)
    a, b = draw.standard_normal((rank, 3)), draw.standard_normal((2, rank))
    return Adapter({"q": Pair(a.astype(np.float32), b.astype(np.float32))}, scale=2.0)


def blob(seed: int, rank: int = 1, wire: Precision = Precision.FP32) -> bytes:
    """`adapter` as it travels."""
    return to_bytes(adapter(seed, rank), wire)


def draft(bank: Bank, name: str) -> Draft:
    """What continues `bank` and sums all of it."""
    stage = len(bank.releases)
    return Draft(
        stage=stage,
        name=name,
        modality=Modality.CT,
        task="lesions",
        parent=bank.head,
        plan="b" * 64,
        sums=tuple(range(stage + 1)),
        sites={"north": 12, "south": 30},
        rule="svd",
        error=0.125,
        scores={"accuracy": 0.75},
        code="c" * 16,
    )


def bank_of(folder: Path, *names: str, rank: int = 1, wire: Precision = Precision.FP32) -> Bank:
    """A bank with a release of each name."""
    bank = Bank.create(folder, BASE)
    for seed, name in enumerate(names):
        bank = bank.add(draft(bank, name), blob(seed, rank, wire), KEY)
    return bank
