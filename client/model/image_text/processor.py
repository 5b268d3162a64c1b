"""A model's own processor: tokenizer, image processor and chat template, of one picture a time."""
# transformers leaves parts of its interface untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jinja2 import TemplateError
from PIL.Image import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, GenerationConfig
from transformers.image_utils import make_flat_list_of_images
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from client.model.prompt import IGNORE_INDEX
from common.errors import DataError, ModelError
from common.printable import one_line

#: What a processor returns of every token of a text, beside its id.
_TOKEN_TYPES: Final = ("token_type_ids", "mm_token_type_ids")
_TEXT: Final = ("input_ids", "attention_mask", *_TOKEN_TYPES)
_PIXELS: Final = "pixel_values"
_GENERATION: Final = "generation_config.json"


@dataclass(frozen=True, slots=True, eq=False)
class EncodedQuestion:
    """A question about a picture as a model takes it, with its answer where it has one.

    Attributes:
        ids, labels: of each token; the labels are `IGNORE_INDEX` on the prompt.
        types: what else the processor says of each token of the prompt; 0 for the answer's.
        sizes: what it says of the picture beside its pixels, one row.
    """

    ids: list[int]
    labels: list[int]
    types: Mapping[str, list[int]]
    sizes: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class OwnProcessor:
    """The processor that is in a base model's folder.

    Attributes:
        ends: the tokens that end an answer.
    """

    processor: Any
    image_token: int
    ends: tuple[int, ...]

    @property
    def tokenizer(self) -> Any:  # noqa: ANN401 - transformers' own type
        """transformers' tokenizer."""
        return self.processor.tokenizer

    @property
    def padding(self) -> int:
        """The token that fills a row; nothing looks at it."""
        found = self.tokenizer.pad_token_id
        return self.ends[0] if found is None else found

    def pixels(self, image: Image) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a picture's pixels as the model takes them, and its sizes."""
        found = self._inputs(image, "")
        return found[_PIXELS], _sizes(found)

    def encode(self, image: Image, question: str, answer: str | None) -> EncodedQuestion:
        """Return the chat template's prompt of a question about a picture, and its answer.

        Raises:
            DataError: question or answer has the text that stands for the image.
        """
        found = self._inputs(image, question)
        prompt: list[int] = found["input_ids"][0].tolist()
        tail = [] if answer is None else self._answer_ids(question, answer)
        if self.image_token in tail:
            raise DataError(f"an answer: found the token {self.image_token}, which is the image's")
        types = {
            name: [*found[name][0].tolist(), *[0] * len(tail)]
            for name in _TOKEN_TYPES
            if name in found
        }
        labels = [*[IGNORE_INDEX] * len(prompt), *tail]
        return EncodedQuestion([*prompt, *tail], labels, types, _sizes(found))

    def decode(self, tokens: list[int]) -> str:
        """Return the text of an answer's tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()

    def _inputs(self, image: Image, question: str) -> Any:  # noqa: ANN401
        try:
            return self.processor.apply_chat_template(
                _messages(question, image), add_generation_prompt=True, tokenize=True,
                return_dict=True, return_tensors="pt",
            )  # fmt: skip
        except (ValueError, IndexError) as error:
            # Of a question with the text of an image token, for one.
            raise DataError(f"a question: can't be made a prompt ({one_line(error)})") from None

    def _answer_ids(self, question: str, answer: str) -> list[int]:
        """Return the tokens of an answer as the template writes it, up to the one that ends it."""
        asked = _messages(question, None)
        told = [*asked, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        prompt: str = self.processor.apply_chat_template(asked, add_generation_prompt=True)
        whole: str = self.processor.apply_chat_template(told)
        # A template may drop the spaces after the prompt where an answer follows.
        start = prompt if whole.startswith(prompt) else prompt.rstrip()
        if not whole.startswith(start):
            raise ModelError(
                "chat template: found an answer that does not follow its prompt, expected that it "
                "does"
            )
        tail: list[int] = self.tokenizer.encode(whole[len(start) :], add_special_tokens=False)
        end = next((place for place, token in enumerate(tail) if token in self.ends), None)
        if end is not None:
            return tail[: end + 1]
        # A template without an end: the model's own is what it has to say.
        text = whole[len(start) :].rstrip()
        return [*self.tokenizer.encode(text, add_special_tokens=False), self.ends[0]]


def read_processor(folder: Path, config: Any) -> OwnProcessor:  # noqa: ANN401
    """Read the processor of the model in `folder`, whose config is `config`.

    Images alone: the part that reads videos needs torchvision, and is left out.

    Raises:
        ModelError: a file is missing or damaged, or there is no chat template.
    """
    kind: Any = PROCESSOR_MAPPING[type(config)]
    local = {"local_files_only": True}
    try:
        parts = {
            "tokenizer": AutoTokenizer.from_pretrained(folder, **local),
            # transformers' default would change with torchvision installed, and resize otherwise.
            "image_processor": AutoImageProcessor.from_pretrained(folder, backend="pil", **local),
        }
        settings, _ = kind.get_processor_dict(folder, **local)
        arguments = [parts.get(name) for name in kind.get_attributes()]
        processor = _images_alone(kind).from_args_and_dict(arguments, settings)
        processor.image_processor = _KeepingLast(processor.image_processor)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{folder}: the tokenizer, the image settings or the chat template can't be loaded "
            f"({one_line(error)})"
        ) from None
    if processor.chat_template is None:
        raise ModelError(f"{folder}: found no chat template, expected chat_template.jinja")
    ends = _ends(folder, parts["tokenizer"])
    if not ends:
        raise ModelError(f"{folder}: found no token that ends an answer, expected eos_token")
    found = OwnProcessor(processor, config.image_token_id, ends)
    try:
        found.processor.apply_chat_template(_messages("?", None), add_generation_prompt=True)
    except TemplateError as error:
        raise ModelError(f"{folder}: the chat template can't be used ({one_line(error)})") from None
    return found


def _images_alone(kind: Any) -> Any:  # noqa: ANN401 - transformers' own classes
    """Return a processor's class that goes without the part that reads videos."""

    def check(self: Any, name: str, part: Any) -> Any:  # noqa: ANN401
        absent = name == "video_processor" and part is None
        return None if absent else kind.check_argument_for_proper_class(self, name, part)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check})


