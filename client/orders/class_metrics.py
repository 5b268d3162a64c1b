"""Tasks with classes: among which a question is asked, and the measure of their scores."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from client.data.task import Example
from client.methods.interface import Assignment
from client.model.backbone import Prediction
from common.metrics import AUC
from common.plan_fields import Composition
from common.tensors import Array
from common.vqa_words import as_answer

#: The AUC of an answer that gives each class the same score for every picture.
AUC_OF_A_CONSTANT = 0.5


def asked_among(questions: Sequence[Example], classes: tuple[str, ...]) -> list[Example]:
    """Return the questions with the classes as their options."""
    return [replace(question, options=classes) for question in questions]


def answers_of_base(assignment: Assignment, questions: Sequence[Example]) -> list[Prediction]:
    """Return the answers of the base model alone."""
    backbone, plan = assignment.backbone, assignment.plan
    backbone.adapted.detach()
    backbone.adapted.freeze_adapters([], Composition.FOLD)
    return backbone.answer(questions, assignment.task.max_new_tokens, plan.evaluation.batch_size)


def class_metrics(
    questions: Sequence[Example], predictions: Sequence[Prediction]
) -> dict[str, float]:
    """Return the macro AUC of the classes' scores; empty where it is not defined.

    It is not if an answer has no scores, or if all questions are of one class.
    """
    scores = [said.class_scores for said in predictions if said.class_scores is not None]
    if len(scores) < len(predictions):
        return {}
    found = macro_auc([question.answer for question in questions], scores)
    return {} if found is None else {AUC: found}


def macro_auc(truths: Sequence[str], scores: Sequence[Mapping[str, float]]) -> float | None:
    """Return the mean over classes of the area under the ROC curve, one class against the rest.

    The area is the share of pairs, a question of the class and one of another, of which the
    first has the higher score of the class; equal ones count half (doi
    10.1148/radiology.143.1.7063747). By the sum of ranks: (sum of the class's ranks -
    n (n + 1) / 2) / (n m). The mean is over the classes that some question has and some has
    not; None without any.
    """
    answers = np.array([as_answer(truth) for truth in truths])
    areas: list[float] = []
    for name in scores[0] if scores else ():
        own = answers == as_answer(name)
        positives, negatives = int(own.sum()), int((~own).sum())
        if positives and negatives:
            ranks = _ranks(np.array([one[name] for one in scores], np.float64))
            above = float(ranks[own].sum()) - positives * (positives + 1) / 2
            areas.append(above / (positives * negatives))
    return sum(areas) / len(areas) if areas else None


def _ranks(values: Array) -> Array:
    """Return each value's rank from 1, equal ones the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
