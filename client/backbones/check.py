"""Whether a base model works here: each thing that is asked of it, really tried on a made picture.

Nothing is kept: adapters are attached, trained for three steps and detached again.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import nn

from client.backbones.registry import load_backbone
from client.data.task import Example
from client.inference.image_prototype import image_feature
from client.model.backbone import Backbone
from client.model.base_digest import base_digest
from client.model.kinds import base_kind
from client.model.lora_init import kaiming_adapter
from client.model.pretrained import check_memory
from client.training.language import LanguageBackbone
from client.training.optimizer import backward
from common.errors import ModelError, Refusal
from common.metrics import AnswerKind
from common.plan.plan import VisionWeights
from common.plan_fields import Composition, Precision
from common.printable import one_line
from common.rules.interface import Factor

#: An adapter's rank, the steps that it is trained for, and their learning rate.
_RANK, _STEPS, _RATE = 2, 3, 0.01
_ASKED: Final = (("is it 'red' or 'blue' ?", "red"), ("what is this ?", "blue"))
_OPTIONS: Final = ("red", "blue")


@dataclass(frozen=True, slots=True)
class Tried:
    """A thing that was tried: whether it works, and what came out or what is wrong."""

    name: str
    works: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What is in a base model's folder.

    Attributes:
        kind: `model_type` of config.json.
        name: as a person would say.
        parameters: number of weights by part of the model.
        layers: number of layers that adapters attach to.
        packs: whether a picture's questions share a row in training; None of one that writes none.
        tried: in order; what comes after a failure is not tried if it needs it.
    """

    kind: str
    name: str
    digest: str
    parameters: Mapping[str, int]
    layers: int
    packs: bool | None
    tried: list[Tried] = field(default_factory=list[Tried])

    @property
    def works(self) -> bool:
        """Whether all that was tried works."""
        return all(one.works for one in self.tried)


def check_model(
    folder: Path, precision: Precision, device: torch.device, vision: VisionWeights
) -> ModelFacts:
    """Load the model in `folder` and try what is asked of a base model.

    Raises:
        ModelError: it is of no known kind, too large for the memory, or can't be loaded.
    """
    kind, digest = base_kind(folder), base_digest(folder)
    if device.type == "cpu":
        check_memory(folder, precision)
    backbone = load_backbone(folder, precision, device, vision)
    facts = ModelFacts(
        kind=kind,
        name=backbone.kind,
        digest=digest,
        parameters=_parameters(backbone),
        layers=len(backbone.adapted.layers),
        packs=backbone.packs if isinstance(backbone, LanguageBackbone) else None,
    )
    with TemporaryDirectory() as scratch:
        facts.tried.extend(_try_all(backbone, [*_questions(Path(scratch))]))
    return facts


def _try_all(backbone: Backbone, questions: Sequence[Example]) -> Generator[Tried]:
    first = questions[0]
    trials: list[tuple[str, Callable[[], str]]] = [
        ("picture", lambda: _features(backbone, first.image)),
        ("answers", lambda: _answers(backbone, questions)),
        ("options", lambda: _options(backbone, first)),
    ]
    if isinstance(backbone, LanguageBackbone):
        trials += [
            ("training", lambda: _training(backbone, questions)),
            ("packing", lambda: _packing(backbone, questions)),
        ]
    trials.append(("adapters", lambda: _adapters(backbone, first)))
    for name, trial in trials:
        try:
            yield Tried(name, True, trial())
        except Refusal as refusal:
            yield Tried(name, False, str(refusal))
        # A foreign class may raise anything.
        except Exception as error:
            yield Tried(name, False, f"{type(error).__name__}: {one_line(error)}")


def _features(backbone: Backbone, image: Path) -> str:
    found, _ = backbone.image_features([image]), image_feature(backbone, image)
    return f"{found.shape[1]} x {found.shape[2]} features to choose a stage by"


def _answers(backbone: Backbone, questions: Sequence[Example]) -> str:
    alone = [backbone.answer([one], 4, 1)[0].text for one in questions]
    together = [one.text for one in backbone.answer(questions, 4, len(questions))]
    if alone != together:
        raise ModelError(f"found {together} in a batch and {alone} one by one, expected the same")
    return f"{len(questions)} questions, the same in a batch as one by one"


