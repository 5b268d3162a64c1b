"""Questions about pictures, answered by the stage of a bank that picture and question are like.

A bank whose releases name their method answers by it, with a class: the question's words play no
part, and no router is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, cast

import torch

from client.backbones.registry import load_backbone
from client.data.file_modality import HeaderFacts
from client.data.images import load_image
from client.data.task import Example
from client.inference.image_prototype import picture_of
from client.inference.question_likeness import QuestionLikeness
from client.inference.router import PictureRouter, RoutedStage, Routing
from client.model.backbone import Backbone, Prediction
from client.model.base_digest import base_digest
from client.model.pretrained import check_memory
from client.orders.answer_by_method import (
    answer_by_method,
    has_method,
    plan_to_answer,
    release_of_class,
)
from client.site.own_b import latest
from common.adapter import AdapterSource
from common.bank.bank import Bank
from common.bank.release import Release
from common.errors import BankError, DataError, ModelError
from common.metrics import AnswerKind
from common.partial_adapter import joined
from common.plan.plan import Router, VisionWeights
from common.plan_fields import Composition, Precision
from common.printable import has_broken_letter


@dataclass(frozen=True, slots=True, kw_only=True)
class AskSettings:
    """How a bank's base model is loaded, and whose adapters answer.

    Attributes:
        vision: whose tower a LLaVA-Med in its original layout gets: what the bank's plan said.
        precision: of the base model; None: 16 bits on a GPU, 32 on a CPU.
        store: a site's, whose own B answers in place of the release's, where there is one
            (docs/adr/0019-own-b.md).
    """

    vision: VisionWeights = VisionWeights.OPENAI
    precision: Precision | None = None
    store: Path | None = None


#: Those of a model in transformers' layout, at no site in particular.
USUAL: Final = AskSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """A question about a picture.

    Attributes:
        stage: the release that is to answer, by name or position; None lets the picture choose.
    """

    image: Path
    question: str
    stage: str | None
    max_new_tokens: int
    settings: AskSettings = USUAL


@dataclass(frozen=True, slots=True)
class BankAnswer:
    """The release that answered, and its prediction; `routing` is None where no router chose.

    Attributes:
        release: of an answer by the method, the one told or else the one that learned the class.
        own_b: whether the site's own B was in place of the release's.
        unlike_question: why the question is unlike those that the release lists; empty where it is
            like one, None where it lists none.
    """

    prediction: Prediction
    release: Release
    routing: Routing | None
    own_b: bool
    by_method: bool = False
    unlike_question: str | None = None


class ResidentBank:
    """A bank and its base model, loaded once for many questions; for one thread at a time."""

    def __init__(self, bank: Bank, base_model: Path, settings: AskSettings = USUAL) -> None:
        """Load the base model.

        Raises:
            ModelError: the base model is not the bank's, is too large for the machine's memory, or
                can't be loaded.
        """
        found, pin = base_digest(base_model), bank.base_model
        if found != pin.sha256:
            raise ModelError(
                f"{base_model}: found a base model with digest {found}, expected the bank's "
                f"{pin.name}, {pin.sha256}"
            )
        cuda = torch.cuda.is_available()
        precision = settings.precision or (Precision.BF16 if cuda else Precision.FP32)
        if not cuda:
            check_memory(base_model, precision)
        device = torch.device("cuda" if cuda else "cpu")
        self.bank = bank
        self.backbone = load_backbone(base_model, precision, device, settings.vision)
        self._store = settings.store
        self._frozen: tuple[Release, bool] | None = None

    @cached_property
    def _router(self) -> PictureRouter:
        releases = self.bank.releases
        stages = {
            stage: RoutedStage(
                prototype,
                releases[stage].modality,
                releases[stage].name,
                releases[stage].body_parts,
            )
            for stage, prototype in self.bank.prototypes().items()
        }
        return PictureRouter(stages, Router().temperature, self._questions)

    @cached_property
    def _questions(self) -> QuestionLikeness:
        return QuestionLikeness(
            {release.stage: release.questions or () for release in self.bank.releases}
        )

    def route(self, image: Path, question: str, facts: HeaderFacts | None = None) -> Routing:
        """Return the stages that the picture and the question are like, the likeliest first.

        Args:
            facts: what its header says; by default what the file's own does.

        Raises:
            BankError: no release has a prototype of this base model, or one was changed.
            DataError: the picture can't be read.
        """
        return self._router.route(picture_of(self.backbone, image, facts), question)

    def freeze(self, release: Release) -> bool:
        """Freeze the adapters that the release sums into the model.

        Nothing is read or computed for the release of the call before. Returns whether the site's
        own B is in place of the release's (docs/adr/0019-own-b.md).

        Raises:
            BankError: an adapter was changed, or has more than low-rank factors.
        """
        if self._frozen is None or self._frozen[0] != release:
            self._frozen = None
            own = None if self._store is None else latest(self._store, release.plan, release.stage)
            freeze_release(self.backbone, self.bank, release, own)
            self._frozen = release, own is not None
        return self._frozen[1]

    def answer(
        self, release: Release, questions: Sequence[tuple[Path, str]], max_new_tokens: int
    ) -> list[BankAnswer]:
        """Answer questions about pictures by a release; a picture's questions share its prefix.

        Raises:
            BankError: as `freeze`.
            DataError: a picture or a question can't be used.
        """
        own_b = self.freeze(release)
        # The true answer is not known, and not looked at.
        asked = [
            Example(str(number), image, question, "", AnswerKind.OPEN)
            for number, (image, question) in enumerate(questions)
        ]
        predictions = self.backbone.answer(asked, max_new_tokens, len(asked))
        names = [one.name for one in self.bank.releases]
        unlike = [
            self._questions.reason_unlike(text, release.stage, names) for _, text in questions
        ]
        return [
            BankAnswer(one, release, None, own_b, unlike_question=reason)
            for one, reason in zip(predictions, unlike, strict=True)
        ]

    def classify(self, told: Release | None, image: Path) -> BankAnswer:
        """Answer by the method that the releases name: with a class of the picture.

        Args:
            told: the release whose classes alone are asked; None asks among those of all.

        Raises:
            BankError: the releases do not name one method that is installed here, a class is in
                two of them and none is told, or an adapter was changed.
            DataError: the picture can't be read.
        """
        bank, store = self.bank, self._store
        plan = plan_to_answer(bank, told)
        self._frozen = None
        own = {
            release.stage: part
            for release in bank.releases
            if store is not None
            and (part := latest(store, release.plan, release.stage)) is not None
        }
        asked = Example("1", image, "", "", AnswerKind.OPEN)
        prediction = answer_by_method(self.backbone, bank, plan, asked, own)
        release = told or release_of_class(bank, prediction.text)
        return BankAnswer(prediction, release, None, bool(own), by_method=True)


def ask(bank: Bank, base_model: Path, inquiry: Inquiry) -> BankAnswer:
    """Answer with the base model and all adapters that the stage was trained with.

    Raises:
        BankError: no such stage, a bank without prototypes where one is to be chosen, or one
            that was changed.
        ModelError: the base model is not the bank's, or too large for the machine's memory.
        DataError: the picture or the question can't be used.
    """
    told = None if inquiry.stage is None else bank.named(inquiry.stage)
    by_method = has_method(bank)
    if by_method:
        plan_to_answer(bank, told)
    elif told is None and not bank.prototypes():
        raise BankError(
            f"{bank.folder}: found no prototype in its {len(bank.releases)} releases, so no stage "
            "can be chosen from the image; expected --stage, or a bank of a plan with a router"
        )
    # Checked before a model is loaded.
    if not by_method:
        check_question(inquiry.question)
    if not inquiry.image.is_file():
        raise DataError(f"{inquiry.image}: found no file, expected an image")
    load_image(inquiry.image)
    resident = ResidentBank(bank, base_model, inquiry.settings)
    if by_method:
        return resident.classify(told, inquiry.image)
    routing = resident.route(inquiry.image, inquiry.question) if told is None else None
    release = told or bank.release(cast(Routing, routing).best.stage)
    asked = [(inquiry.image, inquiry.question)]
    (answer,) = resident.answer(release, asked, inquiry.max_new_tokens)
    return replace(answer, routing=routing)


def check_question(question: object) -> None:
    """Check that a question is text.

    Raises:
        DataError: it is none, or empty, or has half of a surrogate pair, as Python has it for a
            byte that is no UTF-8.
    """
    if not isinstance(question, str) or not question.strip():
        raise DataError("question: found nothing, expected a question")
    if has_broken_letter(question):
        raise DataError("question: found a byte or half a letter that is no UTF-8, expected text")


def freeze_release(
    backbone: Backbone, bank: Bank, release: Release, own: AdapterSource | None = None
) -> None:
    """Freeze the adapters that the release sums into the model.

    `own` are the B's in place of the release's own.

    Raises:
        BankError: an adapter was changed, or has more than low-rank factors.
    """
    backbone.adapted.detach()
    summed: list[AdapterSource] = [bank.adapter(stage) for stage in release.sums]
    if extras := [name for adapter in summed for name in adapter.extra_names]:
        raise BankError(
            f"{bank.folder}, release {release.folder}: found arrays beside its LoRA ({extras[0]}), "
            "expected none: such a release answers by its method, and this one does not name it"
        )
    if own is not None:
        place = release.sums.index(release.stage)
        summed[place] = joined(summed[place], own)
    backbone.adapted.freeze_adapters(summed, Composition.FOLD)
