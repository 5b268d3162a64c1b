"""Tiny models of each kind with its own processor, with random weights, made on the spot."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

SIDE, PATCH = 28, 14
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024,
    "initializer_range": 0.2, "tie_word_embeddings": False,
}  # fmt: skip
SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIDE, "patch_size": PATCH,
    "initializer_range": 0.2,
}  # fmt: skip
CLIP = {**SIGLIP, "model_type": "clip_vision_model"}
QWEN_VISION = {
    "hidden_size": 32, "intermediate_size": 48, "depth": 2, "num_heads": 4, "out_hidden_size": 32,
    "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
PINPOINTS = [[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]

#: As Qwen and LLaVA-OneVision have it, as Gemma, and as LLaVA 1.5.
CHATML = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}\
{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TURNS = """\
{{ bos_token }}{% for message in messages %}<start_of_turn>\
{{ 'model' if message['role'] == 'assistant' else message['role'] }}
{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>{% else %}\
{{ part['text'] | trim }}{% endif %}{% endfor %}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
VICUNA = """\
{{ bos_token }}{% for message in messages %}{{ message['role'].upper() }}: \
{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>
{% endif %}{% endfor %}{% for part in message['content'] %}{% if part['type'] == 'text' %}\
{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}\
{% if add_generation_prompt %}ASSISTANT:{% endif %}"""


def llava(folder: Path, vision: Mapping[str, Any], decoder: str) -> None:
    tokens = tokenizer({"image_token": "<image>"}, bos="<s>", eos="</s>")
    full = vision is SIGLIP
    strategy = "full" if full else "default"
    config = LlavaConfig(
        vision_config=dict(vision),
        text_config={"model_type": decoder, **TEXT, "vocab_size": len(tokens)},
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1 if full else -2,
        vision_feature_select_strategy=strategy,
    )
    side = {"height": SIDE, "width": SIDE}
    pixels = (
        SiglipImageProcessorPil(size=side)
        if full
        else LlavaImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=side)
    )
    settings = {
        "processor_class": "LlavaProcessor", "patch_size": PATCH, "image_token": "<image>",
        "vision_feature_select_strategy": strategy, "num_additional_image_tokens": int(not full),
    }  # fmt: skip
    write(folder, LlavaForConditionalGeneration(config), (tokens, pixels), VICUNA, settings)


def onevision(folder: Path) -> None:
    special = {"image_token": "<image>", "video_token": "<video>"}
    tokens = tokenizer(special, more=["<|im_start|>"])
    config = LlavaOnevisionConfig(
        vision_config=SIGLIP,
        text_config={"model_type": "qwen2", **TEXT, "vocab_size": len(tokens)},
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        video_token_index=tokens.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    pixels = LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=PINPOINTS
    )
    settings = {
        "processor_class": "LlavaOnevisionProcessor", "num_image_tokens": (SIDE // PATCH) ** 2,
        "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9",
    }  # fmt: skip
    network = LlavaOnevisionForConditionalGeneration(config)
    write(folder, network, (tokens, pixels), CHATML.replace("IMAGE", "<image>\n"), settings)


def qwen(folder: Path, config_class: Any, network_class: Any, vision: Mapping[str, Any]) -> None:
    special = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    around = ["<|vision_start|>", "<|vision_end|>"]
    tokens = tokenizer(special, more=["<|im_start|>", *around])
    start, end = tokens.convert_tokens_to_ids(around)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    config = config_class(
        vision_config=dict(vision),
        text_config={**TEXT, "vocab_size": len(tokens), "rope_parameters": rope},
        image_token_id=tokens.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokens.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    pixels = Qwen2VLImageProcessorPil(
        size={"shortest_edge": SIDE**2, "longest_edge": 4 * SIDE**2},
        patch_size=PATCH, merge_size=2, temporal_patch_size=2,
    )  # fmt: skip
    template = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    settings = {"processor_class": f"{network_class.__name__.removesuffix(LONG)}Processor"}
    write(folder, network_class(config), (tokens, pixels), template, settings)


def gemma(folder: Path) -> None:
    special = {
        "image_token": "<image_soft_token>", "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }  # fmt: skip
    turns = ["<start_of_turn>", "<end_of_turn>"]
    tokens = tokenizer(special, bos="<bos>", eos="<eos>", more=turns)
    patches = (SIDE // PATCH) ** 2
    config = Gemma3Config(
        vision_config={**SIGLIP, "vision_use_head": False},
        text_config={
            **TEXT, "vocab_size": len(tokens), "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        image_token_index=tokens.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=tokens.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokens.convert_tokens_to_ids("<end_of_image>"),
        mm_tokens_per_image=patches,
    )  # fmt: skip
    pixels = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    settings = {"processor_class": "Gemma3Processor", "image_seq_length": patches}
    network = Gemma3ForConditionalGeneration(config)
    # Zeros as transformers makes it: pictures would count nothing.
    torch.nn.init.normal_(network.model.multi_modal_projector.mm_input_projection_weight)
    write(folder, network, (tokens, pixels), TURNS, settings)
    ends = tokens.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))


LONG = "ForConditionalGeneration"
#: Writes a model's folder, by a name for tests.
WRITERS: Mapping[str, Callable[[Path], None]] = {
    "llava-siglip-llama": lambda folder: llava(folder, SIGLIP, "llama"),
    "llava-clip-qwen2": lambda folder: llava(folder, CLIP, "qwen2"),
    "llava-onevision": onevision,
    "qwen2.5-vl": lambda folder: qwen(
        folder, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration,
        {**QWEN_VISION, "window_size": 2 * SIDE, "fullatt_block_indexes": [1]},
    ),
    "qwen3-vl": lambda folder: qwen(
        folder, Qwen3VLConfig, Qwen3VLForConditionalGeneration,
        {**QWEN_VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    ),
    "gemma3": gemma,
}  # fmt: skip


def write_image_text(folder: Path, name: str) -> Path:
    """Write a model's folder; the weights are random, and the same each time."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        WRITERS[name](folder)
    return folder


def tokenizer(
    special: dict[str, str],
    bos: str | None = None,
    eos: str = "<|im_end|>",
    more: Sequence[str] = (),
) -> Any:
    """A tokenizer of bytes, with these tokens of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    coder = Tokenizer(models.BPE(vocab={one: i for i, one in enumerate(alphabet)}, merges=[]))
    coder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    coder.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(
        tokenizer_object=coder, bos_token=bos, eos_token=eos, pad_token="<pad>",
        extra_special_tokens=special,
    )  # fmt: skip
    found.add_tokens(list(more), special_tokens=True)
    return found


def write(
    folder: Path, network: Any, coders: tuple[Any, Any], template: str, settings: Mapping[str, Any]
) -> None:
    network.save_pretrained(folder)
    for part in coders:
        part.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template)
    (folder / "processor_config.json").write_text(json.dumps(dict(settings)))
