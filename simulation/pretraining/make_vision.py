"""Trains the embedded model's vision tower, a small CLIP tower, on facts, words and pixels.

Its last layer's patches are all that the language model gets. Two heads, discarded afterwards,
make them informative: every fact of the picture (from all patches), and, from each patch
alone, what its own pixels look like.
"""

# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false

# B batch, N patches, D width, Q queries

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from simulation.pretraining.make_album import UNKNOWN, Album, VisualFact, fact_labels

PATCH: Final = 16
WIDTH: Final = 192
MEAN: Final = 0.5
DEVIATION: Final = 0.28
#: A patch is described by the mean colour and the contrast of its 4 x 4 cells.
_CELLS: Final = 4
_CELL: Final = PATCH // _CELLS
_QUERIES: Final = 12
_BATCH: Final = 128
_RATE: Final = 1.2e-3  # not tuned
_PIXEL_WEIGHT: Final = 2.0  # not tuned


def vision_config() -> CLIPVisionConfig:
    """Return four layers of width 192 over 16 patches of 16 x 16 pixels."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=4 * PATCH,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )


@dataclass(frozen=True, slots=True)
class SightScores:
    """Accuracy on unseen pictures: mean over the phantoms' factors, and over the crops' words."""

    factors: float
    words: float
    by_fact: dict[str, float]


class _Heads(nn.Module):
    """Reads the facts from all patches, and each patch's pixels from it alone."""

    def __init__(self, facts: Sequence[VisualFact]) -> None:
        super().__init__()
        self.queries_QD = nn.Parameter(0.1 * torch.randn(_QUERIES, WIDTH))
        self.sizes = [len(fact.values) for fact in facts]
        self.facts = nn.Linear(_QUERIES * WIDTH, sum(self.sizes))
        self.pixels = nn.Linear(WIDTH, 4 * _CELLS * _CELLS)

    def forward(self, x_BND: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return logits per fact, each (B, values), and the pixels' summary (B, N, 64)."""
        attention_BNQ = torch.softmax(x_BND @ self.queries_QD.T / math.sqrt(WIDTH), 1)
        pooled_BQD = attention_BNQ.transpose(1, 2) @ x_BND
        logits = self.facts(pooled_BQD.flatten(1)).split(self.sizes, 1)
        return logits, self.pixels(x_BND)


def train_tower(
    album: Album, facts: Sequence[VisualFact], steps: int, seed: int
) -> tuple[CLIPVisionModel, nn.Module]:
    """Train a tower on `album` from random weights; return it with its heads."""
    torch.manual_seed(seed)
    tower, heads = CLIPVisionModel(vision_config()), _Heads(facts)
    labels = torch.from_numpy(fact_labels(album, facts))
    pixels = torch.from_numpy(album.pixels)
    weights = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=_RATE, weight_decay=0.02, fused=True)
    rng = np.random.default_rng(seed)
    started = time.process_time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * cosine(step, steps)
        rows = torch.from_numpy(rng.integers(len(pixels), size=_BATCH))
        loss = _loss(tower, heads, pixels[rows], labels[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 250 == 0:
            spent = time.process_time() - started
            print(f"tower: step {step} of {steps}, loss {loss.item():.3f}, {spent:.0f} CPU s")
    return tower.eval(), heads.eval()


def cosine(step: int, steps: int) -> float:
    """Return the learning rate's factor: up over the first 100 steps, then down to 2 %."""
    return min(1.0, (step + 1) / 100) * (0.51 + 0.49 * math.cos(math.pi * step / steps))


def see(tower: CLIPVisionModel, pixels: NDArray[np.uint8]) -> Tensor:
    """Return the features that the language model gets of each picture, (pictures, 16, 192)."""
    with torch.no_grad():
        parts = [_patches(tower, torch.from_numpy(part)) for part in _batches(pixels)]
    return torch.cat(parts)


def score_tower(
    tower: CLIPVisionModel, heads: nn.Module, facts: Sequence[VisualFact], album: Album
) -> SightScores:
    """Return how often each fact of `album`, unseen in training, is recognised."""
    labels = fact_labels(album, facts)
    with torch.no_grad():
        logits, _ = heads(see(tower, album.pixels))
    by_fact: dict[str, float] = {}
    for column, fact in enumerate(facts):
        known = labels[:, column] != UNKNOWN
        right = logits[column].argmax(1).numpy()[known] == labels[known, column]
        by_fact[f"{fact.kind or 'any'}: {fact.name}"] = round(float(right.mean()), 4)
    factors = [value for name, value in by_fact.items() if not name.startswith("any")]
    words = [value for name, value in by_fact.items() if name.startswith("any")]
    return SightScores(float(np.mean(factors)), float(np.mean(words)), by_fact)


def _batches(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [pixels[first : first + 256] for first in range(0, len(pixels), 256)]


def _patches(tower: CLIPVisionModel, pixels: Tensor) -> Tensor:
    """Return the last layer's patches, without the class token."""
    scaled = pixels.permute(0, 3, 1, 2).float().div(255)
    return tower(pixel_values=(scaled - MEAN) / DEVIATION).last_hidden_state[:, 1:]


def _loss(tower: CLIPVisionModel, heads: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    logits, described = heads(_patches(tower, pixels))
    loss = _PIXEL_WEIGHT * F.mse_loss(described, describe_patches(pixels))
    for column, guess in enumerate(logits):
        label = labels[:, column]
        known = label != UNKNOWN
        # Divided by all rows, not by those that know the fact: every answer counts the same.
        loss = loss + F.cross_entropy(guess[known], label[known], reduction="sum") / len(label)
    return loss


def describe_patches(pixels: Tensor) -> Tensor:
    """Return mean colour and contrast of each 4 x 4 px cell of each patch, (B, 16, 64)."""
    side = pixels.shape[1] // PATCH
    scaled = (pixels.float() / 255 - MEAN) / DEVIATION
    cut = scaled.reshape(-1, side, _CELLS, _CELL, side, _CELLS, _CELL, 3)
    cells = cut.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(
        -1, side * side, _CELLS * _CELLS, _CELL * _CELL, 3
    )
    contrast = cells.mean(4).std(3, unbiased=False)
    return torch.cat([cells.mean(3).flatten(2), contrast], 2)
