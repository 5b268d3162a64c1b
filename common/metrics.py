"""Scores answers: the paper's table, and the metrics of our score matrix.

Source of the rules: the evaluator of MSLoRA-CR (arXiv 2508.11673), which is LLaVA-Med's, with
the word normalization of the VQA challenge (EvalAI). It reproduces the published figures to
their last digit, including the evaluator's quirks, each of which has a comment.
"""

import json
import math
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import cast

from common.errors import DataError
from common.vqa_words import normalize

#: Entries of the cache below; the largest file of the paper has 6,761 answers.
_CACHE_SIZE = 1 << 15
#: Of the four n-gram orders: the paper's `bleu_score`, and its `bleu_score_1` to `_3`.
_BLEU_WEIGHTS = [(0.25, 0.25, 0.25, 0.25), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)]
#: What NLTK (3.9) does without: it imports each of them in a `try`.
_NLTK_OPTIONAL = frozenset({"matplotlib", "pandas", "pyarrow", "scipy", "sklearn"})
#: Before the name of a metric: of the released adapter, where a site answers with its own B.
RELEASED = "released_"
#: Metrics: the shares of test images routed to the task's own stage, and to one of its modality;
#: the share that is called known, and the mean of the router's confidence.
ROUTER_STAGE, ROUTER_MODALITY = "router_stage", "router_modality"
ROUTER_KNOWN, ROUTER_CONFIDENCE = "router_known", "router_confidence"
ROUTER_METRICS = (ROUTER_STAGE, ROUTER_MODALITY, ROUTER_KNOWN, ROUTER_CONFIDENCE)
#: Of a task with classes (client/orders/class_metrics.py): macro one-vs-rest AUC; and before the
#: name of a metric: of the base model alone, asked among the same classes.
AUC, ZERO_SHOT = "auc", "zero_shot_"
#: The metrics of a task with classes that a report shows.
CLASS_METRICS = ("accuracy", "balanced_accuracy", AUC)
#: Metrics of one kind of question each: the share of closed answers that contain the true one, and
#: the mean token recall of open answers.
CLOSED_ACCURACY, OPEN_RECALL = "closed_accuracy", "open_recall"
#: The mean over classes of the share of a class's questions that are answered rightly.
BALANCED_ACCURACY = "balanced_accuracy"
#: Metrics of closed questions whose options the site knows (client/orders/option_metrics.py).
AMONG_OPTIONS, AMONG_OPTIONS_BY_MEAN = "accuracy_among_options", "accuracy_among_options_by_mean"
FREE_ACCURACY, ANSWERED_AN_OPTION = "accuracy_with_options", "answered_an_option"
OPTION_METRICS = (AMONG_OPTIONS, AMONG_OPTIONS_BY_MEAN, FREE_ACCURACY, ANSWERED_AN_OPTION)
#: The metrics of `task_metrics`, of any task.
TASK_METRICS = (
    "accuracy", "balanced_accuracy", "f1", "recall", "bleu", "bleu_1", "closed_accuracy",
    "open_recall",
)  # fmt: skip
#: Every name under which a site reports a score.
KNOWN_METRICS = frozenset(
    {
        *TASK_METRICS,
        *OPTION_METRICS,
        *CLASS_METRICS,
        *(f"{RELEASED}{name}" for name in TASK_METRICS),
        *(f"{ZERO_SHOT}{name}" for name in CLASS_METRICS),
        *ROUTER_METRICS,
    }
)
#: The fields that the paper's evaluator reads instead of missing ones.
_OTHER_NAMES = {"text": "prediction", "gt": "ground_truth"}


class AnswerKind(StrEnum):
    """The kind of a question: closed (a fixed set of answers, as yes or no) or open."""

    OPEN = "OPEN"
    CLOSED = "CLOSED"


def read_answer_kind(value: object) -> AnswerKind | None:
    """Return the kind that a file's `answer_type` names, in any case; None if it names none.

    As in the paper's evaluator, a test question without one is open.
    """
    name = "OPEN" if value is None else value.strip().upper() if isinstance(value, str) else ""
    return AnswerKind(name) if name in set(AnswerKind) else None


