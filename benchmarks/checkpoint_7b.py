"""A checkpoint of random weights in LLaVA-Med v1.5's published layout and shapes.

The folder has what the published one has: config.json, tokenizer.model, the weights in shards of
bf16 with their index, the vision tower among them. It is written shard by shard, so that memory
holds one shard.
"""
# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionModel, MistralForCausalLM

from benchmarks.shapes_7b import Shapes, text_config, vision_config

TOWER: Final = "clip-vit-large-patch14-336"
#: Mistral's initializer range.
_DEVIATION: Final = 0.02
_BYTES_A_NUMBER: Final = 2
#: sentencepiece's kinds of piece: normal, unknown, control, byte.
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


def write_checkpoint(folder: Path, shapes: Shapes, shard_bytes: int = 4 << 30) -> int:
    """Write the whole folder, which must not exist; return the bytes of its weights.

    Equal shapes give equal bytes.
    """
    folder.mkdir(parents=True)
    _write_json(folder / "config.json", _config(shapes))
    tower = folder / TOWER
    tower.mkdir()
    vision = {"model_type": "clip_vision_model", **vision_config(shapes).to_dict()}
    _write_json(tower / "config.json", vision)
    (folder / "tokenizer.model").write_bytes(_tokenizer_model(shapes.vocabulary))
    shards = list(_shards(published_shapes(shapes), shard_bytes))
    places: dict[str, str] = {}
    total = 0
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        generator = torch.Generator().manual_seed(number)
        weights = {name: _weight(name, shape, generator) for name, shape in names.items()}
        save_file(weights, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
        total += sum(weight.nbytes for weight in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    _write_json(folder / "model.safetensors.index.json", index)
    return total


def published_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight by its published name."""
    with torch.device("meta"):
        decoder = MistralForCausalLM(text_config(shapes)).state_dict()
        tower = CLIPVisionModel(vision_config(shapes)).state_dict()
    wide, seen = shapes.hidden, shapes.tower_hidden
    projector = {"0.weight": (wide, seen), "0.bias": (wide,), "2.weight": (wide, wide)}
    return {
        **{name: tuple(weight.shape) for name, weight in decoder.items()},
        **{f"model.mm_projector.{n}": shape for n, shape in projector.items()},
        "model.mm_projector.2.bias": (wide,),
        **{
            f"model.vision_tower.vision_tower.vision_model.{name}": tuple(weight.shape)
            for name, weight in tower.items()
        },
    }


def _shards(
    weights: Mapping[str, tuple[int, ...]], limit: int
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Divide the weights, in order, into shards of at most `limit` bytes, or of one weight."""
    shard: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in weights.items():
        own = _BYTES_A_NUMBER * torch.Size(shape).numel()
        if shard and size + own > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += own
    yield shard


def _weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=torch.bfloat16)
    if len(shape) == 1 and "norm" in name.lower():
        return torch.ones(shape, dtype=torch.bfloat16)
    weight = torch.empty(shape, dtype=torch.bfloat16)
    return weight.normal_(0.0, _DEVIATION, generator=generator)


def _config(shapes: Shapes) -> dict[str, Any]:
    """Return the published config.json, at these shapes."""
    text = text_config(shapes).to_dict()
    sizes = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads",
    )  # fmt: skip
    return {
        **{name: text[name] for name in sizes},
        "architectures": ["LlavaMistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "image_aspect_ratio": "pad",
        "max_position_embeddings": 32768,
        "mm_hidden_size": shapes.tower_hidden,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": f"openai/{TOWER}",
        "model_type": "llava_mistral",
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def _tokenizer_model(vocabulary: int) -> bytes:
    """Return a sentencepiece model (BPE) of so many pieces: bytes, letters, and made-up words."""
    from transformers.utils import sentencepiece_model_pb2_new

    messages: Any = sentencepiece_model_pb2_new
    model = messages.ModelProto()
    special = [("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL)]
    special += [(f"<0x{byte:02X}>", _BYTE) for byte in range(256)]
    for piece, kind in special:
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for rank, piece in zip(range(vocabulary - len(special)), _pieces(), strict=False):
        model.pieces.add(piece=piece, score=-1.0 - rank, type=_NORMAL)
    model.trainer_spec.model_type = 2
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    return model.SerializeToString()


def _pieces() -> Iterator[str]:
    """Yield pieces without end, each of which is two earlier ones joined, or a letter."""
    yield from ("▁", *ascii_lowercase, "[", "]", "/", "?", *"INST")
    yield from (f"▁{letter}" for letter in ascii_lowercase)
    length = 2
    while True:
        for letters in product(ascii_lowercase, repeat=length):
            yield "".join(letters)
        length += 1


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=1), encoding="utf-8")