class _KeepingLast:
    """An image processor that keeps what it made last, for a picture's questions in a row.

    The picture is known again by its object, which nobody changes.
    """

    def __init__(self, processor: Any) -> None:  # noqa: ANN401 - transformers' own type
        self._processor = processor
        self._kept: tuple[Any, Any, Any] | None = None

    def __call__(self, images: Any, **settings: Any) -> Any:  # noqa: ANN401
        pictures: Any = make_flat_list_of_images(images)
        if (kept := self._kept) is not None:
            known, by, found = kept
            if by == settings and list(map(id, known)) == list(map(id, pictures)):
                return found
        found = self._processor(images, **settings)
        self._kept = pictures, settings, found
        return found

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name == "_processor":
            # Of a copy that is being made: it has nothing yet.
            raise AttributeError(name)
        return getattr(self._processor, name)


def _ends(folder: Path, tokenizer: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Return the tokens that end an answer: the tokenizer's, and those of the generation config."""
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if (folder / _GENERATION).is_file():
        try:
            stored: Any = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder / _GENERATION}: can't be read ({one_line(error)})") from None
        found = stored.eos_token_id
        ends += found if isinstance(found, list) else [] if found is None else [found]
    return tuple(dict.fromkeys(ends))


def _messages(question: str, image: Image | None) -> list[dict[str, Any]]:
    picture = {"type": "image"} if image is None else {"type": "image", "image": image}
    return [{"role": "user", "content": [picture, {"type": "text", "text": question}]}]


def _sizes(found: Any) -> dict[str, Tensor]:  # noqa: ANN401 - transformers' BatchFeature
    return {name: torch.as_tensor(v) for name, v in found.items() if name not in (*_TEXT, _PIXELS)}