def read_answer_text(value: object) -> str | None:
    """Return an answer as text, a number or Boolean formatted by `str`; None if it is none.

    A number that is not finite is none: so pandas writes what is missing.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, str | int | float) else None


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """A question, the model's answer and the true answer.

    Attributes:
        id: the question's `question_id` in its file, not always unique there; None where it
            has none.
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
    """All measures of one answer, and the normalized true answer.

    `exact`: it equals the true answer, both normalized. `hit`: it contains it (closed questions).
    """

    truth: str
    exact: bool
    hit: bool
    overlap: Overlap
    bleu: Bleu


def read_answers(file: Path) -> list[AnsweredQuestion]:
    """Read answers, one JSON object a line: `question_id`, `prompt`, `text`, `gt`, `answer_type`.

    As in the paper's evaluator, a question without `answer_type` is open, and `prediction` and
    `ground_truth` are other names of `text` and `gt`. The scores do not depend on `question_id`
    and `prompt`, so these may be missing, too.

    Raises:
        DataError: a line can't be read (names file and line), or the file has no answer.
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
    """Return the table of the paper's evaluator: percentages, in its order, where they apply.

    Token and BLEU scores are means over the OPEN answers, `close accuracy` is the share of
    CLOSED answers that contain the true answer, `exact match score` is over all answers.

    Raises:
        DataError: there are no answers.
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
    """Return our metrics of a task, fractions of 0 to 1: every `Metric` of a plan but `auc`.

    - `accuracy`: share of answers that equal the true answer after normalization of both.
    - `balanced_accuracy`: this share within each class, averaged over the classes (the mean class
      recall); a class is a distinct normalized true answer, of whichever question.
    - `f1`, `recall`, `bleu`, `bleu_1`: the token measures, averaged over all answers, open and
      closed. `bleu` is 0 where the answer or the true answer has fewer than four words.
    - `closed_accuracy` and `open_recall`: the paper's main measure of closed and of open
      questions, where there are any.

    Raises:
        DataError: there are no answers.
    """
    judged = _judge_all(answers)
    opened = [one for kind, one in judged if kind is AnswerKind.OPEN]
    closed = [one for kind, one in judged if kind is AnswerKind.CLOSED]
    measures = {
        "accuracy": _mean(one.exact for _, one in judged),
        BALANCED_ACCURACY: _balanced_accuracy([one for _, one in judged]),
        "f1": _mean(one.overlap.f1 for _, one in judged),
        "recall": _mean(one.overlap.recall for _, one in judged),
        "bleu": _mean(one.bleu.all for _, one in judged),
        "bleu_1": _mean(one.bleu.one for _, one in judged),
    }
    if closed:
        measures[CLOSED_ACCURACY] = _mean(one.hit for one in closed)
    if opened:
        measures[OPEN_RECALL] = _mean(one.overlap.recall for one in opened)
    return measures


def judge(answer: AnsweredQuestion) -> Judged:
    """Return all measures of one answer; the tables above are means of them."""
    return _judge(answer.answer, answer.truth)


def majority_answers(train: Sequence[tuple[str, str]]) -> Callable[[str], str]:
    """Return the majority baseline: a question's text -> its most frequent training answer.

    Of equally frequent answers it is the one that sorts first; for a question that is not in
    training, the most frequent answer of all. `train` has (question, answer) pairs.

    Raises:
        DataError: `train` is empty.
    """
    if not train:
        raise DataError("the majority answer: found no training pair, expected at least one")
    counts: dict[str, Counter[str]] = {}
    for question, answer in train:
        counts.setdefault(question, Counter())[answer] += 1
    most_frequent = {question: _most_frequent(answers) for question, answers in counts.items()}
    overall = _most_frequent(Counter(answer for _, answer in train))
    return lambda question: most_frequent.get(question, overall)


