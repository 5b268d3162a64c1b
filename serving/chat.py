"""OpenAI's chat completions: what is read of a request, and the document of an answer.

The model answers single questions about single pictures: the last user message is the question,
and the last picture of the conversation is its picture. What else a request has is listed in the
answer as ignored; what would make the answer another one is refused.
"""

import base64
import binascii
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from pydantic_core import from_json

from client.orders.answer_by_method import has_method, repeated_classes
from client.orders.ask import BankAnswer
from common.bank.bank import Bank
from common.errors import DataError
from serving.batching import Reply
from serving.memory_picture import with_dicom_mark
from serving.open_bank import NOTICE

#: The model's name under which each picture chooses its stage; no stage can have it.
ROUTER: Final = "fedmslora/router"

_DICOM: Final = "application/dicom"
_DATA_URL: Final = "data:"
_BASE64: Final = ";base64"
#: What is understood; everything else of a request is ignored, and the answer says so.
_UNDERSTOOD: Final = frozenset(
    ("model", "messages", "max_tokens", "max_completion_tokens", "stream", "stream_options", "n")
)
#: Fields that no answer here could follow, with the only value that asks for nothing.
_REFUSED: Final[Mapping[str, object]] = {"logprobs": False, "tools": [], "functions": []}


@dataclass(frozen=True, slots=True)
class ChatBounds:
    """What a question may take.

    Attributes:
        question_chars: most characters of a question.
        answer_tokens: most tokens that an answer may be asked for.
        default_tokens: most tokens of an answer where the request does not say; as `bank ask`.
    """

    question_chars: int = 2000
    answer_tokens: int = 512
    default_tokens: int = 64


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A question about a picture.

    Attributes:
        model: a stage's name, or `ROUTER`.
        picture: the bytes of a picture file.
        usage_in_stream: whether the stream ends with the number of tokens.
        ignored: what of the request does not count.
    """

    model: str
    picture: bytes
    question: str
    max_new_tokens: int
    stream: bool
    usage_in_stream: bool
    ignored: tuple[str, ...]


def read_request(body: bytes, bounds: ChatBounds) -> ChatRequest:
    """Read the body of a request.

    Raises:
        DataError: it is no request that can be answered; names the field.
    """
    request = _object(_json(body), "body")
    for field, nothing in _REFUSED.items():
        if request.get(field) not in (None, nothing):
            raise DataError(f"{field}: found some, expected none: an answer here has none")
    if request.get("n") not in (None, 1) or isinstance(request.get("n"), bool):
        raise DataError("n: found another number, expected 1: answers are not sampled")
    model = _text(request.get("model"), "model")
    question, url, ignored = _conversation(_list(request.get("messages"), "messages"))
    question = question.strip()
    if not question:
        raise DataError("messages: found a last user message without text, expected a question")
    if len(question) > bounds.question_chars:
        raise DataError(
            f"messages: found a question of {len(question)} characters, expected at most "
            f"{bounds.question_chars}"
        )
    if url is None:
        raise DataError("messages: found no image_url, expected a picture with the question")
    unused = sorted(field for field in request if field not in _UNDERSTOOD | _REFUSED.keys())
    return ChatRequest(
        model=model,
        picture=_picture(url),
        question=question,
        max_new_tokens=_tokens(request, bounds),
        stream=_flag(request.get("stream"), "stream"),
        usage_in_stream=_usage_in_stream(request.get("stream_options")),
        ignored=(*ignored, *(field[:40] for field in unused[:20])),
    )


def completion(request: ChatRequest, bank: Bank, reply: Reply) -> dict[str, Any]:
    """Return the document of an answer."""
    text = reply.answer.prediction.text
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": _finish_reason(request, reply),
    }
    return {
        **_common(request, bank, "chat.completion"),
        "choices": [choice],
        "usage": _usage(reply),
        "fedmslora": origin(bank, reply, request.ignored),
    }


def chunks(request: ChatRequest, bank: Bank, reply: Reply) -> list[dict[str, Any]]:
    """Return an answer as the documents of a stream: the text, then the end with its origin.

    Where the request wants it, a last document without a choice has the number of tokens.
    """
    common = _common(request, bank, "chat.completion.chunk")
    usage: list[dict[str, Any]] = []
    if request.usage_in_stream:
        usage.append({**common, "choices": [], "usage": _usage(reply)})
        common = {**common, "usage": None}
    delta = {"role": "assistant", "content": reply.answer.prediction.text}
    first = {"index": 0, "delta": delta, "finish_reason": None}
    last: dict[str, Any] = {
        "index": 0,
        "delta": {},
        "finish_reason": _finish_reason(request, reply),
    }
    return [
        {**common, "choices": [first]},
        {
            **common,
            "choices": [last],
            "fedmslora": origin(bank, reply, request.ignored),
        },
        *usage,
    ]


def chosen_by(answer: BankAnswer) -> str:
    """Return who chose the stage: the router, the method by its class, or the user."""
    return "router" if answer.routing else "method" if answer.by_method else "user"


def question_facts(answer: BankAnswer) -> dict[str, Any]:
    """Return whether the question is like those that the answering stage lists, and why not."""
    unlike = answer.unlike_question
    return {
        "question_known": None if unlike is None else not unlike,
        "question_reason": unlike or None,
    }


def origin(bank: Bank, reply: Reply, ignored: Sequence[str]) -> dict[str, Any]:
    """Return who answered and how surely, as `bank ask --json` does."""
    release, routing = reply.answer.release, reply.answer.routing
    choices = () if routing is None else routing.choices
    return {
        "stage": release.name,
        "modality": release.modality.value,
        "sums": [bank.releases[position].name for position in release.sums],
        "chosen_by": chosen_by(reply.answer),
        "confidence": None if routing is None else routing.best.probability,
        "known": None if routing is None else routing.known,
        "reason": None if routing is None else routing.reason,
        "calibrated": None if routing is None else routing.calibrated,
        **question_facts(reply.answer),
        "stages": [
            {
                "name": bank.releases[choice.stage].name,
                "modality": bank.releases[choice.stage].modality.value,
                "probability": choice.probability,
                "cosine": choice.cosine,
                "alike": choice.alike,
            }
            for choice in choices
        ],
        "classes": reply.answer.prediction.class_scores if reply.answer.by_method else None,
        "own_b": reply.answer.own_b,
        "base_model": bank.base_model.name,
        "head": bank.head,
        "batch": reply.batch,
        "ignored": list(ignored),
        "notice": NOTICE,
    }


def model_list(bank: Bank, created: int) -> dict[str, Any]:
    """Return the models by OpenAI's document: `ROUTER`, if a picture can choose, and each stage."""
    names = [
        *([ROUTER] if chooses_by_picture(bank) else []),
        *(release.name for release in bank.releases),
    ]
    return {"object": "list", "data": [model_document(name, created) for name in names]}


