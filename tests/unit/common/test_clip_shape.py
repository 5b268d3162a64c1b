"""The sizes of published CLIPs, from their configs as published."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.clip_shape import ClipShape, is_clip, is_open_clip, read_clip_shape
from common.errors import ModelError

#: openai/clip-vit-base-patch16, config.json: what differs from the defaults.
OPENAI: dict[str, Any] = {
    "model_type": "clip",
    "projection_dim": 512,
    "text_config": {"eos_token_id": 2, "hidden_size": 512, "num_attention_heads": 8},
    "vision_config": {"patch_size": 16, "hidden_size": 768},
}
#: microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224, open_clip_config.json.
BIOMED: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 512,
        "vision_cfg": {
            "timm_model_name": "vit_base_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 224,
        },
        "text_cfg": {
            "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 256,
        },
    },
}


def shape(folder: Path, name: str, document: object) -> ClipShape:
    (folder / name).write_text(json.dumps(document))
    return read_clip_shape(folder)


def test_openais_clip_has_the_published_number_of_weights(tmp_path: Path):
    found = shape(tmp_path, "config.json", OPENAI)
    # Counted once by hand: 86,192,640 of images, 63,428,096 of texts, and the scale.
    assert found.parameters == 149_620_737
    assert (found.context, found.positions, found.embedding) == (77, 77, 512)
    keys = found.linears()["vision_model.encoder.layers.11.self_attn.k_proj"]
    assert keys == (768, 768) and len(found.linears()) == 2 * 12 * 6


def test_biomedclip_has_the_published_sizes(tmp_path: Path):
    found = shape(tmp_path, "open_clip_config.json", BIOMED)
    # PubMedBERT without its pooler 108,891,648, ViT-B/16 without its head 85,798,656, projections
    # 768 x 512 and 768 x 640 x 512, the scale.
    pieces = (108_891_648, 85_798_656, 768 * 512, 768 * 640 + 640 * 512, 1)
    assert found.parameters == sum(pieces)
    assert (found.context, found.positions, found.projection) == (256, 512, 640)
    assert found.linears()["text_model.encoder.layers.0.mlp.fc1"] == (3072, 768)


def test_a_folder_in_both_layouts_counts_as_transformers(tmp_path: Path):
    shape(tmp_path, "open_clip_config.json", BIOMED)
    assert is_open_clip(tmp_path) and is_clip(tmp_path)
    assert shape(tmp_path, "config.json", OPENAI).parameters == 149_620_737
    assert not is_open_clip(tmp_path) and is_clip(tmp_path)


@pytest.mark.parametrize(
    ("document", "said"),
    [({"model_type": "clip"}, "KeyError: 'vision_config'"), ([], "found no sizes of a CLIP")],
)
def test_a_config_without_sizes_is_one_sentence(document: object, said: str, tmp_path: Path):
    with pytest.raises(ModelError, match=said):
        shape(tmp_path, "config.json", document)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("hidden_size", "7_68", "hidden_size: found '7_68', expected 1 to 10000000"),
        ("hidden_size", 12.7, "hidden_size: found '12.7', expected"),
        ("hidden_size", float("inf"), "hidden_size: found 'inf', expected"),
        ("hidden_size", True, "hidden_size: found 'True', expected"),
        ("patch_size", 0, "patch_size: found '0', expected"),
        ("image_size", -224, "image_size: found '-224', expected"),
        ("num_hidden_layers", 10**9, "num_hidden_layers: found '1000000000', expected 1 to 1000"),
    ],
)
def test_a_size_that_no_clip_has_is_refused(name: str, value: object, said: str, tmp_path: Path):
    vision = {**OPENAI["vision_config"], name: value}
    with pytest.raises(ModelError, match=f"^{tmp_path}/config.json: .*{said}"):
        shape(tmp_path, "config.json", {**OPENAI, "vision_config": vision})


@pytest.mark.parametrize("ratio", ["4", float("nan"), float("inf"), 0, -1, 101])
def test_a_ratio_that_no_block_has_is_refused(ratio: object, tmp_path: Path):
    model = BIOMED["model_cfg"]
    vision = {**model["vision_cfg"], "timm_model_kwargs": {"mlp_ratio": ratio}}
    changed = {"model_cfg": {**model, "vision_cfg": vision}}
    with pytest.raises(ModelError, match=f"mlp_ratio: found '{ratio}', expected up to 100"):
        shape(tmp_path, "open_clip_config.json", changed)


def test_a_text_tower_without_its_length_is_refused(tmp_path: Path):
    model = BIOMED["model_cfg"]
    text = {name: value for name, value in model["text_cfg"].items() if name != "context_length"}
    with pytest.raises(ModelError, match="context_length: found 'None', expected 1 to"):
        shape(tmp_path, "open_clip_config.json", {"model_cfg": {**model, "text_cfg": text}})