def overlap(candidate: str, reference: str) -> Overlap:
    """Return token measures of two normalized texts; 0 without a common word.

    A common word counts as often as the candidate has it, also in the recall. The reference
    implementation normalizes its inputs once more, which matters after 32 periods.
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
    """Return BLEU of two texts, split at white space, not smoothed (doi 10.3115/1073083.1073135).

    By NLTK, as in the reference: an n-gram order without a match counts as the smallest
    positive float.
    """
    # Loaded here: it takes a while, and only scoring needs it.
    sentence_bleu = load_sentence_bleu()
    with warnings.catch_warnings():
        # It warns of every order without a match, which is normal for short answers.
        warnings.simplefilter("ignore")
        scores = sentence_bleu([reference.split()], candidate.split(), weights=_BLEU_WEIGHTS)
    return Bleu(*map(float, scores))


@dataclass(frozen=True)
class _WithoutOptional(MetaPathFinder):
    """Finds none of NLTK's optional packages for one thread; others' imports are as ever."""

    thread: int

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if threading.get_ident() == self.thread and fullname.partition(".")[0] in _NLTK_OPTIONAL:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


@cache
def load_sentence_bleu() -> Callable[..., Sequence[float]]:
    """Import NLTK, and return its `sentence_bleu`, which is plain Python.

    NLTK's other parts import large packages if they can, which was 2.6 of the 3.3 s of processor
    time that it took every process that scores answers.
    """
    absent = _WithoutOptional(threading.get_ident())
    sys.meta_path.insert(0, absent)
    try:
        from nltk.translate.bleu_score import (  # pyright: ignore[reportMissingTypeStubs]
            sentence_bleu,  # pyright: ignore[reportUnknownVariableType]
        )
    finally:
        sys.meta_path.remove(absent)
    return cast(Callable[..., Sequence[float]], sentence_bleu)


def _parse_answer(line: str, where: str) -> AnsweredQuestion:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError):
        # A number of thousands of digits, or brackets a thousand deep.
        raise DataError(f"{where}: found JSON that can't be read, expected an answer") from None
    if not isinstance(found, dict):
        raise DataError(f"{where}: found {_excerpt(found)}, expected a JSON object")
    fields = {"prompt": ""} | cast(dict[str, object], found)
    for name, other in _OTHER_NAMES.items():
        if name not in fields and other in fields:
            fields[name] = fields[other]
    kind = read_answer_kind(fields.get("answer_type"))
    if kind is None:
        given = str(fields["answer_type"])[:60]
        raise DataError(f"{where}, answer_type: found {given!r}, expected 'OPEN' or 'CLOSED'")
    return AnsweredQuestion(
        question=_text(fields, "prompt", where),
        answer=_text(fields, "text", where),
        truth=_text(fields, "gt", where),
        kind=kind,
        id=None if fields.get("question_id") is None else _text(fields, "question_id", where),
    )


def _text(fields: Mapping[str, object], field: str, where: str) -> str:
    """Return the text of a field (`read_answer_text`)."""
    if field not in fields:
        raise DataError(f"{where}, {field}: found nothing, expected text")
    value = read_answer_text(fields[field])
    if value is None:
        raise DataError(f"{where}, {field}: found {_excerpt(fields[field])}, expected text")
    return value


def _excerpt(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _judge_all(answers: Sequence[AnsweredQuestion]) -> list[tuple[AnswerKind, Judged]]:
    if not answers:
        raise DataError("found no answer to score, expected at least one")
    return [(answer.kind, _judge(answer.answer, answer.truth)) for answer in answers]


@lru_cache(maxsize=_CACHE_SIZE)
def _judge(answer: str, truth: str) -> Judged:
    """Score one answer. An empty true answer is contained in any answer, as in the reference.

    Only the answer is stripped first: a space at the end of the true answer affects how its
    punctuation is normalized.
    """
    said = normalize(answer.lower().replace("assistant:", "").strip())
    true = normalize(truth.lower())
    return Judged(true, said == true, true in said, overlap(said, true), bleu(said, true))


def _balanced_accuracy(judged: Sequence[Judged]) -> float:
    classes: dict[str, list[bool]] = {}
    for one in judged:
        classes.setdefault(one.truth, []).append(one.exact)
    return _mean(_mean(exact) for exact in classes.values())


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _percent(values: Iterable[float]) -> float:
    return 100 * _mean(values)


def _mean(values: Iterable[float]) -> float:
    """Return the mean, correctly rounded, so that it does not depend on the order."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)
