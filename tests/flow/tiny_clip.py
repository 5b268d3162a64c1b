"""Tiny CLIPs of random weights, in transformers' layout and in BiomedCLIP's as open_clip has it."""
# pyright: reportUnknownMemberType=false, reportAttributeAccessIssue=false

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

WORDS: Final = ("a", "photo", "of", "red", "green", "blue", "skin", "lung", ".")
SIDE: Final = 32
WIDTH: Final = 32
INNER: Final = 48
EMBEDDING: Final = 24
#: BiomedCLIP's config with other sizes, each in a field that open_clip itself reads.
OPEN_CLIP: Final[dict[str, Any]] = {
    "model_cfg": {
        "embed_dim": EMBEDDING,
        "vision_cfg": {
            "timm_model_name": "vit_base_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": SIDE,
            "timm_model_kwargs": {
                "img_size": SIDE, "embed_dim": WIDTH, "depth": 2, "num_heads": 2, "mlp_ratio": 1.5,
            },
        },
        "text_cfg": {
            "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
            "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 10,
            "hf_model_config": {
                "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 2,
                "num_attention_heads": 2, "vocab_size": 16, "max_position_embeddings": 12,
            },
        },
    },
    "preprocess_cfg": {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
    },
}  # fmt: skip


def tokenizer(start: str, end: str, padding: str) -> PreTrainedTokenizerFast:
    """One token a word; ids from 0: padding, unknown, start, then the words, end the last."""
    names = list(dict.fromkeys((padding, "[UNK]", start, *WORDS, end)))
    if padding == end:  # as OpenAI's: the end token is the largest
        names = [*names[1:], end]
    ids = {name: number for number, name in enumerate(names)}
    found = Tokenizer(models.WordLevel(ids, "[UNK]"))
    found.normalizer = normalizers.Lowercase()
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, ids[start]), (end, ids[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=found, bos_token=start, eos_token=end, pad_token=padding, unk_token="[UNK]"
    )


def clip_config(**text: Any) -> CLIPConfig:
    sizes = {"intermediate_size": INNER, "num_hidden_layers": 2, "num_attention_heads": 2}
    given = {"vocab_size": 16, "max_position_embeddings": 10, "eos_token_id": 2, **text}
    return CLIPConfig(
        text_config={**sizes, "hidden_size": 16, **given},
        vision_config={**sizes, "hidden_size": WIDTH, "image_size": SIDE, "patch_size": 16},
        projection_dim=EMBEDDING,
    )


def write_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP in transformers' layout, with OpenAI's tokens: padding is the end token again."""
    torch.manual_seed(seed)
    network = CLIPModel(clip_config())
    with torch.no_grad():
        for weight in network.parameters():
            # Larger than a fresh model's, whose texts are all alike.
            weight.add_(0.1 * torch.randn_like(weight))
    network.save_pretrained(folder)
    end = "<|endoftext|>"
    tokenizer("<|startoftext|>", end, end).save_pretrained(folder)
    square = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square).save_pretrained(folder)
    return folder


def open_clip_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the names and in the shapes of BiomedCLIP's checkpoint."""
    linears = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
    linears |= {"mlp.fc1": (INNER, WIDTH), "mlp.fc2": (WIDTH, INNER)}
    bert = {
        **{f"attention.self.{n}": (WIDTH, WIDTH) for n in ("query", "key", "value")},
        "attention.output.dense": (WIDTH, WIDTH),
        "intermediate.dense": (INNER, WIDTH),
        "output.dense": (WIDTH, INNER),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "visual.trunk.cls_token": (1, 1, WIDTH),
        "visual.trunk.pos_embed": (1, 1 + (SIDE // 16) ** 2, WIDTH),
        "visual.trunk.patch_embed.proj.weight": (WIDTH, 3, 16, 16),
        "visual.trunk.patch_embed.proj.bias": (WIDTH,),
        "visual.head.proj.weight": (EMBEDDING, WIDTH),
        "text.transformer.embeddings.word_embeddings.weight": (16, WIDTH),
        "text.transformer.embeddings.position_embeddings.weight": (12, WIDTH),
        "text.transformer.embeddings.token_type_embeddings.weight": (2, WIDTH),
        "text.proj.0.weight": ((WIDTH + EMBEDDING) // 2, WIDTH),
        "text.proj.2.weight": (EMBEDDING, (WIDTH + EMBEDDING) // 2),
    }
    norms = ["visual.trunk.norm", "text.transformer.embeddings.LayerNorm"]
    for layer in range(2):
        block, encoder = f"visual.trunk.blocks.{layer}", f"text.transformer.encoder.layer.{layer}"
        norms += [f"{block}.norm1", f"{block}.norm2"]
        norms += [f"{encoder}.attention.output.LayerNorm", f"{encoder}.output.LayerNorm"]
        for name, shape in linears.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        for name, shape in bert.items():
            shapes |= {f"{encoder}.{name}.weight": shape, f"{encoder}.{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    rng = np.random.default_rng(seed)
    found = {n: rng.standard_normal(shapes[n]).astype(np.float32) * 0.2 for n in sorted(shapes)}
    weights = {name: torch.tensor(array) for name, array in found.items()}
    for name in norms:
        weights[f"{name}.weight"] += 1
    weights["logit_scale"] = torch.tensor(3.0)
    return weights


def write_open_clip(folder: Path, seed: int = 0) -> Path:
    """BiomedCLIP's layout: its config, torch's file of weights, BERT's tokens."""
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    weights = open_clip_weights(seed)
    # A buffer that the published file has, too.
    positions = {"text.transformer.embeddings.position_ids": torch.arange(12)[None]}
    torch.save(weights | positions, folder / "open_clip_pytorch_model.bin")
    tokenizer("[CLS]", "[SEP]", "[PAD]").save_pretrained(folder)
    return folder


def write_images(folder: Path, count: int) -> list[Path]:
    """Pictures of noise, of which none is square."""
    rng = np.random.default_rng(7)
    files = [folder / f"{number}.png" for number in range(count)]
    for file in files:
        pixels = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(file)
    return files
