"""Closed questions scored among their options: what a model knows apart from how it says it.

A model that has been trained on other tasks may answer in their words: its answer is then none of
the question's options, and wrong whatever it knows. Here the answer is the option with the largest
score (`Prediction.class_scores`), so only knowledge counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from client.data.answer_options import known_options
from client.data.task import Example, TaskData
from client.model.backbone import Prediction
from common.metrics import (
    AMONG_OPTIONS,
    AMONG_OPTIONS_BY_MEAN,
    ANSWERED_AN_OPTION,
    FREE_ACCURACY,
    AnsweredQuestion,
    AnswerKind,
    judge,
)


@dataclass(frozen=True, slots=True)
class _Scored:
    """A question, what was said, and the scores of its options: sums, and means over tokens."""

    question: Example
    said: str
    sums: Mapping[str, float]
    means: Mapping[str, float]


def with_options(data: TaskData) -> list[Example]:
    """Return the test questions, the closed ones with the options that training shows."""
    options = known_options((one.question, one.answer) for one in data.train)
    return [
        replace(one, options=options(one.question)) if one.kind is AnswerKind.CLOSED else one
        for one in data.test
    ]


def option_metrics(
    questions: Sequence[Example], predictions: Sequence[Prediction]
) -> dict[str, float]:
    """Return the metrics of the closed questions with scored options; empty without any.

    - `accuracy_among_options`: share whose likeliest option is the true answer. With `_by_mean`
      likeliest by the mean over an option's tokens, which does not favour short ones; that of
      a classifier is the same.
    - `accuracy_with_options`: share of these questions whose free answer is the true one.
    - `answered_an_option`: share whose free answer is one of the options, right or wrong.

    A true answer that is none of the options, since training never had it, counts as wrong.
    """
    scored = list(_scored(questions, predictions))
    if not scored:
        return {}
    found = {
        AMONG_OPTIONS: [_right(one.question, _likeliest(one.sums)) for one in scored],
        AMONG_OPTIONS_BY_MEAN: [_right(one.question, _likeliest(one.means)) for one in scored],
        FREE_ACCURACY: [_right(one.question, one.said) for one in scored],
        ANSWERED_AN_OPTION: [any(_same(one.said, option) for option in one.sums) for one in scored],
    }
    return {name: sum(right) / len(scored) for name, right in found.items()}


def _scored(questions: Sequence[Example], predictions: Sequence[Prediction]) -> Iterator[_Scored]:
    for question, said in zip(questions, predictions, strict=True):
        scores = said.class_scores
        if question.kind is AnswerKind.CLOSED and scores is not None and len(scores) > 1:
            yield _Scored(question, said.text, scores, said.token_means or scores)


def _likeliest(scores: Mapping[str, float]) -> str:
    """Return the option with the largest score; of equals the one that sorts first."""
    return min(scores, key=lambda option: (-scores[option], option))


def _right(question: Example, said: str) -> bool:
    return _same(said, question.answer)


def _same(said: str, truth: str) -> bool:
    """Return whether both are equal after normalization, as in the metric `accuracy`."""
    return judge(AnsweredQuestion("", said, truth, AnswerKind.CLOSED)).exact
