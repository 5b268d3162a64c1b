"""Questions and answers as token ids, the way LLaVA-Med v1.5 was trained.

The text is `[INST] <image>\\n{question} [/INST] {answer} </s>` with the image always in
front; supervised are the answer, the space behind it and `</s>` (knowledge of the
reference: conversation.py `mistral_instruct`). Text is tokenized on both sides of the
image apart, as the reference does, so no token is added to the vocabulary.
"""

from dataclasses import dataclass
from typing import Protocol

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
    """Ids up to and with `[/INST]`; the image holds `image_tokens` places of `image_token`."""
    return [
        *_head(tokenizer, image_token, image_tokens),
        *tokenizer.encode(f"\n{question} [/INST]", add_special_tokens=False),
    ]


def encode_example(
    tokenizer: Tokenizer, question: str, answer: str, image_token: int, image_tokens: int
) -> Encoded:
    """Ids and labels of a question with its answer."""
    prompt = encode_prompt(tokenizer, question, image_token, image_tokens)
    text = f"\n{question} [/INST] {answer} </s>"
    head = _head(tokenizer, image_token, image_tokens)
    ids = [*head, *tokenizer.encode(text, add_special_tokens=False)]
    return Encoded(ids, [IGNORED] * len(prompt) + ids[len(prompt) :])


def _head(tokenizer: Tokenizer, image_token: int, image_tokens: int) -> list[int]:
    head = tokenizer.encode("[INST] ", add_special_tokens=False)
    return [tokenizer.bos_token_id, *head, *[image_token] * image_tokens]
