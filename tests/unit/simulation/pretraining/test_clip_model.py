"""The embedded CLIP: complete, small, scored as its folder says; and the recipe's parts."""
# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoTokenizer, CLIPModel

from client.backbones.clip import TEMPLATE
from simulation.hospitals import BASE_MODELS
from simulation.phantoms.captions import KIND_PHRASES, PHRASES, caption
from simulation.phantoms.factors import FACTORS, ImageKind
from simulation.pretraining.make_album import Album, make_album
from simulation.pretraining.make_captions import draw_caption, facts_of, truth
from simulation.pretraining.make_clip import contrastive_loss, new_clip, texts_of, train
from simulation.pretraining.make_tokenizer import make_clip_tokenizer
from simulation.pretraining.score_clip import by_names

CLIP = BASE_MODELS["tiny-clip"]


@pytest.fixture(scope="module")
def album() -> Album:
    return make_album(90, 10, 77)


def test_every_value_of_every_factor_has_a_phrase_of_its_own():
    for kind, factors in FACTORS.items():
        assert set(PHRASES[kind]) == set(factors)
        phrases = [one for phrases in PHRASES[kind].values() for one in phrases]
        assert len(set(phrases)) == len(phrases)
        assert {name: len(p) for name, p in PHRASES[kind].items()} == {
            name: len(values) for name, values in factors.items()
        }
    assert len(set(KIND_PHRASES.values())) == len(ImageKind)


def test_a_caption_lists_its_facts():
    facts = {"structure": "network", "border": "sharp", "hair": "no"}
    found = [caption(ImageKind.DERMOSCOPY, dict(list(facts.items())[:n])) for n in range(4)]
    assert found == [
        "dermoscopy image",
        "dermoscopy image with pigment network",
        "dermoscopy image with pigment network and sharp border",
        "dermoscopy image with pigment network, sharp border and no hair",
    ]


def test_a_caption_is_true_of_its_picture_and_of_those_that_share_its_facts(album: Album):
    rng = np.random.default_rng(0)
    rows = range(len(album.kinds))
    captions = [draw_caption(album, row, rng) for row in rows]
    found = truth([facts_of(album, row) for row in rows], captions)
    assert found.diagonal().all()
    for column, one in enumerate(captions):
        for row in rows:
            of_phantom = {(str(album.kinds[row]), *fact) for fact in album.factors[row].items()}
            of_crop = {("", *word) for word in album.words[row].items()}
            kind = album.kinds[row]
            there = of_crop if kind is None else of_phantom | {(str(kind), "", "")}
            assert found[row, column] == all(fact in there for fact in one.facts)
    # A caption of the kind alone is true of more pictures than one with three facts.
    general, special = (
        np.mean([found[:, c].sum() for c, one in enumerate(captions) if len(one.facts) == count])
        for count in (1, 4)
    )
    assert general > 3 * special


def test_the_loss_is_clips_own_where_each_caption_has_one_picture():
    rng = np.random.default_rng(2)
    logits = torch.tensor(rng.standard_normal((5, 5)))
    own = torch.arange(5)
    clips = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(contrastive_loss(logits, torch.eye(5, dtype=torch.double)), clips)


def test_the_loss_spreads_its_target_over_what_is_true():
    logits, true = np.array([[2.0, 0.0], [1.0, -1.0]]), np.array([[1.0, 1.0], [0.0, 1.0]])

    def cross_entropy(rows: np.ndarray, targets: np.ndarray) -> float:
        logs = rows - np.log(np.exp(rows).sum(1, keepdims=True))
        return float(-(targets / targets.sum(1, keepdims=True) * logs).sum(1).mean())

    expected = (cross_entropy(logits, true) + cross_entropy(logits.T, true.T)) / 2
    found = contrastive_loss(torch.tensor(logits), torch.tensor(true))
    assert found.item() == pytest.approx(expected)


def test_the_recipe_trains_the_upper_part_and_gives_the_same_again(album: Album):
    tokenizer = make_clip_tokenizer(texts_of(album))
    first, again = (train(album, tokenizer, 2, 1).state_dict() for _ in range(2))
    fresh = new_clip(len(tokenizer), 1).state_dict()
    for name, weight in first.items():
        torch.testing.assert_close(weight, again[name], rtol=0, atol=0)
    moved = {name for name, weight in first.items() if not torch.equal(weight, fresh[name])}
    blocks = {int(found[1]) for n in moved if (found := re.match(r"vision.*layers\.(\d)", n))}
    assert blocks == {4, 5}
    for part in ("text_model.encoder.layers.0", "visual_projection", "logit_scale"):
        assert any(name.startswith(part) for name in moved)


def test_the_embedded_clip_is_complete_and_small():
    loaded: Any = CLIPModel.from_pretrained(CLIP, local_files_only=True, output_loading_info=True)
    network, info = loaded
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    scores = json.loads((CLIP / "scores.json").read_text())
    assert sum(weight.numel() for weight in network.parameters()) == scores["parameters"]
    assert (CLIP / "model.safetensors").stat().st_size < 7_000_000
    tokenizer: Any = AutoTokenizer.from_pretrained(CLIP, local_files_only=True)
    ids = tokenizer(TEMPLATE.format("dermoscopy image"))["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids[:5]) == [
        "<|startoftext|>",
        "Ġa",
        "Ġphoto",
        "Ġof",
        "Ġa",
    ]
    assert ids[-1] == network.config.text_config.eos_token_id == tokenizer.eos_token_id != 2


def test_the_embedded_clip_knows_the_names_as_well_as_its_scores_say(album: Album):
    noted = json.loads((CLIP / "scores.json").read_text())["by_names"]["all classes"]
    found = by_names(CLIP, make_album(200, 0, 78), TEMPLATE)["all classes"]
    # 200 pictures: a standard error of 3 points at most.
    assert found["accuracy"] == pytest.approx(noted["accuracy"], abs=0.11)
    assert found["accuracy"] > 2 * found["majority"]
