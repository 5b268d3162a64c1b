"""The paper's checkpoints in our terms: names, scales and tasks. No torch.

A run of MSLoRA-CR (arXiv 2508.11673) leaves a folder for each task. In it `cl_lora.bin` holds
what that task trained, as `paper_name` names it, and `config.json` the model's settings;
`mslora_cfg` in them has the rank and alpha. Loading, their code takes one rank and one alpha
for all the tasks that it sums.
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
#: Regularizer weights that training left behind where it learned them; no adapter needs them.
LEFTOVERS = frozenset({"alpha", "beta"})
#: Where a decoder's layer lies in their model, and in transformers' LLaVA.
_THEIRS, _OURS = "model.", "model.language_model."
_NAME = re.compile(
    r"model\.(layers\.\d{1,4}(?:\.\w+)+)\.cl_lora_pool\.task_(\d{1,4})_lora\.lora_([AB])", re.ASCII
)
_LAYER = re.compile(r"model\.language_model\.(layers\.(\d{1,4})(?:\.\w+)+)", re.ASCII)
_MOST_SETTINGS_BYTES = 2**18
_LARGEST = 1e9
#: safetensors' metadata entry in which an adapter has its scale (common/adapter.py).
_METADATA = "fedmslora"


@dataclass(frozen=True, slots=True)
class Settings:
    """A folder's config.json: all of it, and what the adapters in the folder need.

    Attributes:
        document: the whole file.
        rank: rows of every A.
        alpha: a number; `alpha / rank` stands before every B A.
    """

    document: Mapping[str, Any]
    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """The factor before every b @ a, computed as their code does."""
        return self.alpha / self.rank

    def as_task(self, number: int) -> "Settings":
        """As the run of this task (0 is the first) wrote them: its `max_task` counts itself."""
        cfg = {**self.document["mslora_cfg"], "max_task": number + 1}
        return Settings({**self.document, "mslora_cfg": cfg}, self.rank, self.alpha)

    def to_bytes(self) -> bytes:
        """The text of a config.json."""
        return (json.dumps(self.document, indent=2, sort_keys=True) + "\n").encode()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an imported adapter came from; it is kept inside the adapter's own file.

    Attributes:
        task: the number that the paper's code knew it by.
        settings: its folder's config.json.
        files: SHA-256 of the folder's two files, by name.
    """

    task: int
    settings: Settings
    files: Mapping[str, str]


def paper_name(module: str, task: int, factor: str) -> str:
    """How their code names factor `A` or `B` of a layer of our model; task 0 is the first."""
    layer = module.removeprefix(_OURS)
    return f"{_THEIRS}{layer}.cl_lora_pool.task_{task}_lora.lora_{factor}"


def our_name(name: str) -> tuple[int, str, str] | None:
    """The task, our path of the layer and the factor that one of their names stands for."""
    if (match := _NAME.fullmatch(name)) is None:
        return None
    layer, task, factor = match.groups()
    return int(task), f"{_OURS}{layer}", factor


def peft_name(module: str, factor: str) -> str:
    """How a bank names factor `A` or `B` of a layer."""
    return name_of_a(module) if factor == "A" else name_of_b(module)


def in_their_order(modules: list[str], source: str) -> list[str]:
    """The layers, first to last.

    Raises:
        BankError: a layer that is not the decoder's, for which their code has no name.
    """
    numbers: dict[str, int] = {}
    for module in modules:
        if (match := _LAYER.fullmatch(module)) is None:
            raise BankError(
                f"{source}: found an adapter on {module}, expected layers of the decoder alone "
                f"({_OURS}layers.*): the paper's format has no name for others"
            )
        numbers[module] = int(match.group(2))
    return sorted(modules, key=lambda module: (numbers[module], module))


def read_settings(file: Path) -> Settings:
    """A folder's config.json.

    Raises:
        BankError: there is none, it is no JSON, or it has no rank and alpha.
    """
    try:
        with file.open("rb") as stream:
            text = stream.read(_MOST_SETTINGS_BYTES + 1)
    except FileNotFoundError:
        raise BankError(
            f"{file.parent}: found no {SETTINGS_FILE}, expected the one that training wrote "
            f"beside {CHECKPOINT_FILE}: it has the rank and alpha"
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


def settings_of(document: object, source: str) -> Settings:
    """A config.json's content, checked; `source` names it in an error.

    Raises:
        BankError: no `mslora_cfg`, or no rank and alpha in it that can be used.
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
    return Settings(whole, rank, cast(float, alpha))


def settings_for(task: int, rank: int, scale: float, source: str) -> Settings:
    """What their code needs to load an adapter that we trained.

    Raises:
        BankError: there is no alpha for this scale; `source` names the adapter.
    """
    cfg: dict[str, Any] = {"lora_rank": rank, "lora_alpha": alpha_for(scale, rank, source)}
    cfg |= {"lora_dropout": 0.0, "max_task": task + 1}
    return settings_of({"mslora_cfg": cfg}, source)


def alpha_for(scale: float, rank: int, source: str) -> float:
    """The alpha with `alpha / rank == scale`, exactly; an int where there is one.

    Raises:
        BankError: no float64 has this quotient, or it is not above 0.
    """
    if rank < 1:
        raise BankError(f"{source}: found no low-rank factor, so there is nothing to export")
    near = scale * rank
    if 0 < near <= _LARGEST:
        for alpha in (near, math.nextafter(near, 0.0), math.nextafter(near, math.inf)):
            if alpha / rank == scale:
                return int(alpha) if alpha.is_integer() else alpha
    raise BankError(
        f"{source}: found the scale {scale!r} at rank {rank}, expected alpha / rank with an "
        "alpha above 0: the paper's format can't say it"
    )


def metadata_of(origin: Origin) -> dict[str, str]:
    """The metadata of an imported adapter's file: its scale, as ours have it, and its origin."""
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


def origin_of(blob: bytes, source: str) -> Origin | None:
    """Where an adapter was imported from; None for one that was trained here.

    Raises:
        BankError: it is no adapter, or says where it came from in another way than ours.
    """
    header = read_header(lambda at, count: blob[at : at + count], len(blob), source)
    try:
        found = json.loads(header.metadata[_METADATA]).get("origin")
        if found is None:
            return None
        settings = settings_of(found["config"], source)
        return Origin(int(found["task"]), settings, dict(found["files"]))
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise BankError(f"{source}: its origin can't be read: it was written by others") from None


def _shown(value: object) -> str:
    return "nothing" if value is None else repr(value)[:40]
