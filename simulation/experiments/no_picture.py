"""What is reached without looking at a picture: the scores that a model's score is held against."""

from collections.abc import Sequence

from common.errors import PlanError
from common.metrics import AnsweredQuestion, judge, majority_answers
from common.plan.plan import Metric
from report.spread import mean

#: Most different answers to a question of which the chance score takes the mean.
MOST_ANSWERS = 24
#: Questions with their true answers.
Asked = Sequence[tuple[str, str]]


def measure(answer: AnsweredQuestion, metric: Metric) -> float:
    """Return one answer's contribution to the mean that is a task's measure; a fraction.

    Raises:
        PlanError: the measure is no mean over answers.
    """
    judged = judge(answer)
    match metric:
        case Metric.ACCURACY:
            return float(judged.exact)
        case Metric.F1:
            return judged.overlap.f1
        case Metric.RECALL:
            return judged.overlap.recall
        case Metric.BLEU:
            return judged.bleu.all
        case Metric.BALANCED_ACCURACY | Metric.AUC:
            raise PlanError(
                f"metric: found {str(metric)!r}, expected one that is a mean over answers"
            )


def chance(train: Asked, test: Sequence[AnsweredQuestion], metric: Metric) -> float:
    """Return the expected measure of a random answer, a fraction.

    It is drawn from the different answers that training gives to the same question, each equally
    likely; of very many, as in reports, from `MOST_ANSWERS` of them. A question that training does
    not have takes them from the test.
    """
    given = _answers([(one.question, one.truth) for one in test]) | _answers(train)
    return mean(
        [
            mean([_measure_of(one, answer, metric) for answer in _some(given[one.question])])
            for one in test
        ]
    )


def majority(train: Asked, test: Sequence[AnsweredQuestion], metric: Metric) -> float:
    """Return the measure of always giving training's commonest answer to the question."""
    commonest = majority_answers(train)
    return mean([_measure_of(one, commonest(one.question), metric) for one in test])


def _answers(asked: Asked) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {}
    for question, answer in asked:
        found.setdefault(question, {})[answer] = None
    return {question: sorted(answers) for question, answers in found.items()}


def _some(answers: Sequence[str]) -> Sequence[str]:
    return answers[:: -(-len(answers) // MOST_ANSWERS)]


def _measure_of(one: AnsweredQuestion, answer: str, metric: Metric) -> float:
    return measure(AnsweredQuestion(one.question, answer, one.truth, one.kind), metric)
