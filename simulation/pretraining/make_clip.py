"""Train the embedded small CLIP: `python -m simulation.pretraining.make_clip --out DIR`.

Its image tower is the embedded LLaVA's, frozen, with two more blocks on top. These and the text
tower learn which captions are true of which pictures. The pictures are phantoms and crops of a few
real pictures (train regions only), so the model has no medical knowledge.
"""
# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

# B batch, C captions, N patches and the class token, D width of the image tower

import argparse
import json
import math
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from client.backbones.clip import TEMPLATE
from simulation.command_line.arguments import whole_from
from simulation.command_line.exit_codes import with_exit_codes
from simulation.pretraining.make_album import Album, make_album
from simulation.pretraining.make_base import SCALE, check_out, image_settings, place
from simulation.pretraining.make_captions import all_texts, draw_caption, facts_of, truth
from simulation.pretraining.make_tokenizer import make_clip_tokenizer
from simulation.pretraining.make_vision import DEVIATION, MEAN, cosine, vision_config
from simulation.pretraining.score_clip import by_names, by_task

SEED: Final = 0
#: The embedded LLaVA, whose image tower is the lower part of this one's.
LLAVA: Final = Path(__file__).parents[1] / "base_model"
_TEXT_WIDTH: Final = 128
_EMBEDDING: Final = 128
_CONTEXT: Final = 48
_BATCH: Final = 256
_RATE: Final = 1e-3  # not tuned
_NEW_BLOCKS: Final = 2
_LARGEST_SCALE: Final = math.log(100)
_CARD: Final = """# A small CLIP for trying fedmslora out

{parameters:,} parameters, fp16: an image tower (64 px, patches of 16, width 192, 6 layers) and a
text tower (width 128, 2 layers) in transformers' own class. It loads with
`CLIPModel.from_pretrained` and asks no network.

The lower four layers of its image tower are those of the small LLaVA beside it; the rest was made
by `{command}`;
`scores.json` says how well it does and what it cost.

It has seen drawn phantoms, captioned in words that sound clinical, and crops of a few pictures that
ship inside Python packages: the pictures of the demo, of their training regions only, captioned in
plain words. **It knows no medicine. What it answers has no medical meaning.**

Licence: Apache-2.0, as the rest of the repository.
"""


def clip_config(vocabulary: int) -> CLIPConfig:
    """Return the sizes: the small LLaVA's image tower and two blocks more, two for texts."""
    text = {
        "hidden_size": _TEXT_WIDTH,
        "intermediate_size": 3 * _TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": _CONTEXT,
        "vocab_size": vocabulary,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    lower = vision_config()
    blocks = {"num_hidden_layers": lower.num_hidden_layers + _NEW_BLOCKS}
    vision = {**lower.to_dict(), **blocks, "projection_dim": _EMBEDDING}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=_EMBEDDING)


def make_clip(out: Path, scale: float) -> None:
    """Write the model, its scores and its card to `out`; the repository's was made with scale 1.

    Raises:
        StateError: `out` is there and no model.
        DataError: a package with pictures is not installed.
    """
    check_out(out)
    began = time.process_time()
    album = make_album(round(16_000 * scale), round(5000 * scale), SEED + 1)
    tokenizer = make_clip_tokenizer(texts_of(album))
    drawn = time.process_time()
    network = train(album, tokenizer, round(900 * scale), SEED)
    seconds = {"pictures": drawn - began, "training": time.process_time() - drawn}
    place(out, partial(_save, network, tokenizer, seconds, scale))


def texts_of(album: Album) -> list[str]:
    """Return texts with all words that captions of the album's pictures can have."""
    words = {word for seen in album.words for pair in seen.items() for word in pair}
    return [TEMPLATE.format(text) for text in [*all_texts(), *sorted(words)]]


def new_clip(vocabulary: int, seed: int) -> CLIPModel:
    """Return a CLIP of random weights but for the lower part of its image tower."""
    torch.manual_seed(seed)
    network = CLIPModel(clip_config(vocabulary))
    llava: Any = LlavaForConditionalGeneration.from_pretrained(LLAVA, dtype=torch.float32)
    tower = {
        name: weight
        for name, weight in llava.model.vision_tower.state_dict().items()
        # What it has of its last norm was never trained.
        if not name.startswith("post_layernorm")
    }
    network.vision_model.load_state_dict(tower, strict=False)
    return network


