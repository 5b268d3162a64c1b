"""Comparison of two files of answers to the same questions, with significance tests."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import fsum

import numpy as np

from common.errors import DataError
from common.metrics import AnsweredQuestion, AnswerKind, Judged, judge
from report.significance import Bootstrap, McNemar, bootstrap, mcnemar

#: Seed of the bootstrap: equal files give equal intervals.
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerComparison:
    """One score of both files, in percent; differences are second minus first, in points.

    Attributes:
        kind: the questions that count: `all`, `closed` or `open`.
        score: the name in the paper's table.
        mcnemar: for scores where each answer is right or wrong; None for recall and F1.
        bootstrap: the interval of the difference, and its p.
    """

    kind: str
    questions: int
    score: str
    first: float
    second: float
    mcnemar: McNemar | None
    bootstrap: Bootstrap


#: Both files' answers to one question.
AnswerPair = tuple[AnsweredQuestion, AnsweredQuestion]
#: Id, question, truth, kind, and the number of equal ones before it.
_Key = tuple[str | None, str, str, AnswerKind, int]


def pair_answers(
    first: Sequence[AnsweredQuestion], second: Sequence[AnsweredQuestion], names: tuple[str, str]
) -> list[AnswerPair]:
    """Pair the answers of both files by question, in the first file's order.

    Several questions may have the same id (the paper's slake-vqarad is two data sets that both
    number their questions), so prompt and truth must be equal, too. Questions that are equal in
    all of these are paired in their order.

    Args:
        names: the files' names, for errors.

    Raises:
        DataError: an answer has no id, or has no partner in the other file.
    """
    ones, others = (_by_key(side, name) for side, name in zip((first, second), names, strict=True))
    for mine, theirs, here, there in (
        (ones, others, *names),
        (others, ones, *reversed(names)),
    ):
        for key in mine:
            if key not in theirs:
                raise DataError(_no_partner(mine[key], theirs.values(), here, there))
    return [(answer, others[key]) for key, answer in ones.items()]


def compare_answers(pairs: Sequence[AnswerPair]) -> list[AnswerComparison]:
    """Compare the scores of the paper's table, over all, closed and open questions.

    Raises:
        DataError: there is no pair.
    """
    if not pairs:
        raise DataError("found no answer to compare, expected at least one")
    judged = [(one.kind, judge(one), judge(other)) for one, other in pairs]
    return [
        _comparison(kind, score, measure, chosen)
        for kind, scores in _SCORES.items()
        if (chosen := [(one, other) for of, one, other in judged if kind in ("all", of.lower())])
        for score, measure in scores.items()
    ]


def _exact(judged: Judged) -> float:
    return float(judged.exact)


_SCORES: dict[str, dict[str, Callable[[Judged], float]]] = {
    "all": {"exact match score": _exact},
    "closed": {
        "close accuracy": lambda judged: float(judged.hit),
        "exact match score": _exact,
    },
    "open": {
        "recall": lambda judged: judged.overlap.recall,
        "f1 score": lambda judged: judged.overlap.f1,
        "exact match score": _exact,
    },
}
#: The scores that are 0 or 1 on a single question.
_YES_OR_NO = {"exact match score", "close accuracy"}


def _comparison(
    kind: str,
    score: str,
    measure: Callable[[Judged], float],
    judged: Sequence[tuple[Judged, Judged]],
) -> AnswerComparison:
    first, second = ([measure(pair[side]) for pair in judged] for side in (0, 1))
    right = [[value == 1 for value in side] for side in (first, second)]
    difference = 100 * (np.array(second) - np.array(first))
    return AnswerComparison(
        kind=kind,
        questions=len(judged),
        score=score,
        first=100 * fsum(first) / len(first),
        second=100 * fsum(second) / len(second),
        mcnemar=mcnemar(*right) if score in _YES_OR_NO else None,
        bootstrap=bootstrap([difference], np.random.default_rng(_SEED)),
    )


def _by_key(answers: Sequence[AnsweredQuestion], name: str) -> dict[_Key, AnsweredQuestion]:
    """Return the answers by question."""
    found: dict[_Key, AnsweredQuestion] = {}
    seen: Counter[tuple[str | None, str, str, AnswerKind]] = Counter()
    for number, answer in enumerate(answers, 1):
        if answer.id is None:
            raise DataError(
                f"{name}, answer {number}: found no question_id, expected one to pair it by"
            )
        question = (answer.id, answer.question, answer.truth, answer.kind)
        found[(*question, seen[question])] = answer
        seen[question] += 1
    return found


def _no_partner(
    answer: AnsweredQuestion, others: Iterable[AnsweredQuestion], here: str, there: str
) -> str:
    """Return the error for an answer of `here` without partner in `there`."""
    same = [other for other in others if other.id == answer.id]
    where = f"{there}, question_id {str(answer.id)[:60]}"
    if not same:
        return f"{where}: found nothing, expected an answer as in {here}"
    for field, named in (("question", "prompt"), ("truth", "gt"), ("kind", "answer_type")):
        wanted = getattr(answer, field)
        found = getattr(same[0], field)
        same = [other for other in same if getattr(other, field) == wanted]
        if not same:
            return (
                f"{where}, {named}: found {_short(found)}, expected {_short(wanted)} as in {here}"
            )
    return f"{where}: found {len(same)} of these questions, expected as many as in {here}"


def _short(text: str) -> str:
    # An enum's repr would name its class.
    text = str(text)
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