def chooses_by_picture(bank: Bank) -> bool:
    """Return whether a picture's stage, or its class among those of all stages, can be found."""
    if has_method(bank):
        return not repeated_classes(bank)
    return any(release.prototype is not None for release in bank.releases)


def model_document(name: str, created: int) -> dict[str, Any]:
    """Return one model by OpenAI's document."""
    return {"id": name, "object": "model", "created": created, "owned_by": "fedmslora"}


def _common(request: ChatRequest, bank: Bank, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": f"fp_{bank.head[:12]}",
    }


def _usage(reply: Reply) -> dict[str, int]:
    """Return the number of tokens; 0 of a model that is no language model."""
    prediction = reply.answer.prediction
    asked, tokens = prediction.prompt_tokens or 0, prediction.tokens or 0
    return {
        "prompt_tokens": asked,
        "completion_tokens": tokens,
        "total_tokens": asked + tokens,
    }


def _finish_reason(request: ChatRequest, reply: Reply) -> str:
    tokens = reply.answer.prediction.tokens
    return "length" if tokens is not None and tokens >= request.max_new_tokens else "stop"


def _json(body: bytes) -> object:
    try:
        # Bounded in depth, and fast.
        return from_json(body, allow_inf_nan=False)
    except ValueError:
        raise DataError("body: found no JSON, or one nested too deeply, expected JSON") from None


