"""How like a question's words are to the questions that stages list: cosines of TF-IDF vectors.

Stages list questions in the plan, and releases repeat them: whoever writes the plan has written
them, and none is a site's. A text's terms are its words, and the first three, four and five letters
of each, so that `tumour` and `tumors` have some in common; in scripts without spaces, pairs of
letters. What else was tried: docs/log.md.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

#: A question is unlike a stage's if no cosine to one of them is larger. Of the demo's questions in
#: other words 92 % are above it at their own stage, of foreign ones 3 % at any given one.
UNLIKE_QUESTION: Final = 0.08
#: Of the softmax over the cosines (docs/log.md).
QUESTION_TEMPERATURE: Final = 0.07
#: English words that say how is asked and not what, by which `is there a tumour?` is like `is there
#: air?`. They count for little and not for nothing, as some questions have no others.
_FUNCTION_WORDS: Final = frozenset(
    (
        "a an and any are at be by can could do does for from has have how if in is it its many "
        "much of on or that the there these this those to was were what when where which who "
        "whose why will with you"
    ).split()
)
_FUNCTION_WEIGHT: Final = 0.3
_WORD: Final = re.compile(r"\w+")
_LETTERS: Final = (3, 4, 5)
#: From here on scripts have no spaces between words (Chinese, Japanese, Korean).
_FIRST_WITHOUT_SPACES: Final = "\u2e80"


class QuestionLikeness:
    """Compares questions with those that each stage lists; a stage that lists none takes no part.

    A term's weight is tf (1 + ln((1 + n) / (1 + df))) with its count tf in the text, where function
    words count less, and df in the n listed questions; a text's vector has length 1. A term that
    none of them has counts in its length, so what is asked about something else is unlike all.
    """

    def __init__(self, listed: Mapping[int, Sequence[str]]) -> None:
        """Take the questions of each stage by its position."""
        texts = {text for questions in listed.values() for text in questions}
        self._count = len(texts)
        self._frequency = Counter(term for text in texts for term in _terms(text))
        self._listed = {
            stage: [(text, self._vector(text)) for text in questions]
            for stage, questions in listed.items()
            if questions
        }

    def cosines(self, question: str) -> dict[int, float]:
        """Return the largest cosine to a question of each stage that lists any, 0 to 1."""
        return {stage: cosine for stage, (cosine, _) in self._nearest(question).items()}

    def reason_unlike(self, question: str, stage: int, names: Sequence[str]) -> str | None:
        """Return why the question is unlike those of a stage, for a user to read.

        Empty where it is like one; None where the stage lists none.

        Args:
            names: the names of all stages, by position.
        """
        nearest = self._nearest(question)
        if stage not in nearest:
            return None
        if nearest[stage][0] > UNLIKE_QUESTION:
            return ""
        reason = f"none of the questions of {names[stage]} is like it"
        other = max(nearest, key=lambda one: nearest[one][0])
        cosine, text = nearest[other]
        return reason + (f"; {names[other]} has {text!r}" if cosine > UNLIKE_QUESTION else "")

    def _nearest(self, question: str) -> dict[int, tuple[float, str]]:
        """Return each stage's nearest question with its cosine."""
        asked = self._vector(question)
        return {
            stage: max(
                ((_dot(asked, vector), text) for text, vector in own), key=lambda one: one[0]
            )
            for stage, own in self._listed.items()
        }

    def _vector(self, text: str) -> dict[str, float]:
        weights = {
            term: count * (1 + math.log((1 + self._count) / (1 + self._frequency[term])))
            for term, count in _terms(text).items()
        }
        length = math.sqrt(math.fsum(weight**2 for weight in weights.values()))
        return {term: weight / length for term, weight in weights.items()}


def _terms(text: str) -> dict[str, float]:
    """Count the words, and the parts of each, marked as such."""
    counts: dict[str, float] = {}
    for word in _WORD.findall(text.lower()):
        weight = _FUNCTION_WEIGHT if word in _FUNCTION_WORDS else 1.0
        for term in (word, *(f"{part}~" for part in _parts(word))):
            counts[term] = counts.get(term, 0.0) + weight
    return counts


def _parts(word: str) -> list[str]:
    if max(word) >= _FIRST_WITHOUT_SPACES:
        return [word[start : start + 2] for start in range(len(word) - 1)]
    return [word[:size] for size in _LETTERS if size < len(word)]


def _dot(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    return math.fsum(weight * second.get(term, 0.0) for term, weight in first.items())
