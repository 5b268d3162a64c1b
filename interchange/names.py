"""Names, settings and metadata of the paper's checkpoints, translated to ours. No torch.

A run of MSLoRA-CR (arXiv 2508.11673) writes a folder for each task: `cl_lora.bin` with the
task's trained factors, named as by `paper_name`, and `config.json` with the model's settings,
where `mslora_cfg` has rank and alpha. When loading, their code uses one rank and one alpha for
all the tasks that it sums.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from common.adapter import name_of_a, name_of_b
from common.errors import BankError
from common.identity import canonical_json
from common.tensors import read_header

CHECKPOINT_FILE = "cl_lora.bin"
SETTINGS_FILE = "config.json"
#: Learned regularizer weights, which some checkpoints contain; adapters don't need them.
LEFTOVERS = frozenset({"alpha", "beta"})
#: The path of the decoder in their model, and in transformers' LLaVA.
_THEIRS, _OURS = "model.", "model.language_model."
_NAME = re.compile(
    r"model\.(layers\.\d{1,4}(?:\.\w+)+)\.cl_lora_pool\.task_(\d{1,4})_lora\.lora_([AB])", re.ASCII
)
_LAYER = re.compile(r"model\.language_model\.(layers\.(\d{1,4})(?:\.\w+)+)", re.ASCII)
_MOST_SETTINGS_BYTES = 2**18
_LARGEST = 1e9
#: The metadata entry of an adapter's safetensors file with its scale (common/adapter.py).
_METADATA = "fedmslora"


@dataclass(frozen=True, slots=True)
class PaperSettings:
    """A task folder's config.json.

    Attributes:
        document: the whole file.
        rank: rows of every A.
        alpha: every product B A is scaled by `alpha / rank`.
    """

    document: Mapping[str, Any]
    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """The factor of every B A, computed as in their code."""
        return self.alpha / self.rank

    def as_task(self, number: int) -> "PaperSettings":
        """Return the settings as the run of this task (0 is the first) wrote them."""
        cfg = {**self.document["mslora_cfg"], "max_task": number + 1}
        return PaperSettings({**self.document, "mslora_cfg": cfg}, self.rank, self.alpha)

    def to_bytes(self) -> bytes:
        """Return the content of config.json."""
        return (json.dumps(self.document, indent=2, sort_keys=True) + "\n").encode()


@dataclass(frozen=True, slots=True)
class ImportOrigin:
    """The origin of an imported adapter, stored in the adapter's own file.

    Attributes:
        task: the task's number in the paper's code.
        settings: its folder's config.json.
        files: SHA-256 of the folder's two files, by name.
    """

    task: int
    settings: PaperSettings
    files: Mapping[str, str]


def paper_name(module: str, task: int, factor: str) -> str:
    """Return their name of factor `A` or `B` of a layer of our model; task 0 is the first."""
    layer = module.removeprefix(_OURS)
    return f"{_THEIRS}{layer}.cl_lora_pool.task_{task}_lora.lora_{factor}"


def parse_paper_name(name: str) -> tuple[int, str, str] | None:
    """Return the task, our path of the layer and the factor of one of their names."""
    if (match := _NAME.fullmatch(name)) is None:
        return None
    layer, task, factor = match.groups()
    return int(task), f"{_OURS}{layer}", factor


def peft_name(module: str, factor: str) -> str:
    """Return a bank's name of factor `A` or `B` of a layer."""
    return name_of_a(module) if factor == "A" else name_of_b(module)


def paper_order(modules: list[str], source: str) -> list[str]:
    """Sort the layers from first to last.

    Raises:
        BankError: a layer is outside the decoder; their format has no name for it.
    """
    numbers: dict[str, int] = {}
    for module in modules:
        if (match := _LAYER.fullmatch(module)) is None:
            raise BankError(
                f"{source}: found an adapter on {module}, expected only layers of the decoder "
                f"({_OURS}layers.*): the paper's format has no name for others"
            )
        numbers[module] = int(match.group(2))
    return sorted(modules, key=lambda module: (numbers[module], module))


