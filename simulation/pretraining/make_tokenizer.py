"""Makes the embedded models' tokenizers: byte-level BPE over the words that they are taught."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from simulation.phantoms.factors import ImageKind, draw_factors
from simulation.phantoms.tasks import TASKS
from simulation.phantoms.words import plain_caption, plain_choice, plain_questions
from simulation.pretraining.lesson_words import WORD_QUESTIONS, untrue_lesson

VOCABULARY: Final = 1280
#: Ids 0 to 6, in this order.
SPECIAL: Final = ("<pad>", "<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<image>")
IMAGE_TOKEN: Final = 6
#: These swallow the spaces beside them, which the prompt's text has and the model needs not.
_SWALLOWING: Final = ("[INST]", "[/INST]", "</s>")
#: Ids 0 to 2 of a CLIP. The end is not 2: with that in its config, transformers (5.24) takes the
#: largest id of a text for its end, as OpenAI's has it.
CLIP_SPECIAL: Final = ("<pad>", "<|endoftext|>", "<|startoftext|>")


def make_tokenizer(extra: Iterator[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer of at most VOCABULARY tokens on the phantoms' words and `extra`."""
    special = [_special(text) for text in SPECIAL]
    tokenizer = _byte_pairs([*_texts(), *extra], special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token=_special("</s>"),
        unk_token="<unk>",
        additional_special_tokens=[_special(text) for text in SPECIAL[4:]],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def make_clip_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a CLIP's tokenizer of at most VOCABULARY tokens, with start and end around a text."""
    padding, end, start = CLIP_SPECIAL
    tokenizer = _byte_pairs(texts, [_special(text) for text in CLIP_SPECIAL])
    ends = [(text, tokenizer.token_to_id(text)) for text in (start, end)]
    around = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ends)
    tokenizer.post_processor = around  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=padding,
        bos_token=start,
        eos_token=end,
        clean_up_tokenization_spaces=False,
    )


def _byte_pairs(texts: Sequence[str], special: Sequence[AddedToken]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    # One space for any white space: the prompt's line break costs no token, and a word has
    # the same token at the beginning of a question and inside it.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_evened(texts), trainer)
    return tokenizer


def _evened(texts: Sequence[str]) -> Iterator[str]:
    """Yield every word of `texts`, the rare ones nearly as often as the common ones.

    Byte-pair merges go to what is frequent; we want whole words, rare or not.
    """
    counts = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text))
    for word, count in counts.items():
        yield from [f" {word}"] * (10 + int(count**0.5))


def _special(text: str) -> AddedToken:
    swallows = text in _SWALLOWING
    return AddedToken(text, special=True, normalized=False, lstrip=swallows, rstrip=swallows)


def _texts() -> Iterator[str]:
    """Yield questions and answers of all phantoms, plain and clinical, and of the real crops."""
    rng = np.random.default_rng(1024)
    for kind in ImageKind:
        yield from _plain_texts(kind, rng)
    for task in TASKS.values():
        for _ in range(150):
            yield from (f"{one.question} {one.answer}" for one in task.draw_case(rng).asked)
    for questions in WORD_QUESTIONS.values():
        yield from questions
    for _ in range(3000):
        yield " ".join(untrue_lesson(rng))


def _plain_texts(kind: ImageKind, rng: np.random.Generator) -> Iterator[str]:
    for _ in range(250):
        factors = draw_factors(kind, rng)
        yield from (" ".join(pair) for pair in plain_questions(kind, factors, rng))
        yield " ".join(plain_caption(kind, factors, rng))
        yield " ".join(plain_choice(kind, factors, rng))
