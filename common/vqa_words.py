"""Normalizes answers (number words, articles, contractions) as the VQA challenge's EvalAI does."""

import json
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

#: Texts in the cache below; the largest file of the paper has 6,761 answers.
_CACHE_SIZE = 1 << 15
#: Periods that one normalization removes at most: the reference passes a flag of `re` (UNICODE,
#: which is 32) where `sub` expects a count.
_PERIODS = 32


@lru_cache(maxsize=_CACHE_SIZE)
def normalize(text: str) -> str:
    """Normalize a text: lower case, digits for number words, no articles, little punctuation.

    A punctuation mark is deleted everywhere if it is next to a space anywhere, or if the text has
    a number with a comma; otherwise it becomes a space. Both conditions are checked on the
    original text.
    """
    tables = _tables()
    delete_all = tables.comma.search(text) is not None
    clean = text
    for mark in tables.punctuation:
        if mark in clean:
            delete = delete_all or f"{mark} " in text or f" {mark}" in text
            clean = clean.replace(mark, "" if delete else " ")
    clean = tables.period.sub("", clean, count=_PERIODS)
    words = [tables.numbers.get(word, word) for word in clean.lower().split()]
    return " ".join(tables.contractions.get(w, w) for w in words if w not in tables.articles)


def as_answer(text: str) -> str:
    """Return what answers are compared by: two with equal results are the same answer."""
    return normalize(text.lower())


@dataclass(frozen=True, slots=True)
class _Tables:
    contractions: dict[str, str]
    numbers: dict[str, str]
    articles: frozenset[str]
    punctuation: tuple[str, ...]
    period: re.Pattern[str]
    comma: re.Pattern[str]


@cache
def _tables() -> _Tables:
    """Load the tables of the public VQA evaluation."""
    file = Path(__file__).with_name("vqa_normalization.json")
    tables = json.loads(file.read_text(encoding="utf-8"))
    return _Tables(
        contractions=tables["contractions"],
        numbers=tables["manual_map"],
        articles=frozenset(tables["articles"]),
        punctuation=tuple(tables["punctuation"]),
        period=re.compile(tables["period_strip"]),
        comma=re.compile(tables["comma_strip"]),
    )
