"""Dirichlet shares of answers and of sizes, and wrong labels: statistical heterogeneity.

A Dirichlet's shares are gamma variates over their sum, so one variate for each answer of a
hospital gives Dirichlet shares to every question, whichever of the answers it has; and one for
each hospital gives Dirichlet sizes to every task, whichever hospitals hold it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from common.identity import seed_for
from simulation.task_folder.write_task import Question

#: Where the logarithm of a gamma variate would be too far down to matter.
_SMALLEST: Final = 1e-300


def log_gamma_variate(rng: np.random.Generator, shape: float) -> float:
    """Draw the logarithm of a gamma variate, which for a small shape would itself be 0.

    Gamma(a) is Gamma(a + 1) times U to the power 1 / a (Marsaglia and Tsang 2000, section 6).
    """
    return float(np.log(rng.gamma(shape + 1)) + np.log(max(rng.random(), _SMALLEST)) / shape)


def size_share(seed: int, names: Sequence[str], alpha: float) -> Mapping[str, float]:
    """Return symmetric Dirichlet(alpha) shares of the hospitals, from each one's own draw."""
    drawn = [
        log_gamma_variate(np.random.default_rng(seed_for(seed, "size", name)), alpha)
        for name in names
    ]
    return dict(zip(names, _normalized(drawn), strict=True))


def answer_weights(
    rng: np.random.Generator, usual: Mapping[str, float], alpha: float
) -> Mapping[str, float]:
    """Draw the logarithm of a weight for each answer of a task.

    Normalized over any of the answers they are Dirichlet(alpha K p) shares, whose expectation
    is p (Hsu et al., arXiv:1909.06335, in the units of a symmetric Dirichlet over K answers).

    Args:
        usual: p, each answer's usual share of the task's questions.
    """
    return {
        answer: log_gamma_variate(rng, alpha * len(usual) * usual[answer])
        for answer in sorted(usual)
    }


def skewed_counts(
    rng: np.random.Generator, pool: Sequence[Question], count: int, weights: Mapping[str, float]
) -> Counter[tuple[str, str]]:
    """Draw how many questions of each text and answer a hospital has, `count` in all.

    Every text is asked as often as in the first `count` of the pool, so that only the answers
    are skewed; each answer is one that the pool has for the text. A text with an answer that has
    no weight, such as a sentence that is written once, keeps the answers of the pool.
    """
    known: dict[str, list[str]] = {}
    for question in pool:
        if question.answer not in known.setdefault(question.question, []):
            known[question.question].append(question.answer)
    usual = Counter(
        (question.question, question.answer)
        for question in (pool[place % len(pool)] for place in range(count))
    )
    asked: Counter[str] = Counter()
    for (text, _), number in usual.items():
        asked[text] += number
    wanted: Counter[tuple[str, str]] = Counter()
    for text, number in asked.items():
        answers = sorted(known[text])
        if any(answer not in weights for answer in answers):
            wanted.update({pair: times for pair, times in usual.items() if pair[0] == text})
            continue
        shares = _normalized([weights[answer] for answer in answers])
        for answer, drawn in zip(answers, rng.multinomial(number, shares), strict=True):
            wanted[text, answer] = int(drawn)
    return wanted


def taken(pool: Iterable[Question], wanted: Mapping[tuple[str, str], int]) -> list[Question]:
    """Return the first questions of each text and answer, as many as wanted or there are."""
    left = Counter(wanted)
    chosen: list[Question] = []
    for question in pool:
        if left[question.question, question.answer] > 0:
            left[question.question, question.answer] -= 1
            chosen.append(question)
    return chosen


def with_wrong_answers(
    rng: np.random.Generator, train: Sequence[Question], share: float
) -> tuple[list[Question], int]:
    """Give a share of the questions a wrong answer to the same text; return how many got one.

    A text that has one answer only is left as it is.
    """
    given: dict[str, set[str]] = {}
    for question in train:
        given.setdefault(question.question, set()).add(question.answer)
    open_to_doubt = [place for place, q in enumerate(train) if len(given[q.question]) > 1]
    number = min(round(share * len(train)), len(open_to_doubt))
    found = list(train)
    for place in rng.permutation(open_to_doubt)[:number]:
        question = train[int(place)]
        others = sorted(given[question.question] - {question.answer})
        found[int(place)] = replace(question, answer=others[int(rng.integers(len(others)))])
    return found, number


def _normalized(logarithms: Sequence[float]) -> list[float]:
    """Return the shares of numbers whose logarithms are given."""
    weights = np.exp(np.array(logarithms) - max(logarithms))
    return (weights / weights.sum()).tolist()
