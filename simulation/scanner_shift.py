"""Measures what another hospital's scanner costs: a linear probe on the frozen vision tower.

    python -m simulation.scanner_shift --strength 0.5 --seeds 2 phantoms/CXP pictures/bone

The probe learns a task's commonest question from one hospital's training pictures. It is scored on
the same test pictures as each of four hospitals' scanners show them, so that only the scanner
differs. No adapter is trained: it takes seconds, and says whether a shift is one.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from client.backbones.registry import load_backbone
from client.model.backbone import Backbone
from common.identity import seed_for
from common.plan.plan import VisionWeights
from common.plan_fields import Precision
from simulation.command_line.arguments import number_from, whole_from
from simulation.command_line.exit_codes import with_exit_codes
from simulation.data_sources import data_source
from simulation.heterogeneity.scanner import draw_scanner, scan
from simulation.hospitals import BASE_MODELS
from simulation.task_folder.write_task import Question

HOSPITALS: Final = ("a", "b", "c", "d")
#: Most training and test pictures.
TRAIN: Final = 150
TEST: Final = 120
#: Weight of the squared coefficients, features having variance 1. Not tuned.
RIDGE: Final = 30.0

_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class Shift:
    """Accuracies of one task and seed, fractions.

    Attributes:
        own: at the scanner of the training pictures; its mean over the hospitals.
        other: at another's; its mean over the pairs of hospitals.
        joined: at the last hospital's, trained on the pictures of all the others.
    """

    own: float
    other: float
    joined: float
    questions: int


def ridge_probe(
    features: NDArray[np.float64], answers: Sequence[str], asked: NDArray[np.float64]
) -> list[str]:
    """Fit a linear classifier by least squares on one-hot answers, and answer `asked`.

    Args:
        features: (examples, V); standardized by their own mean and deviation.
        asked: (questions, V).
    """
    classes = sorted(set(answers))
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    x, z = (features - mean) / deviation, (asked - mean) / deviation
    targets = np.array([[answer == one for one in classes] for answer in answers], np.float64)
    gram = x.T @ x + RIDGE * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ (targets - targets.mean(0)))
    scores: NDArray[np.float64] = z @ weights + targets.mean(0)
    return [classes[place] for place in scores.argmax(1).tolist()]


def measure(source: str, task: str, strength: float, seed: int) -> Shift:
    """Measure the shift of one task with one seed.

    Raises:
        PlanError, DataError: there is no such source, or no such task in it.
    """
    made = data_source(source, "the probe").questions(task, 0, 1, seed)
    text = Counter(question.question for question in made[0]).most_common(1)[0][0]
    train, test = (
        [question for question in part if question.question == text][:most]
        for part, most in zip(made, (TRAIN, TEST), strict=True)
    )
    learned, truths = [q.answer for q in train], np.array([q.answer for q in test])
    seen = {name: [_features(part, seed, name, strength) for part in (train, test)]
            for name in HOSPITALS}  # fmt: skip

    def score(names: Sequence[str], at: str) -> float:
        features = np.concatenate([seen[name][0] for name in names])
        found = ridge_probe(features, learned * len(names), seen[at][1])
        return float((np.array(found) == truths).mean())

    pairs = {(name, at): score([name], at) for name in HOSPITALS for at in HOSPITALS}
    return Shift(
        own=float(np.mean([one for (name, at), one in pairs.items() if name == at])),
        other=float(np.mean([one for (name, at), one in pairs.items() if name != at])),
        joined=score(HOSPITALS[:-1], HOSPITALS[-1]),
        questions=len(test),
    )


@cache
def _model() -> Backbone:
    folder = BASE_MODELS["tiny-llava"]
    return load_backbone(folder, Precision.FP32, torch.device("cpu"), VisionWeights.OPENAI)


def _features(
    questions: Sequence[Question], seed: int, hospital: str, strength: float
) -> NDArray[np.float64]:
    """Return mean and deviation over patches of the tower's features, (questions, 2 V)."""
    model = _model()
    scanner = draw_scanner(seed, hospital, strength)
    found: list[NDArray[np.float64]] = []
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / f"{place}.png" for place in range(len(questions))]
        for file, question in zip(files, questions, strict=True):
            grain = seed_for(seed, "probe", hospital, question.group)
            image = question.image if scanner is None else scan(question.image, scanner, grain)
            Image.fromarray(image).save(file)
        for first in range(0, len(files), _BATCH):
            patches = model.image_features(files[first : first + _BATCH]).double().numpy()
            found.append(np.concatenate([patches.mean(1), patches.std(1)], axis=1))
    return np.concatenate(found)


def source_and_task(text: str) -> tuple[str, str]:
    """Return the two words of SOURCE/TASK, as argparse's `type`.

    Raises:
        ArgumentTypeError: there are not two.
    """
    source, slash, task = text.partition("/")
    if not (source and slash and task) or "/" in task:
        raise argparse.ArgumentTypeError(f"found {text[:60]!r}, expected one such as phantoms/CXP")
    return source, task


def _print_shifts(given: argparse.Namespace) -> None:
    for source, task in given.tasks:
        found = [measure(source, task, given.strength, seed) for seed in range(given.seeds)]
        own, other, joined = (
            100 * np.mean([getattr(one, field) for one in found])
            for field in ("own", "other", "joined")
        )
        print(
            f"{source}/{task}, strength {given.strength}, {given.seeds} seeds, "
            f"n {found[0].questions}: own scanner {own:.1f}, another's {other:.1f}, "
            f"a new one after three others {joined:.1f}",
            flush=True,
        )


@with_exit_codes
def main() -> int:
    """Print a line for each task; exit code 2 for an error that the user can correct."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+", type=source_and_task, metavar="SOURCE/TASK")
    parser.add_argument("--strength", type=number_from(0), default=0.5)
    parser.add_argument("--seeds", type=whole_from(1), default=2)
    given = parser.parse_args()
    _print_shifts(given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
