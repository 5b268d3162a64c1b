"""Small checkpoints in LLaVA-Med v1.5's own layout, with the true geometry of its pictures.

Everything is written here under the published names, and not by way of the code that reads
it: the decoder as a Mistral of its own, the tower as a CLIP, the projector as two layers.
"""
# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.utils import sentencepiece_model_pb2_new

from client.model.llava_med_tokenizer import read_tokenizer
from common.plan.plan import VisionWeights

_Made = TypeVar("_Made")

#: protobuf makes the classes in it when it is imported.
_MESSAGES: Any = sentencepiece_model_pb2_new

WORDS = "what colour is this picture red green blue yes no the left right side of it [ INST"
WIDTH = 32
TOWER = "clip-vit-large-patch14-336"

#: As published, but for the widths and the numbers of layers.
CONFIG: dict[str, Any] = {
    "architectures": ["LlavaMistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "image_aspect_ratio": "pad",
    "intermediate_size": 48,
    "max_position_embeddings": 32768,
    "mm_hidden_size": 16,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": f"openai/{TOWER}",
    "model_type": "llava_mistral",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vision_backbone": "convnextlarge",
}
VISION = CLIPVisionConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=336,
    patch_size=14,
    projection_dim=8,
)


@dataclass(frozen=True)
class Models:
    """The modules of a checkpoint: what the published code is made of."""

    decoder: MistralForCausalLM
    projector: nn.Sequential
    #: The tower in the checkpoint, which the published code doesn't look at.
    inside: CLIPVisionModel
    #: OpenAI's, in a folder beside the checkpoint.
    openai: CLIPModel


def make_models(seed: int = 0) -> Models:
    """Random ones; the two towers differ."""

    def seeded(number: int, make: Callable[[], _Made]) -> _Made:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 10 + number)
            return make()

    clip = CLIPConfig(
        vision_config=VISION.to_dict(),
        text_config={
            "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 1, "vocab_size": 10, "projection_dim": 8,
        },
        projection_dim=8,
    )  # fmt: skip
    return Models(
        decoder=seeded(1, lambda: MistralForCausalLM(text_config())).eval(),
        projector=seeded(
            2, lambda: nn.Sequential(nn.Linear(16, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        ),
        inside=seeded(3, lambda: CLIPVisionModel(VISION)).eval(),
        openai=seeded(4, lambda: CLIPModel(clip)).eval(),
    )


def tower_of(models: Models, vision: VisionWeights) -> CLIPVisionModel:
    """The one that a model with these `vision_weights` has."""
    if vision is VisionWeights.CHECKPOINT:
        return models.inside
    tower = CLIPVisionModel(VISION)
    tower.load_state_dict(models.openai.vision_model.state_dict())
    return tower.eval()


def text_config() -> MistralConfig:
    """The decoder's settings, in transformers' words."""
    return MistralConfig(
        vocab_size=len(pieces()),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32768,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        sliding_window=None,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )


def published_names(models: Models) -> dict[str, Tensor]:
    """The checkpoint's weights as they are called in it."""
    tower = "model.vision_tower.vision_tower.vision_model."
    return {
        **models.decoder.state_dict(),
        **{f"model.mm_projector.{n}": w for n, w in models.projector.state_dict().items()},
        **{f"{tower}{n}": w for n, w in models.inside.state_dict().items()},
    }


def write_original(
    folder: Path, models: Models, shards: int = 1, kind: str = "safetensors"
) -> Path:
    """The whole folder, with OpenAI's CLIP in it as the hub has it."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {**CONFIG, "vocab_size": len(pieces())})
    (folder / "tokenizer.model").write_bytes(tokenizer_model(pieces()))
    write_weights(folder, published_names(models), shards, kind)
    write_clip(folder / TOWER, models.openai)
    return folder


def write_twin(target: Path, models: Models, folder: Path, vision: VisionWeights) -> Path:
    """The model of `folder`, written by `write_original`, as transformers itself saves it."""
    config = LlavaConfig(
        vision_config=VISION,
        text_config=text_config(),
        image_token_index=3,
        vision_feature_layer=-2,
    )
    network = LlavaForConditionalGeneration(config)
    network.model.language_model.load_state_dict(models.decoder.model.state_dict())
    network.lm_head.load_state_dict(models.decoder.lm_head.state_dict())
    network.model.vision_tower.load_state_dict(tower_of(models, vision).state_dict())
    projector: Any = network.model.multi_modal_projector
    projector.linear_1.load_state_dict(models.projector[0].state_dict())
    projector.linear_2.load_state_dict(models.projector[2].state_dict())
    network.save_pretrained(target)
    read_tokenizer(folder / "tokenizer.model", len(pieces())).save_pretrained(target)
    shutil.copy(folder / TOWER / "preprocessor_config.json", target)
    return target


def write_clip(folder: Path, clip: CLIPModel) -> Path:
    """A whole CLIP in torch's format, with a buffer that old versions saved."""
    folder.mkdir()
    write_json(folder / "config.json", {"model_type": "clip", "vision_config": VISION.to_dict()})
    settings = {
        "crop_size": 336, "do_center_crop": True, "do_normalize": True, "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, "size": 336,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    write_json(folder / "preprocessor_config.json", settings)
    vision = {f"vision_model.{n}": w for n, w in clip.vision_model.state_dict().items()}
    rest = {n: w for n, w in clip.state_dict().items() if not n.startswith("vision_model.")}
    old = {"vision_model.embeddings.position_ids": torch.arange(577)[None]}
    torch.save({**vision, **rest, **old}, folder / "pytorch_model.bin")
    return folder


def write_weights(folder: Path, weights: dict[str, Tensor], shards: int, kind: str) -> None:
    """One file, or several with an index."""
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names = sorted(weights)
    places: dict[str, str] = {}
    for number in range(shards):
        part = f"-{number + 1:05}-of-{shards:05}" if shards > 1 else ""
        file = f"{stem}{part}.{kind}"
        chosen = {name: weights[name].contiguous() for name in names[number::shards]}
        if kind == "safetensors":
            save_file(chosen, folder / file, {"format": "pt"})
        else:
            torch.save(chosen, folder / file)
        places |= dict.fromkeys(chosen, file)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": places}
        write_json(folder / f"{stem}.{kind}.index.json", index)


def write_json(file: Path, value: object) -> None:
    """`value` as the file's content."""
    file.write_text(json.dumps(value), encoding="utf-8")


def pieces() -> list[tuple[str, float, int]]:
    """Text, score and kind of each piece: as Mistral's, but with few words.

    Two spaces in a row have an early id and the worst score, as Mistral's have.
    """
    grown = {f"▁{word}"[:end] for word in WORDS.split() for end in range(2, len(word) + 2)}
    grown |= {"INST"[:end] for end in range(2, 5)}
    letters = sorted({letter for piece in grown for letter in piece} | set("]?/."))
    merged = sorted(grown, key=lambda piece: (len(piece), piece))
    return [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)),
        ("▁▁", -1e9, 1),
        *((piece, -1.0 - number, 1) for number, piece in enumerate(merged)),
        *((letter, -1e9, 1) for letter in letters),
    ]


def tokenizer_model(entries: Sequence[tuple[str, float, int]], kind: int = 2) -> bytes:
    """A sentencepiece model of these pieces, written by protobuf; of kind 2, BPE."""
    model = _MESSAGES.ModelProto()
    for piece, score, what in entries:
        model.pieces.add(piece=piece, score=score, type=what)
    model.trainer_spec.model_type = kind
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    return model.SerializeToString()
