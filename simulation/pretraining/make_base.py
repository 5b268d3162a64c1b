"""Train the embedded small LLaVA: `python -m simulation.pretraining.make_base --out DIR`.

Three stages: pictures; the tower, on everything that is known of them; projector and
decoder, on questions about what the tower sees. The pictures are phantoms and crops of a few
real pictures (train regions only), so the model has no medical knowledge.
"""
# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel, LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from common.durable import DISK, write_file, writing
from common.errors import StateError
from simulation.command_line.arguments import number_from, whole_from
from simulation.command_line.exit_codes import with_exit_codes
from simulation.pretraining.make_album import Album, list_facts, make_album
from simulation.pretraining.make_language import exact_match, new_model, train_language
from simulation.pretraining.make_lessons import teacher_of
from simulation.pretraining.make_tokenizer import make_tokenizer
from simulation.pretraining.make_vision import (
    DEVIATION,
    MEAN,
    SightScores,
    score_tower,
    see,
    train_tower,
    vision_config,
)
from simulation.pretraining.score_base import zero_shot

SEED: Final = 0
_PICTURES_SCORED: Final = 600
#: An option's: with less, some kinds of pictures are missing.
SCALE: Final = number_from(0.01)
#: In the work folder: what each stage took, and the sizes of all of them.
_CLOCK: Final = "seconds.json"
_SIZES: Final = "sizes.json"
_CARD: Final = """# A small LLaVA for trying fedmslora out

{parameters:,} parameters, fp16: a CLIP tower (64 px, patches of 16, width 192, 4 layers), a
projector and a Mistral decoder (width 128, 4 layers), in transformers' own classes. It loads
with `LlavaForConditionalGeneration.from_pretrained` and asks no network.

Made from random weights by
`{command}`;
`scores.json` says how well it does and what it cost.

It has seen drawn phantoms, and crops of a few pictures that ship inside Python packages: the
pictures of the demo, of their training regions only. It was asked about dots, spots and
brightness in plain words, was told some clinical words for the phantoms, and has met the demo's
questions with random answers. **It knows no medicine. What it answers has no medical meaning**,
not even where the words sound medical.

Licence: Apache-2.0, as the rest of the repository.
"""


@dataclass(frozen=True, slots=True)
class RecipeSizes:
    """How much of everything: pictures, and steps of training."""

    phantoms: int
    crops: int
    tower_steps: int
    language_steps: int


def sizes_at(scale: float) -> RecipeSizes:
    """Return the recipe's sizes times `scale`; the repository's weights were made with 1."""
    return RecipeSizes(
        phantoms=round(32_000 * scale),
        crops=round(16_000 * scale),
        tower_steps=round(3000 * scale),
        language_steps=round(2400 * scale),
    )


def make_base(out: Path, work: Path, scale: float) -> None:
    """Write the model, its scores and its card to `out`.

    `work` keeps the weights of finished stages.

    Raises:
        StateError: `out` is there and no model, or `work` has stages of another scale.
    """
    sizes = sizes_at(scale)
    check_out(out)
    _claim(work, sizes)
    clock = Clock(work)
    with clock.timed("pictures"):
        train = make_album(sizes.phantoms, sizes.crops, SEED + 1)
        unseen = make_album(2000, 1000, SEED + 2)
    with clock.timed("tower"):
        tower, sight = _tower(work, train, unseen, sizes.tower_steps)
    with clock.timed("language"):
        tokenizer = make_tokenizer(word for seen in train.words for word in seen.values())
        model = _language(work, tower, tokenizer, train, sizes.language_steps)
    scores: dict[str, Any] = {
        "tower": {
            "factors": round(sight.factors, 4),
            "words": round(sight.words, 4),
            "by_fact": sight.by_fact,
        },
        "plain_exact_match": _plain_scores(model, tokenizer, unseen),
        "cpu_seconds": {name: round(seconds) for name, seconds in clock.seconds.items()},
        "sizes": {name: getattr(sizes, name) for name in RecipeSizes.__slots__},
        "seed": SEED,
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
    }
    place(out, partial(_save, model, tokenizer, scores, scale))


def check_out(out: Path) -> None:
    """Check that a model may be written to `out`: what is there would be replaced.

    Raises:
        StateError: something else than a model is there.
    """
    if out.exists() and not (out / "config.json").is_file():
        raise StateError(f"{out}: found something that is no model, expected a model or nothing")


def _claim(work: Path, sizes: RecipeSizes) -> None:
    """Note what the stages of `work` are made with, or check that it is this.

    Raises:
        StateError: they are those of other sizes.
    """
    file, wanted = work / _SIZES, {name: getattr(sizes, name) for name in RecipeSizes.__slots__}
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps(wanted).encode(), DISK)
    elif json.loads(file.read_bytes()) != wanted:
        raise StateError(
            f"{work}: found finished stages of another --scale, expected those of this one; use "
            "another --work"
        )


