"""One question about one picture, answered by the stage of a bank that the picture is like."""
# pyright: reportUnknownMemberType=false

from dataclasses import dataclass
from pathlib import Path

import torch

from client.data.task import Example
from client.inference.generate import answer
from client.inference.image_prototype import picture_feature
from client.inference.router import Routing, route
from client.model.base_digest import base_digest
from client.model.llava import BaseModel, load_base
from common.bank.bank import Bank
from common.bank.release import Release
from common.errors import BankError, DataError, ModelError
from common.metrics import AnswerKind
from common.plan import Router, VisionWeights
from common.plan_fields import Composition, Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """What is asked.

    Attributes:
        stage: the release that is to answer, by name or position; None lets the picture choose.
        vision: whose tower a LLaVA-Med in its original layout gets: what the bank's plan said.
    """

    image: Path
    question: str
    stage: str | None
    max_new_tokens: int
    vision: VisionWeights = VisionWeights.OPENAI


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of it; `routing` is None where the stage was told."""

    text: str
    release: Release
    routing: Routing | None


def ask(bank: Bank, base_model: Path, inquiry: Inquiry) -> Reply:
    """The answer of the base model with all that the stage sums.

    Raises:
        BankError: no such stage, a bank without prototypes where one is to be chosen, or one
            that was changed.
        ModelError: the base model is not the bank's.
        DataError: the picture or the question can't be used.
    """
    told = None if inquiry.stage is None else bank.named(inquiry.stage)
    prototypes = bank.prototypes() if told is None else {}
    if told is None and not prototypes:
        raise BankError(
            f"{bank.folder}: found no prototype in its {len(bank.releases)} releases, so no stage "
            "can be chosen from the image; expected --stage, or a bank of a plan with a router"
        )
    _check(bank, base_model, inquiry)
    model = _loaded(base_model, inquiry.vision)
    if told is not None:
        return Reply(_answered(model, bank, told, inquiry), told, None)
    feature = picture_feature(model, inquiry.image)
    routing = route(feature, prototypes, Router().temperature)
    release = bank.release(routing.best.stage)
    return Reply(_answered(model, bank, release, inquiry), release, routing)


def _answered(model: BaseModel, bank: Bank, release: Release, inquiry: Inquiry) -> str:
    """The answer of the base model with the sum for this release."""
    model.adapted.silence()
    model.adapted.freeze([bank.adapter(stage) for stage in release.sums], Composition.FOLD)
    # The true answer is what nobody knows; it is not looked at.
    asked = Example("1", inquiry.image, inquiry.question, "", AnswerKind.OPEN)
    (text,) = answer(model, [asked], inquiry.max_new_tokens, 1)
    return text


def _check(bank: Bank, base_model: Path, inquiry: Inquiry) -> None:
    """What is cheap to find wrong, before a model is loaded."""
    if not inquiry.question.strip():
        raise DataError("question: found nothing, expected a question")
    if not inquiry.image.is_file():
        raise DataError(f"{inquiry.image}: found no file, expected a picture")
    found, pin = base_digest(base_model), bank.base_model
    if found != pin.sha256:
        raise ModelError(
            f"{base_model}: found a base model with digest {found}, expected the bank's "
            f"{pin.name}, {pin.sha256}"
        )


def _loaded(folder: Path, vision: VisionWeights) -> BaseModel:
    """In 16 bits on a GPU, where large models are; in 32 on a CPU."""
    if torch.cuda.is_available():
        return load_base(folder, Precision.BF16, torch.device("cuda"), vision)
    return load_base(folder, Precision.FP32, torch.device("cpu"), vision)
