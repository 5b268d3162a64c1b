"""Scores of answers: the paper's table, and the fractions that enter our score matrix.

Source of the rules: the evaluator of MSLoRA-CR (arXiv 2508.11673), which is LLaVA-Med's, with
the word normalization of the VQA challenge (EvalAI). The published figures are reached to
their last digit, quirks included; each quirk is named where it stands.
"""

import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import cast

from common.errors import DataError
from common.vqa_words import normalize

#: Texts and pairs kept by the caches below; the largest file of the paper has 6,761 answers.
_REMEMBERED = 1 << 15
#: Of the four n-gram orders: the paper's `bleu_score`, and its `bleu_score_1` to `_3`.
_BLEU_WEIGHTS = [(0.25, 0.25, 0.25, 0.25), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)]
#: What the paper's evaluator reads where a field is not there.
_OTHER_NAMES = {"text": "prediction", "gt": "ground_truth"}


class AnswerKind(StrEnum):
    """Whether a question has a closed set of answers (yes or no, a class) or is open."""

    OPEN = "OPEN"
    CLOSED = "CLOSED"


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """What the model answered to one question, and the truth.

    Attributes:
        id: the question's name in its file (`question_id`), not always unique there; None
            where it has none.
    """

    question: str
    answer: str
    truth: str
    kind: AnswerKind
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Overlap:
    """Token precision, recall and F1 of one answer; fractions."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class Bleu:
    """BLEU of one answer with the paper's four weightings; fractions.

    Attributes:
        all: the usual geometric mean of the four n-gram precisions.
        one, two, three: a single precision each (the paper's `bleu_score_2` is not BLEU-2).
    """

    all: float
    one: float
    two: float
    three: float


@dataclass(frozen=True, slots=True)
class Judged:
    """Everything measured on one answer, and its normalized truth."""

    truth: str
    exact: bool
    hit: bool
    overlap: Overlap
    bleu: Bleu


def read_answers(file: Path) -> list[AnsweredQuestion]:
    """Read answers, one JSON object a line: `question_id`, `prompt`, `text`, `gt`, `answer_type`.

    As in the paper's evaluator a question without `answer_type` is open, and `prediction` and
    `ground_truth` are other names of `text` and `gt`. The scores don't look at `question_id`
    and `prompt`, so these may be absent, too.

    Raises:
        DataError: naming the file and the line; also for a file without an answer.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(f"{file}: can't be read as answers ({reason})") from None
    answers = [
        _parse_answer(line, f"{file}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not answers:
        raise DataError(f"{file}: found no answer, expected one JSON object a line")
    return answers


def paper_metrics(answers: Sequence[AnsweredQuestion]) -> dict[str, float]:
    """The table the paper's evaluator prints: percentages, in its order, only what applies.

    Token and BLEU scores are means over the OPEN answers, `close accuracy` is the share of
    CLOSED answers that hold the truth, `exact match score` counts all.

    Raises:
        DataError: there is no answer at all.
    """
    judged = _judge_all(answers)
    opened = [one for kind, one in judged if kind is AnswerKind.OPEN]
    closed = [one for kind, one in judged if kind is AnswerKind.CLOSED]
    table = {"exact match score": _percent(one.exact for _, one in judged)}
    if opened:
        table |= {
            "f1 score": _percent(one.overlap.f1 for one in opened),
            "precision": _percent(one.overlap.precision for one in opened),
            "recall": _percent(one.overlap.recall for one in opened),
            "bleu_score": _percent(one.bleu.all for one in opened),
            "bleu_score_1": _percent(one.bleu.one for one in opened),
            "bleu_score_2": _percent(one.bleu.two for one in opened),
            "bleu_score_3": _percent(one.bleu.three for one in opened),
        }
    if closed:
        table["close accuracy"] = _percent(one.hit for one in closed)
    return table


def task_metrics(answers: Sequence[AnsweredQuestion]) -> dict[str, float]:
    """Our measures of a task, fractions of 0 to 1; every key of `common.plan.Metric` is there.

    - `accuracy`: share of answers that equal the truth once both are normalized.
    - `balanced_accuracy`: that share within each class, averaged over the classes; a class is
      a distinct normalized truth, whichever question it answers.
    - `f1`, `recall`, `bleu`, `bleu_1`: the token measures, averaged over all answers, open and
      closed. `bleu` is 0 where an answer or its truth has fewer than four words.
    - `closed_accuracy` and `open_recall`: the paper's main measure of either kind, where
      there are answers of it.

    Raises:
        DataError: there is no answer at all.
    """
    judged = _judge_all(answers)
    opened = [one for kind, one in judged if kind is AnswerKind.OPEN]
    closed = [one for kind, one in judged if kind is AnswerKind.CLOSED]
    measures = {
        "accuracy": _mean(one.exact for _, one in judged),
        "balanced_accuracy": _balanced_accuracy([one for _, one in judged]),
        "f1": _mean(one.overlap.f1 for _, one in judged),
        "recall": _mean(one.overlap.recall for _, one in judged),
        "bleu": _mean(one.bleu.all for _, one in judged),
        "bleu_1": _mean(one.bleu.one for _, one in judged),
    }
    if closed:
        measures["closed_accuracy"] = _mean(one.hit for one in closed)
    if opened:
        measures["open_recall"] = _mean(one.overlap.recall for one in opened)
    return measures


def judge(answer: AnsweredQuestion) -> Judged:
    """Everything that can be measured on one answer; means of it are the tables above."""
    return _judge(answer.answer, answer.truth)


def majority_answers(train: Sequence[tuple[str, str]]) -> Callable[[str], str]:
    """The constant baseline: the commonest training answer of a question's text.

    Ties go to the answer that sorts first; a question never seen in training gets the
    commonest answer of all. `train` holds (question, answer) pairs, at least one.

    Raises:
        DataError: there is no training pair.
    """
    if not train:
        raise DataError("the majority answer: found no training pair, expected at least one")
    counts: dict[str, Counter[str]] = {}
    for question, answer in train:
        counts.setdefault(question, Counter())[answer] += 1
    commonest = {question: _commonest(answers) for question, answers in counts.items()}
    overall = _commonest(Counter(answer for _, answer in train))
    return lambda question: commonest.get(question, overall)


def overlap(candidate: str, reference: str) -> Overlap:
    """Token measures of two normalized texts; 0 where nothing is common or a side is empty.

    A common word counts as often as the candidate has it, also in the recall. The
    reference implementation normalizes its inputs once more, which matters past 32 periods.
    """
    said = Counter(normalize(candidate).split())
    true = Counter(normalize(reference).split())
    common = sum(count for word, count in said.items() if word in true)
    if common == 0:
        return Overlap(0.0, 0.0, 0.0)
    precision = common / said.total()
    recall = common / (common + sum(n for word, n in true.items() if word not in said))
    return Overlap(precision, recall, 2 * precision * recall / (precision + recall))


def bleu(candidate: str, reference: str) -> Bleu:
    """BLEU of two texts without smoothing, split at white space (doi 10.3115/1073083.1073135).

    NLTK's, as in the reference: an n-gram order without a match counts as the smallest
    float there is.
    """
    # Loads in a second or so, and only scoring needs it.
    from nltk.translate.bleu_score import (  # pyright: ignore[reportMissingTypeStubs]
        sentence_bleu,  # pyright: ignore[reportUnknownVariableType]
    )

    with warnings.catch_warnings():
        # It warns of every order without a match, which is the rule for short answers.
        warnings.simplefilter("ignore")
        scores = cast(
            list[float],
            sentence_bleu([reference.split()], candidate.split(), weights=_BLEU_WEIGHTS),
        )
    return Bleu(*map(float, scores))


def _parse_answer(line: str, where: str) -> AnsweredQuestion:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError):
        # A number of thousands of digits, or brackets a thousand deep.
        raise DataError(f"{where}: found JSON that can't be read, expected an answer") from None
    if not isinstance(found, dict):
        raise DataError(f"{where}: found {_shown(found)}, expected a JSON object")
    fields = {"answer_type": "OPEN", "prompt": ""} | cast(dict[str, object], found)
    for name, other in _OTHER_NAMES.items():
        if name not in fields and other in fields:
            fields[name] = fields[other]
    kind = _text(fields, "answer_type", where)
    if kind not in set(AnswerKind):
        raise DataError(f"{where}, answer_type: found {kind!r}, expected 'OPEN' or 'CLOSED'")
    return AnsweredQuestion(
        question=_text(fields, "prompt", where),
        answer=_text(fields, "text", where),
        truth=_text(fields, "gt", where),
        kind=AnswerKind(kind),
        id=None if fields.get("question_id") is None else _text(fields, "question_id", where),
    )


def _text(fields: Mapping[str, object], field: str, where: str) -> str:
    """The text of a field; a number or truth value is taken as Python writes it (str)."""
    if field not in fields:
        raise DataError(f"{where}, {field}: found nothing, expected text")
    value = fields[field]
    if not isinstance(value, str | int | float):
        raise DataError(f"{where}, {field}: found {_shown(value)}, expected text")
    return str(value)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _judge_all(answers: Sequence[AnsweredQuestion]) -> list[tuple[AnswerKind, Judged]]:
    if not answers:
        raise DataError("found no answer to score, expected at least one")
    return [(answer.kind, _judge(answer.answer, answer.truth)) for answer in answers]


@lru_cache(maxsize=_REMEMBERED)
def _judge(answer: str, truth: str) -> Judged:
    """Score one answer. An empty truth is contained in any answer, as in the reference.

    Only the answer is stripped first: a space at the truth's end decides about its punctuation.
    """
    said = normalize(answer.lower().replace("assistant:", "").strip())
    true = normalize(truth.lower())
    return Judged(true, said == true, true in said, overlap(said, true), bleu(said, true))


def _balanced_accuracy(judged: Sequence[Judged]) -> float:
    classes: dict[str, list[bool]] = {}
    for one in judged:
        classes.setdefault(one.truth, []).append(one.exact)
    return _mean(_mean(exact) for exact in classes.values())


def _commonest(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _percent(values: Iterable[float]) -> float:
    return 100 * _mean(values)


def _mean(values: Iterable[float]) -> float:
    """The mean, correctly rounded, so that the order of answers changes no bit."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)
