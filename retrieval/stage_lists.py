"""Which reference pairs a stage gets: how many of each of PRIMED's three layers, or of a variant.

Layers: the questions about earlier tasks' labels bring their best `task` pairs each, those of
the domains seen so far their best `domain`, and as many others, drawn at random, their best
`other`. The paper calls the counts a, b and c; its best b : c is 30 : 80 on HieraMedTransfer and
70 : 100 on MedXtreme. It states neither a, k, k_v nor how many others there are: a = 100,
k = 100, k_v = 1 and as many as domain questions are our reconstruction.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np

from common.identity import seed_for
from common.plan.plan import Plan
from common.plan.simulation import How
from retrieval.database import Database
from retrieval.pairs import OnProgress
from retrieval.questions import (
    ReferenceQuestion,
    StageQuestions,
    keyword_questions,
    stage_questions,
)
from retrieval.search import Cut, QuestionVectors, Searcher

#: Questions between two progress reports.
_PROGRESS_EVERY: Final = 256


class QuestionLayer(StrEnum):
    """What a pair was retrieved for."""

    TASK = "task"
    DOMAIN = "domain"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class ListSettings:
    """What a list is made by, beside plan and database.

    Attributes:
        k: see `Cut`; `images_per_caption`, too.
        task: pairs of each question about an earlier task's class (a).
        domain: pairs of each general question of a domain seen so far (b).
        other: pairs of each other general question that is drawn (c).
        size: pairs in all of the uniform variant; the paper says about ZSCL's, 100,000.
    """

    how: How = How.HIERARCHICAL
    k: int = 100
    images_per_caption: int = 1
    task: int = 100
    domain: int = 30
    other: int = 80
    size: int = 100_000

    def to_json(self) -> dict[str, Any]:
        """Return the fields that count for `how`."""
        unused = {"task", "domain", "other"} if self.how is How.UNIFORM else {"size"}
        return {name: value for name, value in asdict(self).items() if name not in unused}


@dataclass(frozen=True, slots=True)
class ListOrigin:
    """What a list is made from; `general` are the questions M_0."""

    plan: Plan
    general: Sequence[ReferenceQuestion]
    database: Database
    settings: ListSettings


@dataclass(frozen=True, slots=True)
class StageList:
    """The pairs of one stage: the layer of each pair's number, best layer and question first."""

    stage: str
    questions: Mapping[QuestionLayer, int]
    pairs: Mapping[int, QuestionLayer]


def stage_lists(
    origin: ListOrigin, vectors: QuestionVectors | None, on_progress: OnProgress
) -> list[StageList]:
    """Return every stage's list; equal arguments give equal lists.

    Args:
        vectors: None for BM25 alone, which uses none.

    Raises:
        PlanError: a stage names no classes.
        DataError: the questions' vectors don't suit the database.
    """
    plan, settings = origin.plan, origin.settings
    if settings.how is How.UNIFORM:
        return _uniform(origin, vectors, on_progress)
    of_stages = [stage_questions(plan, stage, origin.general) for stage in range(len(plan.stages))]
    places = [_places(plan, stage, questions) for stage, questions in enumerate(of_stages)]
    shares = _shares(settings, places)
    texts = [asked.text for stage in places for part in stage.values() for asked in part]
    k = settings.k
    if settings.how is not How.HIERARCHICAL:
        k = max([k, *(share for stage in shares for share in stage.values())])
    searcher = Searcher(origin.database, vectors, Cut(k, settings.images_per_caption))
    ways = {
        How.HIERARCHICAL: searcher.hierarchical,
        How.DENSE: searcher.dense,
        How.BM25: searcher.bm25,
    }
    ranked = _ranked(list(dict.fromkeys(texts)), ways[settings.how], on_progress)
    return [
        _merged(plan.stages[number].name, questions, shares[number], ranked)
        for number, questions in enumerate(places)
    ]


def _places(
    plan: Plan, stage: int, questions: StageQuestions
) -> dict[QuestionLayer, tuple[ReferenceQuestion, ...]]:
    """Return the questions of each layer; of the others as many as there are of the domain."""
    rng = np.random.default_rng(seed_for(plan.seed, "reference questions", stage))
    count = min(len(questions.domain), len(questions.other))
    drawn = np.sort(rng.permutation(len(questions.other))[:count])
    return {
        QuestionLayer.TASK: questions.task,
        QuestionLayer.DOMAIN: questions.domain,
        QuestionLayer.OTHER: tuple(questions.other[int(index)] for index in drawn),
    }


def _shares(
    settings: ListSettings, places: Sequence[Mapping[QuestionLayer, Sequence[ReferenceQuestion]]]
) -> list[dict[QuestionLayer, int]]:
    """Return how many pairs each question of a layer brings, by stage.

    The flat variants have as many places in all, shared equally.
    """
    own = {
        QuestionLayer.TASK: settings.task,
        QuestionLayer.DOMAIN: settings.domain,
        QuestionLayer.OTHER: settings.other,
    }
    if settings.how is How.HIERARCHICAL:
        return [own for _ in places]
    shares: list[dict[QuestionLayer, int]] = []
    for stage in places:
        total = sum(own[layer] * len(asked) for layer, asked in stage.items())
        share = max(1, round(total / max(1, sum(map(len, stage.values())))))
        shares.append(dict.fromkeys(QuestionLayer, share))
    return shares


def _ranked(
    questions: Sequence[str],
    search: Callable[[Sequence[str]], list[list[int]]],
    on_progress: OnProgress,
) -> dict[str, list[int]]:
    """Return the ranked pairs of each question; most stages ask the same general ones."""
    ranked: dict[str, list[int]] = {}
    for start in range(0, len(questions), _PROGRESS_EVERY):
        part = questions[start : start + _PROGRESS_EVERY]
        ranked |= dict(zip(part, search(part), strict=True))
        on_progress("questions", len(ranked), len(questions))
    return ranked


def _merged(
    stage: str,
    questions: Mapping[QuestionLayer, Sequence[ReferenceQuestion]],
    share: Mapping[QuestionLayer, int],
    ranked: Mapping[str, Sequence[int]],
) -> StageList:
    """Return the pairs of all layers, each pair in the first layer that has it."""
    pairs: dict[int, QuestionLayer] = {}
    for layer, asked in questions.items():
        for question in asked:
            for number in ranked[question.text][: share[layer]]:
                pairs.setdefault(number, layer)
    return StageList(stage, {layer: len(asked) for layer, asked in questions.items()}, pairs)


def _uniform(
    origin: ListOrigin, vectors: QuestionVectors | None, on_progress: OnProgress
) -> list[StageList]:
    """Return the same list for every stage: equal shares of the domains' keywords."""
    questions, settings = keyword_questions(), origin.settings
    share = max(1, settings.size // len(questions))
    searcher = Searcher(origin.database, vectors, Cut(share, settings.images_per_caption))
    ranked = _ranked([question.text for question in questions], searcher.dense, on_progress)
    by_layer = {QuestionLayer.OTHER: tuple(questions)}
    return [
        _merged(stage.name, by_layer, {QuestionLayer.OTHER: share}, ranked)
        for stage in origin.plan.stages
    ]
