"""Reading of a PEFT adapter (peft 0.21) as one task's adapter, bit for bit.

Only what a bank can keep exactly is taken: plain LoRA on linear layers of the decoder, one rank
and one scale for all of them.
"""
# torch leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common.adapter import PEFT_A, PEFT_B, PEFT_PREFIX
from common.bank.release import ADAPTER_FILE, CONFIG_FILE
from common.errors import BankError
from interchange.names import settings_for
from interchange.paper_checkpoint import PaperFolder, check_task, file_digest

#: The largest rank or alpha that is taken, and the most letters of a wrong one that are shown.
_LARGEST: Final = 1e9
_MOST_SHOWN: Final = 80
#: Fields that would make the adapter another sum than W + scale B A, with the values that do not.
_PLAIN: Final[Mapping[str, tuple[object, ...]]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "trainable_token_indices": (None, [], {}),
    # Others change the base model's own weights, which a bank's base model does not have.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
    **dict.fromkeys(("lora_bias", "use_qalora"), (False, None)),
    **dict.fromkeys(("layer_replication", "target_parameters"), (None, [])),
    **dict.fromkeys(
        ("alora_invocation_tokens", "use_bdlora", "arrow_config", "kasa_config"), (None,)
    ),
}
#: The decoder of a LLaVA until transformers 4.51, and since.
_OLD_PREFIX: Final = "language_model.model."
_PREFIX: Final = "model.language_model."


def is_peft_folder(folder: Path) -> bool:
    """Return whether a folder has a PEFT adapter."""
    return (folder / CONFIG_FILE).is_file()


def read_peft_folder(folder: Path) -> PaperFolder:
    """Read an adapter's folder and check every number.

    Raises:
        BankError: a file is missing or damaged, the adapter is no plain LoRA, its layers differ in
            rank or scale, a factor has no partner, or a value is not finite.
    """
    config = _config(folder / CONFIG_FILE)
    file = folder / ADAPTER_FILE
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise BankError(f"{file}: can't be read as safetensors ({str(error)[:120]})") from None
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, factor = _parts(name, file)
        modules.setdefault(module, {})[factor] = tensor
    if not modules:
        raise BankError(f"{file}: found no adapter in it, expected one")
    rank, scale = _rank_and_scale(config, modules, folder / CONFIG_FILE)
    # With the paper's name for it, so that it can be exported in the paper's format, too.
    settings = settings_for(0, rank, scale, str(folder))
    check_task(modules, settings, str(file))
    files = {name: file_digest(folder / name) for name in (ADAPTER_FILE, CONFIG_FILE)}
    return PaperFolder(folder, settings, {0: modules}, (), files)


def _config(file: Path) -> Mapping[str, Any]:
    try:
        document: object = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BankError(f"{file}: can't be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise BankError(f"{file}: found no JSON, expected a LoRA's settings") from None
    if not isinstance(document, dict):
        raise BankError(f"{file}: found no object, expected a LoRA's settings")
    config = cast(dict[str, Any], document)
    for field, plain in _PLAIN.items():
        if (found := config.get(field)) not in plain:
            raise BankError(f"{file}, {field}: found {found!r}, expected {plain[0]!r}")
    for field in ("r", "lora_alpha"):
        found = config.get(field)
        number = found if isinstance(found, int | float) and not isinstance(found, bool) else 0
        if not 0 < number <= _LARGEST:
            shown = repr(found)[:_MOST_SHOWN]
            raise BankError(
                f"{file}, {field}: found {shown}, expected a number > 0, at most {_LARGEST:g}"
            )
    return config


def _parts(name: str, file: Path) -> tuple[str, str]:
    """Return the layer, by its path in transformers' present LLaVA, and the factor."""
    inner = name.removeprefix(PEFT_PREFIX)
    for suffix, factor in ((PEFT_A, "A"), (PEFT_B, "B")):
        if name.startswith(PEFT_PREFIX) and inner.endswith(suffix):
            module = inner.removesuffix(suffix)
            if module.startswith(_OLD_PREFIX):
                module = _PREFIX + module.removeprefix(_OLD_PREFIX)
            return module, factor
    raise BankError(
        f"{file}: found the name {name[:120]!r}, expected such as "
        f"'{PEFT_PREFIX}{_PREFIX}layers.0.self_attn.q_proj{PEFT_A}'"
    )


def _rank_and_scale(
    config: Mapping[str, Any], modules: Mapping[str, Mapping[str, Tensor]], file: Path
) -> tuple[int, float]:
    """Return the rank of the layers and the factor of every B A.

    Raises:
        BankError: they are not the same for all layers.
    """
    ranks = {factors["A"].shape[0] for factors in modules.values() if "A" in factors}
    patterns = [name for name in ("rank_pattern", "alpha_pattern") if config.get(name)]
    if len(ranks) != 1 or patterns:
        found = f"a {patterns[0]}" if patterns else f"the ranks {sorted(ranks)}"
        raise BankError(f"{file}: found {found}, expected one rank and alpha for all layers")
    (rank,) = ranks
    if rank != config["r"]:
        raise BankError(f"{file}, r: found {config['r']}, expected the rank of the weights, {rank}")
    divisor = math.sqrt(rank) if config.get("use_rslora") else rank
    return rank, float(config["lora_alpha"]) / divisor
