"""Questions and answers as token ids, the way LLaVA-Med v1.5 was trained.

The text is `[INST] <image>\\n{question} [/INST] {answer} </s>` with the image always in
front, and a prompt to be answered ends at `[/INST]`. Supervised are the answer, the space
behind it and `</s>` (the reference's conversation.py `mistral_instruct`, and train.py
`preprocess_llama_2`). Text is tokenized on both sides of the image apart, as the
reference does, so no token is added to the vocabulary.
"""

from dataclasses import dataclass
from typing import Protocol

from common.errors import DataError

#: Label of a position that carries no loss (torch's own convention).
IGNORED = -100


class Tokenizer(Protocol):
    """What we use of a transformers tokenizer."""

    bos_token_id: int
    eos_token_id: int

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`."""
        ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """One question: token ids, and as many labels (`IGNORED` on the prompt)."""

    ids: list[int]
    labels: list[int]


def encode_prompt(
    tokenizer: Tokenizer, question: str, image_token: int, image_tokens: int
) -> list[int]:
    """Ids up to and with `[/INST]`; the image holds `image_tokens` places of `image_token`.

    Raises:
        DataError: the question itself holds `image_token`.
    """
    head = _head(tokenizer, image_token, image_tokens)
    return [*head, *_behind(tokenizer, f"\n{question} [/INST]", image_token)]


def encode_example(
    tokenizer: Tokenizer, question: str, answer: str, image_token: int, image_tokens: int
) -> Encoded:
    """Ids and labels of a question with its answer.

    Raises:
        DataError: one of them holds `image_token`.
    """
    prompt = encode_prompt(tokenizer, question, image_token, image_tokens)
    text = f"\n{question} [/INST] {answer} </s>"
    head = _head(tokenizer, image_token, image_tokens)
    ids = [*head, *_behind(tokenizer, text, image_token)]
    return Encoded(ids, [IGNORED] * len(prompt) + ids[len(prompt) :])


def _behind(tokenizer: Tokenizer, text: str, image_token: int) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if image_token in ids:
        # In LLaVA-Med it is the byte 0, which no editor writes and a JSON file can hold.
        raise DataError(
            f"a question or its answer: found the token {image_token}, which stands for the "
            "image, expected text without it"
        )
    return ids


def _head(tokenizer: Tokenizer, image_token: int, image_tokens: int) -> list[int]:
    head = tokenizer.encode("[INST] ", add_special_tokens=False)
    return [tokenizer.bos_token_id, *head, *[image_token] * image_tokens]