def train(album: Album, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> CLIPModel:
    """Train the upper image blocks and the text tower for so many batches of 256 pictures.

    Each has a caption; of equal ones one is encoded.
    """
    network = new_clip(len(tokenizer), seed)
    states_BND = _lower_states(network, torch.from_numpy(album.pixels))
    upper, vision = network.vision_model.encoder.layers[-_NEW_BLOCKS:], network.vision_model
    parts = (upper, vision.post_layernorm, network.visual_projection)
    parts = (*parts, network.text_model, network.text_projection)
    weights = [*(weight for part in parts for weight in part.parameters()), network.logit_scale]
    optimizer = torch.optim.AdamW(weights, lr=_RATE, weight_decay=0.02, fused=True)
    rng = np.random.default_rng(seed)
    facts = [facts_of(album, index) for index in range(len(album.kinds))]
    started = time.process_time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * cosine(step, steps)
        rows = rng.integers(len(facts), size=_BATCH)
        captions = [draw_caption(album, int(row), rng) for row in rows]
        unique = list({caption.text: caption for caption in captions}.values())
        place_of = {caption.text: place for place, caption in enumerate(unique)}
        true_BC = torch.from_numpy(truth([facts[row] for row in rows], captions))
        tokens = tokenizer(
            [TEMPLATE.format(one.text) for one in unique], padding=True, return_tensors="pt"
        )
        top_BND = states_BND[rows].float()
        for block in upper:
            top_BND = block(top_BND, None)
        images = network.visual_projection(vision.post_layernorm(top_BND[:, 0]))
        texts = network.text_projection(network.text_model(**tokens).pooler_output)
        texts = texts[[place_of[caption.text] for caption in captions]]
        likeness = functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T
        loss = contrastive_loss(network.logit_scale.exp() * likeness, true_BC)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        with torch.no_grad():
            network.logit_scale.clamp_(max=_LARGEST_SCALE)
        if step % 100 == 0:
            spent = time.process_time() - started
            print(
                f"clip: step {step} of {steps}, loss {loss.item():.3f}, {spent:.0f} CPU s",
                flush=True,
            )
    return network.eval()


@torch.no_grad()
def _lower_states(network: CLIPModel, pixels: Tensor) -> Tensor:
    """Return what the frozen part of the image tower makes of pictures, (B, N, D), fp16."""
    vision, found = network.vision_model, list[Tensor]()
    for part in pixels.split(256):
        scaled = (part.permute(0, 3, 1, 2).float() / 255 - MEAN) / DEVIATION
        states = vision.pre_layrnorm(vision.embeddings(scaled))
        for block in vision.encoder.layers[:-_NEW_BLOCKS]:
            states = block(states, None)
        found.append(states.half())
    return torch.cat(found)


def contrastive_loss(logits_BC: Tensor, true_BC: Tensor) -> Tensor:
    """Return CLIP's loss (arXiv 2103.00020, figure 3) where several captions may be true.

    The target of a picture is spread evenly over all captions of the batch that are true of it,
    and that of a caption over all its pictures; each has one at least.
    """
    pictures = functional.cross_entropy(logits_BC, true_BC / true_BC.sum(1, keepdim=True))
    captions = functional.cross_entropy(logits_BC.T, (true_BC / true_BC.sum(0)).T)
    return (pictures + captions) / 2


def _save(
    network: CLIPModel,
    tokenizer: PreTrainedTokenizerFast,
    seconds: dict[str, float],
    scale: float,
    folder: Path,
) -> None:
    """Write everything that belongs into the model's folder, and score it as written."""
    network.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_settings().save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors 0.8 writes files that only their owner can read
    parameters = sum(weight.numel() for weight in network.parameters())
    command = f"python -m simulation.pretraining.make_clip --out DIR --scale {scale:g}"
    (folder / "README.md").write_text(_CARD.format(parameters=parameters, command=command))
    scores = {
        "command": command,
        "parameters": parameters,
        "cpu_seconds": {name: round(spent) for name, spent in seconds.items()},
        "seed": SEED,
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
        "by_names": by_names(folder, make_album(3000, 0, SEED + 2), TEMPLATE),
        "by_task": by_task(folder, SEED),
    }
    (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")


@with_exit_codes
def main() -> int:
    """Run the command line; exit code 2 for an error that the user can correct."""
    parser = argparse.ArgumentParser(
        prog="python -m simulation.pretraining.make_clip", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="the model's folder")
    parser.add_argument("--scale", type=SCALE, default=1.0, help="of pictures and steps [1]")
    parser.add_argument("--threads", type=whole_from(1), default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    make_clip(given.out.resolve(), given.scale)
    return 0


if __name__ == "__main__":
    sys.exit(main())