def _options(backbone: Backbone, question: Example) -> str:
    (found,) = backbone.answer([question], 1, 1)
    scores = found.class_scores
    if (
        scores is None
        or set(scores) != set(_OPTIONS)
        or not np.isfinite(list(scores.values())).all()
    ):
        raise ModelError(f"found the scores {scores}, expected a number for each of {_OPTIONS}")
    return "a score for each"


def _training(backbone: LanguageBackbone, questions: Sequence[Example]) -> str:
    batch, loss = backbone.batches(questions).collate(range(len(questions))), backbone.loss()
    with _attached(backbone), backbone.checkpointed():
        optimizer = torch.optim.AdamW(backbone.adapted.trainable_parameters(), lr=_RATE)
        losses: list[float] = []
        for _ in range(_STEPS + 1):
            optimizer.zero_grad()
            found = loss(batch)
            backward(found)
            optimizer.step()
            losses.append(found.item())
    if not losses[-1] < losses[0]:
        raise ModelError(f"found the loss {losses[0]:.3f} then {losses[-1]:.3f}, expected less")
    return f"the loss falls from {losses[0]:.3f} to {losses[-1]:.3f} in {_STEPS} steps"


def _packing(backbone: LanguageBackbone, questions: Sequence[Example]) -> str:
    if not backbone.packs:
        return "not for this kind: each question is a row"
    everything, loss = range(len(questions)), backbone.loss()
    with torch.no_grad():
        packed = loss(backbone.batches(questions, packing=True).collate(everything)).item()
        single = loss(backbone.batches(questions).collate(everything)).item()
    if not np.isclose(packed, single, rtol=1e-3):
        raise ModelError(f"found the loss {packed:.4f} packed and {single:.4f}, expected the same")
    return "the loss of packed rows is that of single ones"


def _adapters(backbone: Backbone, question: Example) -> str:
    before = _said(backbone, question)
    with _attached(backbone):
        adapter = backbone.adapted.attached_adapter()
    for pair in adapter.pairs.values():
        pair.b[:] = np.random.default_rng(1).normal(0, 0.1, pair.b.shape)
    backbone.adapted.freeze_adapters([adapter], Composition.FOLD)
    try:
        folded = _said(backbone, question)
    finally:
        backbone.adapted.freeze_adapters([], Composition.FOLD)
    if folded == before or _said(backbone, question) != before:
        raise ModelError("found an adapter without effect, or that stays, expected neither")
    return "change what it says, and leave it as it was when they are removed"


def _said(backbone: Backbone, question: Example) -> Any:  # noqa: ANN401 - compared alone
    (found,) = backbone.answer([question], 1, 1)
    return dict(found.class_scores or {})


@contextmanager
def _attached(backbone: Backbone) -> Generator[None]:
    fresh = kaiming_adapter(backbone.adapted.layer_shapes(), _RANK, 1.0, 0)
    backbone.adapted.attach(fresh, Factor.BOTH)
    try:
        yield
    finally:
        backbone.adapted.detach()


def _parameters(backbone: Backbone) -> dict[str, int]:
    """Return the number of weights of each part: a network's children, one level down."""
    network = getattr(backbone, "model", None)
    network = getattr(network, "network", None) or getattr(network, "towers", None)
    if not isinstance(network, nn.Module):
        return {}
    parts: dict[str, nn.Module] = {}
    for name, child in network.named_children():
        inner = dict(child.named_children()) if name in ("model", "network") else {}
        parts |= inner or {name: child}
    # Tied weights count once, where they come first.
    seen: set[int] = set()
    found: dict[str, int] = {}
    for name, part in parts.items():
        own = [p for p in part.parameters() if id(p) not in seen]
        seen |= {id(p) for p in own}
        found[name] = sum(p.numel() for p in own)
    found["others"] = sum(p.numel() for p in network.parameters() if id(p) not in seen)
    return {name: count for name, count in found.items() if count}


def _questions(folder: Path) -> Generator[Example]:
    """Yield two questions about one picture, and one about another of another size."""
    for number, size in enumerate(((96, 64), (64, 64))):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        file = folder / f"{number}.png"
        Image.fromarray(pixels).save(file)
        for question, answer in _ASKED[: 2 - number]:
            yield Example(f"{number}", file, question, answer, AnswerKind.CLOSED, _OPTIONS)
