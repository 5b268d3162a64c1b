"""Tokenization of questions and answers, in the template that LLaVA-Med v1.5 was trained on.

The text is `[INST] <image>\\n{question} [/INST] {answer} </s>`, always with the image first;
a prompt to be answered ends at `[/INST]`. Labels are the answer, the space after it and `</s>`
(the reference's conversation.py `mistral_instruct`, and train.py `preprocess_llama_2`). The
texts before and after the image are tokenized separately, as the reference does, so no token
is added to the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from common.errors import DataError

#: Label of a token without loss (torch's and transformers' convention).
IGNORE_INDEX = -100
#: The same prompt as a chat template. The picture comes first, whatever its place in the message.
_CHAT_TEMPLATE: Final = """\
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {{- '[INST] ' -}}
    {%- if message['content'] is string -%}
      {{- message['content'] -}}
    {%- else -%}
      {%- for part in message['content'] -%}
        {%- if part['type'] != 'text' -%}{{- 'IMAGE_TOKEN\\n' -}}{%- endif -%}
      {%- endfor -%}
      {%- for part in message['content'] -%}
        {%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}
      {%- endfor -%}
    {%- endif -%}
    {{- ' [/INST]' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- ' ' -}}
    {%- if message['content'] is string -%}
      {{- message['content'] -}}
    {%- else -%}
      {%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}
    {%- endif -%}
    {{- ' ' ~ eos_token -}}
  {%- else -%}
    {{- raise_exception('This model knows user and assistant messages, and no other.') -}}
  {%- endif -%}
{%- endfor -%}
"""
_IMAGE_MARK: Final = "IMAGE_TOKEN"


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    bos_token_id: int
    eos_token_id: int

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the token ids of `text`."""
        ...


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """Token ids of a question with its answer, and labels (`IGNORE_INDEX` on the prompt)."""

    ids: list[int]
    labels: list[int]


def chat_template(image_token: str) -> str:
    """Return the prompt as a Jinja template, in which the image is the text `image_token`."""
    return _CHAT_TEMPLATE.replace(_IMAGE_MARK, image_token)


def is_our_chat_template(template: str) -> bool:
    """Return whether `template` is what `chat_template` returns for some text."""
    before, after = _CHAT_TEMPLATE.split(_IMAGE_MARK)
    return template.startswith(before) and template.endswith(after)


def encode_prompts(
    tokenizer: Tokenizer, questions: Sequence[str], image_token: int, image_tokens: int
) -> list[list[int]]:
    """Return the ids up to and with `[/INST]`; the image is `image_tokens` times `image_token`.

    Raises:
        DataError: a question itself contains `image_token`.
    """
    head = _head(tokenizer, image_token, image_tokens)
    return [
        [*head, *_encode_text(tokenizer, f"\n{question} [/INST]", image_token)]
        for question in questions
    ]


def encode_prompt(
    tokenizer: Tokenizer, question: str, image_token: int, image_tokens: int
) -> list[int]:
    """Return the ids of one question, as `encode_prompts` does."""
    return encode_prompts(tokenizer, [question], image_token, image_tokens)[0]


def encode_example(
    tokenizer: Tokenizer, question: str, answer: str, image_token: int, image_tokens: int
) -> EncodedExample:
    """Return the ids and labels of a question with its answer.

    Raises:
        DataError: one of them contains `image_token`.
    """
    prompt = encode_prompt(tokenizer, question, image_token, image_tokens)
    text = f"\n{question} [/INST] {answer} </s>"
    head = _head(tokenizer, image_token, image_tokens)
    ids = [*head, *_encode_text(tokenizer, text, image_token)]
    return EncodedExample(ids, [IGNORE_INDEX] * len(prompt) + ids[len(prompt) :])


def _encode_text(tokenizer: Tokenizer, text: str, image_token: int) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if image_token in ids:
        # In LLaVA-Med it is the byte 0, which no editor writes but a JSON file can contain.
        raise DataError(
            f"a question or its answer: found the token {image_token}, which stands for the "
            "image, expected text without it"
        )
    return ids


def _head(tokenizer: Tokenizer, image_token: int, image_tokens: int) -> list[int]:
    head = tokenizer.encode("[INST] ", add_special_tokens=False)
    return [tokenizer.bos_token_id, *head, *[image_token] * image_tokens]
