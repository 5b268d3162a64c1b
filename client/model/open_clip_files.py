"""The files of a folder in open_clip's layout, found without torch.

As BiomedCLIP is published (microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224):
`open_clip_config.json`, the weights in one file, and the text tower's tokenizer.
"""

from pathlib import Path
from typing import Final

from common.clip_shape import OPEN_CLIP_CONFIG
from common.errors import ModelError

#: Files that weights may be in; the first of them is used.
_WEIGHTS: Final = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json")
#: They may be there, and then decide, too.
_OPTIONAL: Final = ("special_tokens_map.json", "vocab.txt")


def open_clip_weights(folder: Path) -> Path:
    """Return the file with the weights.

    Raises:
        ModelError: there is none.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise ModelError(f"{folder}: found no weights, expected {' or '.join(_WEIGHTS)}")


def open_clip_identity(folder: Path) -> list[Path]:
    """Return the files that decide how the model answers, in name order.

    Raises:
        ModelError: a required file is missing.
    """
    for name in _TOKENIZER:
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: found no {name}, expected the text tower's tokenizer")
    optional = [folder / name for name in _OPTIONAL if (folder / name).is_file()]
    required = [folder / name for name in (OPEN_CLIP_CONFIG, *_TOKENIZER)]
    return sorted([*required, open_clip_weights(folder), *optional])
