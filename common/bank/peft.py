"""The two files of a PEFT adapter (peft 0.21), in which a bank stores an adapter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from common.adapter import Adapter, AdapterSource, Pair, to_bytes
from common.bank.release import ADAPTER_FILE, CONFIG_FILE, text_of
from common.errors import BankError

#: A field that PEFT does not know: it says so in a warning, with this name in it, when it loads a
#: release that is only a part of what its stage answers with.
PART_OF_A_SUM: Final = "THIS_ADAPTER_IS_A_PART_OF_A_SUM_use_fedmslora_bank_export"


@dataclass(frozen=True, slots=True)
class PeftBase:
    """The base model of an adapter, as other programs find it.

    Attributes:
        name_or_path: its name, its folder or its id on a hub.
        auto_class: the class of transformers that loads it; None where it is not known. PEFT's
            AutoPeftModel classes load by it, as there is no task type (peft 0.21).
    """

    name_or_path: str
    auto_class: str | None = None


def release_blobs(
    blob: bytes, adapter: AdapterSource, base_model: str, sums: Sequence[str] = ()
) -> dict[str, bytes]:
    """Return the files of one adapter as it was trained: alpha is scale times rank.

    `blob` is the adapter as it was sent to the sites, in 16 or 32 bits, and is kept byte for byte.
    PEFT converts it to float32. `sums` names the releases that are summed with it.
    """
    ranks = {module: adapter.rank for module in adapter.modules}
    config = _config(ranks, adapter.scale, PeftBase(base_model))
    if sums:
        config[PART_OF_A_SUM] = list(sums)
    return {ADAPTER_FILE: blob, CONFIG_FILE: text_of(config)}


def sum_blobs(adapters: Sequence[Adapter], base: PeftBase, source: str) -> dict[str, bytes]:
    """Return the files of one adapter that is exactly the sum of `adapters`.

    s1 B1 A1 + s2 B2 A2 = [s1 B1, s2 B2] [A1; A2]: ranks add up, scales go into B. Computed
    and written in float32, whatever type the releases have: a scaled B seldom fits 16 bits.

    Raises:
        BankError: there is nothing to sum, an array is no low-rank factor, or the shapes of a
            layer differ; `source` names the releases.
    """
    if any(adapter.extras for adapter in adapters):
        raise BankError(f"{source}: holds arrays beside low-rank factors, which PEFT can't load")
    modules = sorted({module for adapter in adapters for module in adapter.pairs})
    if not modules:
        raise BankError(f"{source}: holds no low-rank factor, so there is nothing to export")
    pairs: dict[str, Pair] = {}
    for module in modules:
        parts = [(one.pairs[module], one.scale) for one in adapters if module in one.pairs]
        pairs[module] = _concatenated(parts, f"{source}: {module}")
    ranks = {module: pair.a.shape[0] for module, pair in pairs.items()}
    return {
        ADAPTER_FILE: to_bytes(Adapter(pairs, scale=1.0)),
        CONFIG_FILE: text_of(_config(ranks, 1.0, base)),
    }


def _concatenated(parts: Sequence[tuple[Pair, float]], source: str) -> Pair:
    inner = {(pair.a.shape[1], pair.b.shape[0]) for pair, _ in parts}
    if len(inner) > 1:
        raise BankError(f"{source}: found layers of {sorted(inner)} inputs and outputs, not one")
    a = np.concatenate([pair.a for pair, _ in parts], axis=0)
    b = np.concatenate([pair.b * np.float32(scale) for pair, scale in parts], axis=1)
    return Pair(a, b)


def _config(ranks: Mapping[str, int], scale: float, base: PeftBase) -> dict[str, Any]:
    """Return a LoraConfig that names every layer in full, so that it applies to no other layer.

    Layers of another rank than the largest are listed in rank_pattern and alpha_pattern.
    """
    rank = max(ranks.values(), default=0)
    # PEFT matches a pattern's key as a regular expression after an optional prefix.
    smaller = {module: own for module, own in ranks.items() if own != rank}
    loader: dict[str, Any] = {}
    if base.auto_class is not None:
        mapping = {"base_model_class": base.auto_class, "parent_library": "transformers"}
        loader = {"auto_mapping": mapping}
    return {
        **loader,
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base.name_or_path,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _as_int(scale * rank),
        "rank_pattern": {f"^{module}": own for module, own in smaller.items()},
        "alpha_pattern": {f"^{module}": _as_int(scale * own) for module, own in smaller.items()},
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }


def _as_int(value: float) -> int | float:
    """Return an int for a whole number, as PEFT writes alpha."""
    return int(value) if value == int(value) else value
