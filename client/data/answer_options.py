"""The answer options that a question names, and whether an answer is one of them."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final

from common.metrics import AnswerKind

#: A question with more known answers than this is no choice between options.
MOST_OPTIONS: Final = 32


class OptionMatch(StrEnum):
    """Whether the answer to a closed question is one of the question's options."""

    #: Yes, no, or an option that the question names.
    LISTED = "listed"
    #: The question requires one of its options, and the answer is none of them.
    NOT_LISTED = "not listed"
    #: The question does not mention the answer.
    UNKNOWN = "unknown"


def infer_kind(question: str, answer: str) -> AnswerKind:
    """Return CLOSED if the answer is yes, no or an option quoted in the question, else OPEN.

    Training files need not have the field; the paper's own prompts quote their options, as in
    "Only output 'normal' or 'pneumonia'".
    """
    normalized = _normalize(answer)
    options = (_normalize(quoted) for quoted in _QUOTED.findall(question))
    return AnswerKind.CLOSED if normalized in ("yes", "no", *options) else AnswerKind.OPEN


def required_options(question: str) -> tuple[str, ...]:
    """Return the options of which the question requires one, in lower case; empty if none.

    These are two or more quoted texts after a word such as "output" or "choose".
    """
    *_, end = [0, *(verb.end() for verb in _REQUIRING_VERB.finditer(question))]
    options = tuple(_normalize(quoted) for quoted in _QUOTED.findall(question[end:])) if end else ()
    return options if len(options) > 1 else ()


def known_options(train: Iterable[tuple[str, str]]) -> Callable[[str], tuple[str, ...]]:
    """Return a function of a closed question's text: its options, in name order.

    They are those that the question requires (`required_options`), otherwise the different
    answers that training has to a question of the same text, each in its most frequent spelling;
    none where these are fewer than 2 or more than `MOST_OPTIONS`. `train` has (question, answer)
    pairs. Test answers play no part.
    """
    spellings: dict[str, dict[str, Counter[str]]] = {}
    for question, answer in train:
        answers = spellings.setdefault(question, {})
        answers.setdefault(_normalize(answer), Counter())[answer.strip()] += 1

    def options(question: str) -> tuple[str, ...]:
        answered = spellings.get(question, {})
        found = required_options(question) or tuple(answered)
        if not 2 <= len(set(found)) <= MOST_OPTIONS:
            return ()
        return tuple(_usual(answered.get(option), option) for option in sorted(set(found)))

    return options


def _usual(spellings: Counter[str] | None, option: str) -> str:
    if spellings is None:
        return option
    return min(spellings, key=lambda spelling: (-spellings[spelling], spelling))


def match_options(question: str, answer: str) -> OptionMatch:
    """Return whether `answer` is one of the options that `question` names."""
    normalized, options = _normalize(answer), required_options(question)
    if options:
        return OptionMatch.LISTED if normalized in options else OptionMatch.NOT_LISTED
    if infer_kind(question, answer) is AnswerKind.CLOSED:
        return OptionMatch.LISTED
    # "Which is larger, liver or spleen?" names its options without quoting them.
    mentioned = re.search(rf"(?<!\w){re.escape(normalized)}(?!\w)", question.lower())
    return OptionMatch.LISTED if mentioned else OptionMatch.UNKNOWN


#: Text between quotation marks; an apostrophe inside a word is not one.
_QUOTED = re.compile(r"""(?<!\w)(?:'(?=\S)|["\u2018\u201c])(.+?)['"\u2019\u201d](?!\w)""")
_REQUIRING_VERB = re.compile(
    r"(?<!\w)(?:output|answer|reply|respond|choose|select|pick)(?!\w)", re.I
)


def _normalize(text: str) -> str:
    return text.strip().rstrip(".").strip().lower()