def read_settings(file: Path) -> PaperSettings:
    """Read a task folder's config.json.

    Raises:
        BankError: there is none, it is not JSON, or it has no rank and alpha.
    """
    try:
        with file.open("rb") as stream:
            text = stream.read(_MOST_SETTINGS_BYTES + 1)
    except FileNotFoundError:
        raise BankError(
            f"{file.parent}: found no {SETTINGS_FILE}, expected the one that training wrote "
            f"beside {CHECKPOINT_FILE}, with rank and alpha"
        ) from None
    except OSError as error:
        raise BankError(f"{file}: can't be read ({error.strerror})") from None
    if len(text) > _MOST_SETTINGS_BYTES:
        raise BankError(f"{file}: found more than {_MOST_SETTINGS_BYTES} bytes, expected settings")
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError):
        raise BankError(f"{file}: found no JSON, expected a model's settings") from None
    return settings_of(document, str(file))


def settings_of(document: object, source: str) -> PaperSettings:
    """Check the content of a config.json; `source` names it in errors.

    Raises:
        BankError: there is no `mslora_cfg`, or no valid rank and alpha in it.
    """
    whole = cast(dict[str, Any], document) if isinstance(document, dict) else {}
    cfg: object = whole.get("mslora_cfg")
    if not isinstance(cfg, dict):
        raise BankError(
            f"{source}: found no mslora_cfg, expected lora_rank and lora_alpha in it, as "
            "MSLoRA-CR's training writes them"
        )
    fields = cast(dict[str, Any], cfg)
    rank, alpha = fields.get("lora_rank"), fields.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= _LARGEST:
        raise BankError(f"{source}: lora_rank: found {_shown(rank)}, expected a whole number >= 1")
    if type(alpha) not in (int, float) or not 0 < cast(float, alpha) <= _LARGEST:
        raise BankError(f"{source}: lora_alpha: found {_shown(alpha)}, expected a number > 0")
    return PaperSettings(whole, rank, cast(float, alpha))


def settings_for(task: int, rank: int, scale: float, source: str) -> PaperSettings:
    """Return the settings with which their code loads an adapter that was trained here.

    Raises:
        BankError: there is no alpha for this scale; `source` names the adapter.
    """
    cfg: dict[str, Any] = {"lora_rank": rank, "lora_alpha": alpha_for(scale, rank, source)}
    cfg |= {"lora_dropout": 0.0, "max_task": task + 1}
    return settings_of({"mslora_cfg": cfg}, source)


def alpha_for(scale: float, rank: int, source: str) -> float:
    """Return the alpha with exactly `alpha / rank == scale`, as an int if it is whole.

    Raises:
        BankError: no float64 has this quotient, or it is not positive.
    """
    if rank < 1:
        raise BankError(f"{source}: found no low-rank factors, expected some to export")
    near = scale * rank
    if 0 < near <= _LARGEST:
        for alpha in (near, math.nextafter(near, 0.0), math.nextafter(near, math.inf)):
            if alpha / rank == scale:
                return int(alpha) if alpha.is_integer() else alpha
    raise BankError(
        f"{source}: found the scale {scale!r} at rank {rank}, expected alpha / rank with an "
        "alpha above 0: the paper's format has no other scale"
    )


def metadata_of(origin: ImportOrigin) -> dict[str, str]:
    """Return the metadata of an imported adapter's file: its scale and its origin."""
    entry = {
        "scale": origin.settings.scale,
        "origin": {
            "method": "mslora_cr",
            "task": origin.task,
            "config": dict(origin.settings.document),
            "files": dict(origin.files),
        },
    }
    return {_METADATA: canonical_json(entry)}


def origin_of(blob: bytes, source: str) -> ImportOrigin | None:
    """Return where an adapter was imported from; None for one that was trained here.

    Raises:
        BankError: it is not an adapter, or its origin has another format than ours.
    """
    header = read_header(lambda at, count: blob[at : at + count], len(blob), source)
    try:
        found = json.loads(header.metadata[_METADATA]).get("origin")
        if found is None:
            return None
        settings = settings_of(found["config"], source)
        return ImportOrigin(int(found["task"]), settings, dict(found["files"]))
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise BankError(
            f"{source}: found an origin in an unknown format, expected one written by bank import"
        ) from None


def _shown(value: object) -> str:
    return "nothing" if value is None else repr(value)[:40]