def place(out: Path, fill: Callable[[Path], None]) -> None:
    """Replace `out` by what `fill` writes, whole and at once."""
    partial_out = out.with_name(f".{out.name}.partial")
    old = out.with_name(f".{out.name}.old")
    try:
        for leftover in (partial_out, old):
            shutil.rmtree(leftover, ignore_errors=True)
        partial_out.mkdir(parents=True)
        fill(partial_out)
        if out.exists():
            out.rename(old)
        partial_out.rename(out)
    finally:
        shutil.rmtree(partial_out, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _tower(
    work: Path, train: Album, unseen: Album, steps: int
) -> tuple[CLIPVisionModel, SightScores]:
    """Return a trained tower and its scores, from `work` if they are there."""
    weights, scores = work / "tower.safetensors", work / "tower.json"
    if scores.exists():
        tower = CLIPVisionModel(vision_config()).eval()
        tower.load_state_dict(load_file(weights))
        return tower, SightScores(**json.loads(scores.read_text()))
    facts = list_facts(train)
    tower, heads = train_tower(train, facts, steps, SEED)
    sight = score_tower(tower, heads, facts, unseen)
    save_file(tower.state_dict(), weights)
    found = {name: getattr(sight, name) for name in SightScores.__slots__}
    # Last: where it is, the weights are whole.
    write_file(scores, json.dumps(found).encode(), DISK)
    return tower, sight


def _language(
    work: Path,
    tower: CLIPVisionModel,
    tokenizer: PreTrainedTokenizerFast,
    train: Album,
    steps: int,
) -> LlavaForConditionalGeneration:
    """Return the whole model with this tower, from `work` if it is there."""
    model = new_model(len(tokenizer), SEED)
    weights = work / "model.safetensors"
    if weights.exists():
        model.load_state_dict(load_file(weights))
        return model.eval()
    model.model.vision_tower.load_state_dict(tower.state_dict())
    features = see(tower, train.pixels)
    train_language(model, tokenizer, teacher_of(train), features, steps)
    unfinished = writing(weights)
    save_file(model.state_dict(), unfinished)
    unfinished.rename(weights)
    return model


def _plain_scores(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, unseen: Album
) -> dict[str, float]:
    """Return the share of plain questions about unseen pictures that are answered exactly."""
    features = see(model.model.vision_tower, unseen.pixels)
    teacher, rng = teacher_of(unseen), np.random.default_rng(SEED)
    crops = set(teacher.of_kind[None])
    chosen = rng.permutation(len(unseen.kinds))[:_PICTURES_SCORED].tolist()
    parts = {
        "phantoms": [teacher.plain_row(index, rng) for index in chosen if index not in crops],
        "crops": [teacher.plain_row(index, rng) for index in chosen if index in crops],
    }
    return {
        name: round(exact_match(model, tokenizer, part, features), 4)
        for name, part in parts.items()
    }


def _save(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    scores: Mapping[str, Any],
    scale: float,
    folder: Path,
) -> None:
    """Write everything that belongs into the model's folder, and score it as written."""
    model.half().save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors 0.8 writes files that only their owner can read
    tokenizer.save_pretrained(folder)
    image_settings().save_pretrained(folder)
    parameters = sum(weight.numel() for weight in model.parameters())
    command = f"python -m simulation.pretraining.make_base --out DIR --scale {scale:g}"
    card = _CARD.format(parameters=parameters, command=command)
    (folder / "README.md").write_text(card)
    whole = {
        "command": command,
        "parameters": parameters,
        **scores,
        "zero_shot": zero_shot(folder, SEED),
    }
    (folder / "scores.json").write_text(json.dumps(whole, indent=1) + "\n")


def image_settings() -> CLIPImageProcessorPil:
    """Return the preprocessing of a picture: 64 x 64 pixels, not cropped."""
    return CLIPImageProcessorPil(
        size={"height": 64, "width": 64},
        crop_size={"height": 64, "width": 64},
        do_center_crop=False,
        image_mean=[MEAN] * 3,
        image_std=[DEVIATION] * 3,
    )


class Clock:
    """The CPU seconds of each stage, kept in `work`."""

    def __init__(self, work: Path) -> None:
        """Read what the stages that are finished took."""
        self._file = work / _CLOCK
        self.seconds: dict[str, float] = (
            json.loads(self._file.read_bytes()) if self._file.exists() else {}
        )

    @contextmanager
    def timed(self, name: str) -> Generator[None]:
        """Record the stage's seconds at its end, unless an earlier run has recorded them."""
        started = time.process_time()
        yield
        self.seconds.setdefault(name, time.process_time() - started)
        write_file(self._file, json.dumps(self.seconds).encode(), DISK)
        print(f"{name}: {self.seconds[name]:.0f} CPU s")


@with_exit_codes
def main() -> int:
    """Run the command line; exit code 2 for an error that the user can correct."""
    parser = argparse.ArgumentParser(
        prog="python -m simulation.pretraining.make_base", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="the model's folder")
    parser.add_argument("--work", type=Path, help="remembers finished stages [OUT.work]")
    parser.add_argument("--scale", type=SCALE, default=1.0, help="of pictures and steps [1]")
    parser.add_argument("--threads", type=whole_from(1), default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    out = given.out.resolve()
    work = given.work or out.with_name(f"{out.name}.work")
    make_base(out, work, given.scale)
    return 0


if __name__ == "__main__":
    sys.exit(main())
