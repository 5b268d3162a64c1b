"""The options that a question names, and how an answer stands to them."""

import re
from enum import StrEnum

from common.metrics import AnswerKind


class OptionMatch(StrEnum):
    """How the answer to a question with a closed set of answers stands to its options."""

    #: Yes, no, or an option that the question names.
    LISTED = "listed"
    #: The question says which answers it takes, and this is none of them.
    NOT_LISTED = "not listed"
    #: Nothing in the question says that this is one of its answers.
    UNKNOWN = "unknown"


def infer_kind(question: str, answer: str) -> AnswerKind:
    """CLOSED where the answer is yes or no, or one of the options quoted in the question.

    Training files need not say it; the paper's own prompts quote their options, as in
    "Only output 'normal' or 'pneumonia'".
    """
    said = _plain(answer)
    options = (_plain(quoted) for quoted in _QUOTED.findall(question))
    return AnswerKind.CLOSED if said in ("yes", "no", *options) else AnswerKind.OPEN


def required_options(question: str) -> tuple[str, ...]:
    """The options that the question demands one of, in small letters; empty if it does not.

    Demanded are two or more quoted texts behind a word such as "output" or "choose".
    """
    *_, last = [0, *(found.end() for found in _DEMAND.finditer(question))]
    options = tuple(_plain(quoted) for quoted in _QUOTED.findall(question[last:])) if last else ()
    return options if len(options) > 1 else ()


def match_options(question: str, answer: str) -> OptionMatch:
    """Whether `answer` can be right, going by what `question` itself says."""
    said, options = _plain(answer), required_options(question)
    if options:
        return OptionMatch.LISTED if said in options else OptionMatch.NOT_LISTED
    if infer_kind(question, answer) is AnswerKind.CLOSED:
        return OptionMatch.LISTED
    # "Which is larger, liver or spleen?" names its options without quoting them.
    in_words = re.search(rf"(?<!\w){re.escape(said)}(?!\w)", question.lower())
    return OptionMatch.LISTED if in_words else OptionMatch.UNKNOWN


#: Text between quotation marks; an apostrophe inside a word opens and closes nothing.
_QUOTED = re.compile(r"""(?<!\w)(?:'(?=\S)|["\u2018\u201c])(.+?)['"\u2019\u201d](?!\w)""")
_DEMAND = re.compile(r"(?<!\w)(?:output|answer|reply|respond|choose|select|pick)(?!\w)", re.I)


def _plain(text: str) -> str:
    return text.strip().rstrip(".").strip().lower()
