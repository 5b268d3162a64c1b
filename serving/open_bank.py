"""The Python API: `fedmslora.open_bank(path).model(stage).ask(image, question)`."""
# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from client.data.task import Example
from client.orders.answer_by_method import has_method
from client.orders.ask import USUAL, AskSettings, ResidentBank, check_question
from client.training.language import LanguageBackbone
from common.bank.bank import Bank
from common.bank.release import Release
from common.errors import DataError, ModelError
from common.methods.interface import BaseRole
from common.metrics import AnswerKind
from serving.memory_picture import picture_in_memory

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

    from client.inference.router import Routing
    from client.orders.ask import BankAnswer

#: A picture: a file, the bytes of a file, or an image of Pillow's.
Picture: TypeAlias = "str | Path | bytes | PilImage"

#: What every answer says of itself.
NOTICE: Final = (
    "Research software, no medical device: no answer may be used for the care of a patient."
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, and which stage of the bank gave it.

    Attributes:
        confidence: the router's probability of the stage; None where the stage was given.
        known: whether the picture is like training pictures of any stage; None as above.
        reason: why it is not; empty where it is, or where the stage was given.
        question_known: whether the question is like one of those that the stage lists; None where
            it lists none.
        question_reason: why it is not; empty where it is, or where the stage lists none.
        probabilities: the router's probability of each stage, the likeliest first.
        head: the bank's, which names all its bytes.
        complete: whether the answer ended by itself, before `max_new_tokens`.
    """

    text: str
    stage: str
    modality: str
    confidence: float | None
    known: bool | None
    probabilities: Mapping[str, float]
    head: str
    complete: bool
    reason: str = ""
    question_known: bool | None = None
    question_reason: str = ""
    notice: str = NOTICE


class OpenBank:
    """A bank that is open for questions; its base model is loaded with the first one.

    Several threads may use it: it answers them one after another.
    """

    def __init__(self, bank: Bank, base_model: Path, settings: AskSettings = USUAL) -> None:
        """Take an open bank, and the folder of its base model."""
        self.bank = bank
        self.base_model = base_model
        self._settings = settings
        self._lock = Lock()

    @property
    def releases(self) -> tuple[Release, ...]:
        """The bank's releases, oldest first."""
        return self.bank.releases

    @property
    def head(self) -> str:
        """The hash that names the bank with all its releases."""
        return self.bank.head

    def model(self, stage: str | int) -> StageModel:
        """Return the model of a stage, by its name or 0-based position.

        Raises:
            BankError: the bank has no such release.
        """
        return StageModel(self, self.bank.named(str(stage)))

    def ask(self, image: Picture, question: str, *, max_new_tokens: int = 64) -> Answer:
        """Answer with the stage that the picture and the question are most like.

        A bank whose releases name their method answers with one of all its classes instead.

        Raises:
            BankError: the bank has no image prototypes: give a stage, with `model(stage).ask`.
            DataError: the picture or the question can't be used.
            ModelError: the base model is not the bank's.
        """
        _check_asked(question, max_new_tokens)
        with _as_file(image) as file, self._lock:
            if has_method(self.bank):
                named = self.resident.classify(None, file)
                return answer_of(self.bank, named, None, max_new_tokens)
            routing = self.resident.route(file, question)
            release = self.bank.release(routing.best.stage)
            (answer,) = self.resident.answer(release, [(file, question)], max_new_tokens)
        return answer_of(self.bank, answer, routing, max_new_tokens)

    @cached_property
    def resident(self) -> ResidentBank:
        """The loaded bank; use it from one thread at a time."""
        return ResidentBank(self.bank, self.base_model, self._settings)

    @contextmanager
    def loaded(self) -> Generator[ResidentBank]:
        """Have the model for this thread alone."""
        with self._lock:
            yield self.resident

    @contextmanager
    def frozen(self, release: Release) -> Generator[ResidentBank]:
        """Have the model with the adapters of a release, for this thread alone."""
        with self._lock:
            self.resident.freeze(release)
            yield self.resident


@dataclass(frozen=True, slots=True)
class StageModel:
    """The model of one stage: the base model and all adapters that the stage sums."""

    _bank: OpenBank
    release: Release

    def ask(self, image: Picture, question: str, *, max_new_tokens: int = 64) -> Answer:
        """Answer a question about a picture, greedily decoded.

        Raises:
            DataError: the picture or the question can't be used.
            ModelError: the base model is not the bank's.
        """
        return self.ask_all(image, [question], max_new_tokens=max_new_tokens)[0]

    def ask_all(
        self, image: Picture, questions: Sequence[str], *, max_new_tokens: int = 64
    ) -> list[Answer]:
        """Answer several questions about a picture together, which takes little longer than one.

        Raises:
            DataError: the picture or a question can't be used.
            ModelError: the base model is not the bank's.
        """
        for question in questions:
            _check_asked(question, max_new_tokens)
        if self.release.method is not None:
            with _as_file(image) as file, self._bank.loaded() as resident:
                answers = [resident.classify(self.release, file)] * len(questions)
        else:
            with _as_file(image) as file, self._bank.frozen(self.release) as resident:
                asked = [(file, question) for question in questions]
                answers = resident.answer(self.release, asked, max_new_tokens)
        return [answer_of(self._bank.bank, one, None, max_new_tokens) for one in answers]

    def logits(self, image: Picture, question: str) -> npt.NDArray[np.float32]:
        """Return the logits (vocabulary,) of the first token of the answer.

        Raises:
            DataError: the picture or the question can't be used.
            ModelError: the base model is not the bank's, or writes no answers.
        """
        check_question(question)
        with _as_file(image) as file, self._bank.frozen(self.release) as resident:
            backbone = resident.backbone
            if not isinstance(backbone, LanguageBackbone):
                raise ModelError(f"logits: found a {backbone.kind}, expected {BaseRole.WRITER}")
            asked = Example("1", file, question, "", AnswerKind.OPEN)
            return backbone.first_logits(asked).float().cpu().numpy()


def answer_of(
    bank: Bank, answer: BankAnswer, routing: Routing | None, max_new_tokens: int
) -> Answer:
    """Return an answer as the API gives it."""
    release, tokens = answer.release, answer.prediction.tokens
    choices = () if routing is None else routing.choices
    return Answer(
        text=answer.prediction.text,
        stage=release.name,
        modality=release.modality.value,
        confidence=None if routing is None else routing.best.probability,
        known=None if routing is None else routing.known,
        probabilities=MappingProxyType(
            {bank.releases[one.stage].name: one.probability for one in choices}
        ),
        head=bank.head,
        complete=tokens is None or tokens < max_new_tokens,
        reason="" if routing is None else routing.reason,
        question_known=None if answer.unlike_question is None else not answer.unlike_question,
        question_reason=answer.unlike_question or "",
    )


@contextmanager
def _as_file(image: Picture) -> Generator[Path]:
    """Have a picture as a file during the body; one that is in memory stays there.

    Raises:
        DataError: it is nothing of these, or an image of a mode that no file has.
    """
    if isinstance(image, str | Path):
        yield Path(image)
        return
    with picture_in_memory(image if isinstance(image, bytes) else _tiff(image)) as file:
        yield file


def _tiff(image: PilImage) -> bytes:
    """Return an image of Pillow's as a file, without loss."""
    # Not imported with this module: whoever gives an image has imported it.
    pillow = sys.modules.get("PIL.Image")
    if pillow is None or not isinstance(image, pillow.Image):
        raise DataError(
            f"picture: found a {type(image).__name__}, expected a file's name, the bytes of a "
            "file, or an image of Pillow's"
        )
    buffer = BytesIO()
    try:
        image.save(buffer, "TIFF")
    except (OSError, ValueError, KeyError):
        raise DataError(
            f"picture: found an image of the mode {image.mode}, expected such as RGB or L"
        ) from None
    return buffer.getvalue()


def _check_asked(question: object, max_new_tokens: int) -> None:
    """Check what is asked for.

    Raises:
        DataError: the question is no text, or no token is wanted.
    """
    check_question(question)
    if max_new_tokens < 1:
        raise DataError(f"max_new_tokens: found {max_new_tokens}, expected 1 or more")
