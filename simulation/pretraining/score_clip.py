"""Zero-shot scores of a CLIP: over names that it has learned, and on tasks as they are asked."""
# pyright: reportUnknownMemberType=false

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import torch
from torch import Tensor

from client.backbones.clip import load
from client.data.task import TaskData, read_task
from client.model.clip.load import load_clip
from client.model.clip.model import ClipModel
from client.orders.option_metrics import with_options
from common.metrics import majority_answers
from common.plan.plan import VisionWeights
from common.plan_fields import Precision
from simulation.phantoms import source as phantoms
from simulation.phantoms.captions import caption
from simulation.phantoms.factors import FACTORS, ImageKind
from simulation.pictures import source as pictures
from simulation.pictures.tasks import MEASURED
from simulation.pretraining.make_album import Album
from simulation.pretraining.make_vision import DEVIATION, MEAN
from simulation.task_folder.write_task import Question, write_task

#: The factor of each kind whose values are the classes over all kinds together.
CLASSES: Final[Mapping[ImageKind, str]] = {
    ImageKind.HISTOLOGY: "tissue",
    ImageKind.CHEST_XRAY: "haze",
    ImageKind.ABDOMEN_CT: "contrast",
    ImageKind.CHEST_CT: "effusion",
    ImageKind.BRAIN_MR: "plane",
    ImageKind.ULTRASOUND: "grain",
    ImageKind.FUNDUS: "disc",
    ImageKind.SKIN_PHOTO: "colour",
    ImageKind.DERMOSCOPY: "structure",
}
_TASKS: Final = ("PCAM", "CXP", "HAM")


def by_names(folder: Path, album: Album, template: str) -> dict[str, dict[str, float]]:
    """Return the accuracy over a factor's names, by kind and factor, and over all classes.

    "all classes" asks of every picture which of all kinds' `CLASSES` it has, without saying of
    which kind it is. Beside each is the share of the commonest.
    """
    model = load_clip(folder, Precision.FP32, torch.device("cpu"))
    images = _embedded(model, album)
    found: dict[str, dict[str, float]] = {}
    for kind, factors in FACTORS.items():
        rows = [row for row, own in enumerate(album.kinds) if own is kind]
        for name, values in factors.items():
            texts = _texts(model, [template.format(caption(kind, {name: v})) for v in values])
            labels = np.array([values.index(album.factors[row][name]) for row in rows])
            found[f"{kind}: {name}"] = _share(images[rows] @ texts.T, labels)
    classes = [(kind, value) for kind, name in CLASSES.items() for value in FACTORS[kind][name]]
    named = [template.format(caption(kind, {CLASSES[kind]: value})) for kind, value in classes]
    own = [
        (kind, album.factors[row][CLASSES[kind]]) for row, kind in enumerate(album.kinds) if kind
    ]
    labels = np.array([classes.index(one) for one in own])
    return {"all classes": _share(images @ _texts(model, named).T, labels), **found}


def by_task(folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Return the accuracy on closed questions with options, in the words of their answers."""
    asked = {
        **{f"phantoms: {name}": phantoms.phantom_questions(name, 0, 1, seed) for name in _TASKS},
        **{f"pictures: {t.name}": pictures.picture_questions(t.name, 0, 1, seed) for t in MEASURED},
    }
    return {name: _task(folder, *questions) for name, questions in asked.items()}


@torch.inference_mode()
def _embedded(model: ClipModel, album: Album) -> Tensor:
    found: list[Tensor] = []
    for start in range(0, len(album.pixels), 256):
        pixels = torch.from_numpy(album.pixels[start : start + 256]).permute(0, 3, 1, 2)
        found.append(model.image_embeddings((pixels.float() / 255 - MEAN) / DEVIATION))
    return torch.cat(found)


@torch.inference_mode()
def _texts(model: ClipModel, texts: Sequence[str]) -> Tensor:
    return model.text_embeddings(texts)


def _share(logits: Tensor, labels: np.ndarray[tuple[int], np.dtype[np.int64]]) -> dict[str, float]:
    right = float((logits.argmax(1).numpy() == labels).mean())
    commonest = Counter(labels.tolist()).most_common(1)[0][1] / len(labels)
    return {"accuracy": round(right, 4), "majority": round(commonest, 4)}


def _task(folder: Path, train: list[Question], test: list[Question]) -> dict[str, float]:
    with TemporaryDirectory() as scratch:
        write_task(Path(scratch) / "task", train, test)
        task: TaskData = read_task(Path(scratch) / "task")
        asked = [one for one in with_options(task) if one.options]
        backbone = load(folder, Precision.FP32, torch.device("cpu"), VisionWeights.OPENAI)
        said = [one.text for one in backbone.answer(asked, 1, 64)]
    guess = majority_answers([(one.question, one.answer) for one in task.train])
    truths = [one.answer for one in asked]
    guessed = [guess(one.question) for one in asked]
    return {
        "accuracy": _equal(said, truths),
        "majority": _equal(guessed, truths),
        "questions": len(asked),
    }


def _equal(said: Sequence[str], truths: Sequence[str]) -> float:
    return round(sum(a == b for a, b in zip(said, truths, strict=True)) / len(truths), 4)
