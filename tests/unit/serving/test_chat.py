"""What is read of a request as OpenAI's clients write it, and the stream of an answer."""

import json
from pathlib import Path
from typing import Any

import pytest

from client.model.backbone import Prediction
from client.orders.ask import BankAnswer
from common.errors import DataError
from serving.batching import Reply
from serving.chat import ChatBounds, chunks, read_request
from tests.unit.small_bank import bank_of

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,YWJj"}}
TEXT = {"type": "text", "text": "what is this ?"}


def body(*messages: object, **more: object) -> bytes:
    return json.dumps({"model": "ct", "messages": messages, **more}).encode()


def user(*parts: object) -> dict[str, object]:
    return {"role": "user", "content": parts}


@pytest.mark.parametrize("url", ["", None, 7, {}, {"url": None}, {"url": ""}])
def test_a_picture_without_a_url_is_refused_and_not_an_earlier_one_taken(url: object):
    broken = {"type": "image_url", "image_url": url}
    with pytest.raises(DataError, match=r"image_url(\.url)?: found no (text|data URL)"):
        read_request(body(user(PICTURE, TEXT), user(broken, TEXT)), ChatBounds())
    # A question without any picture is about the conversation's last one.
    found = read_request(body(user(PICTURE, TEXT), user(TEXT)), ChatBounds())
    assert found.picture == b"abc"


@pytest.mark.parametrize(
    "options, said",
    [
        ("yes", "stream_options: found no object"),
        ({"include_usage": 1}, "stream_options.include_usage: found another value"),
    ],
)
def test_the_options_of_a_stream_are_checked(options: object, said: str):
    with pytest.raises(DataError, match=said):
        read_request(body(user(PICTURE, TEXT), stream_options=options), ChatBounds())


@pytest.mark.parametrize("wanted", [True, False, None])
def test_a_stream_ends_with_the_tokens_if_the_request_wants_them(
    tmp_path: Path, wanted: bool | None
):
    options = {} if wanted is None else {"stream_options": {"include_usage": wanted}}
    asked = read_request(body(user(PICTURE, TEXT), stream=True, **options), ChatBounds())
    bank = bank_of(tmp_path / "bank", "ct")
    said = Prediction("a lung", tokens=2, prompt_tokens=40)
    documents: list[Any] = chunks(
        asked, bank, Reply(BankAnswer(said, bank.releases[0], None, False), 1)
    )
    assert documents[0]["choices"][0]["delta"] == {"role": "assistant", "content": "a lung"}
    assert documents[1]["choices"][0]["finish_reason"] == "stop"
    if not wanted:
        assert len(documents) == 2 and "usage" not in documents[0]
        return
    assert [one["usage"] for one in documents[:2]] == [None, None]
    assert documents[2]["choices"] == []
    assert documents[2]["usage"] == {
        "prompt_tokens": 40,
        "completion_tokens": 2,
        "total_tokens": 42,
    }