def _conversation(messages: Sequence[object]) -> tuple[str, str | None, list[str]]:
    """Return the question, the last picture's URL, and what of the messages is ignored."""
    question: str | None = None
    url: str | None = None
    ignored: list[str] = []
    for number, message in enumerate(messages):
        where = f"messages.{number}"
        fields = _object(message, where)
        role = fields.get("role")
        if role != "user":
            if role not in ("system", "developer", "assistant"):
                raise DataError(f"{where}.role: found another, expected user, system or assistant")
            ignored.append(f"{where} ({role})")
            continue
        if question is not None:
            ignored.append("earlier questions")
        question, own = _user_content(fields.get("content"), f"{where}.content")
        url = url if own is None else own
    if question is None:
        raise DataError("messages: found no user message, expected one with a question")
    return question, url, list(dict.fromkeys(ignored))[:20]


def _user_content(content: object, where: str) -> tuple[str, str | None]:
    """Return the text and the picture's URL of a user's message."""
    if isinstance(content, str):
        return content, None
    texts: list[str] = []
    urls: list[str] = []
    for number, part in enumerate(_list(content, where)):
        fields = _object(part, f"{where}.{number}")
        kind = fields.get("type")
        if kind == "text":
            texts.append(_text(fields.get("text"), f"{where}.{number}.text"))
        elif kind == "image_url":
            found = fields.get("image_url")
            url = cast(Any, found).get("url") if isinstance(found, dict) else found
            urls.append(_text(url, f"{where}.{number}.image_url.url"))
        else:
            raise DataError(f"{where}.{number}.type: found another, expected text or image_url")
    if len(urls) > 1:
        raise DataError(f"{where}: found {len(urls)} pictures, expected one in a question")
    return "\n".join(texts), urls[0] if urls else None


def _picture(url: str) -> bytes:
    if url[: len(_DATA_URL)].lower() != _DATA_URL:
        raise DataError(
            "image_url: found no data URL, expected data:image/png;base64,... or "
            "data:application/dicom;base64,...: no address is fetched"
        )
    head, comma, encoded = url[len(_DATA_URL) :].partition(",")
    if not comma or not head.lower().endswith(_BASE64):
        raise DataError("image_url: found a data URL without base64, expected base64")
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise DataError("image_url: found no base64 in the data URL, expected base64") from None
    if not content:
        raise DataError("image_url: found an empty picture, expected a picture file")
    kind = head[: -len(_BASE64)].split(";")[0].strip().lower()
    return with_dicom_mark(content) if kind == _DICOM else content


def _tokens(request: Mapping[str, object], bounds: ChatBounds) -> int:
    for field in ("max_completion_tokens", "max_tokens"):
        value = request.get(field)
        if value is None:
            continue
        if type(value) is not int or not 1 <= value <= bounds.answer_tokens:
            raise DataError(
                f"{field}: found another value, expected a whole number from 1 to "
                f"{bounds.answer_tokens}"
            )
        return value
    return min(bounds.default_tokens, bounds.answer_tokens)


def _usage_in_stream(options: object) -> bool:
    if options is None:
        return False
    wanted = _object(options, "stream_options").get("include_usage")
    return _flag(wanted, "stream_options.include_usage")


def _flag(value: object, field: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise DataError(f"{field}: found another value, expected true or false")
    return bool(value)


def _object(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: found no object, expected one")
    return cast(Mapping[str, object], value)


def _list(value: object, where: str) -> Sequence[object]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: found no list, or an empty one, expected a list")
    return cast(Sequence[object], value)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: found no text, expected text")
    return value
