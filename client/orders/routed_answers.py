"""Answer questions whose stage nobody tells: picture and question choose it.

The question's words are compared here with those that the plan lists (client/inference/router.py).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from client.data.task import Example
from client.inference.image_prototype import picture_of
from client.inference.question_likeness import QuestionLikeness
from client.inference.router import PictureRouter, RoutedStage, Routing
from client.methods.interface import Assignment
from client.model.backbone import Prediction
from common.metrics import ROUTER_CONFIDENCE, ROUTER_KNOWN, ROUTER_MODALITY, ROUTER_STAGE
from common.plan.plan import Plan, Router
from common.router.image_prototype import ImagePrototype

#: A method's way of answering.
AnswerWith: TypeAlias = Callable[[Assignment, Sequence[Example]], list[Prediction]]


def answer_routed(
    assignment: Assignment,
    prototypes: Mapping[int, ImagePrototype],
    questions: Sequence[Example],
    answer: AnswerWith,
) -> tuple[list[Prediction], dict[str, float]]:
    """Answer each question by the stage that it and its picture choose; return `routing_shares`.

    A stage answers with the adapters that answer its task by now.

    Raises:
        DataError: a picture can't be read.
        BankError: no prototype is of this base model.
    """
    plan, backbone = assignment.plan, assignment.backbone
    stages = {
        stage: RoutedStage(prototype, own.modality, own.name, own.body_parts)
        for stage, prototype in prototypes.items()
        for own in [plan.stages[stage]]
    }
    listed = QuestionLikeness({stage: plan.stages[stage].questions or () for stage in prototypes})
    router = PictureRouter(stages, (plan.routing or Router()).temperature, listed)
    places_of: dict[Path, list[int]] = defaultdict(list)
    for place, question in enumerate(questions):
        places_of[question.image].append(place)
    routings: dict[int, Routing] = {}
    for image, places in places_of.items():
        picture = picture_of(backbone, image)
        routings |= {place: router.route(picture, questions[place].question) for place in places}
    chosen = [routings[place].best.stage for place in range(len(questions))]
    answered: dict[int, Prediction] = {}
    for stage in sorted(set(chosen)):
        places = [place for place, own in enumerate(chosen) if own == stage]
        active = plan.answering_stages(stage, max(assignment.bank))
        predictions = answer(
            replace(assignment, active=active), [questions[place] for place in places]
        )
        answered.update(zip(places, predictions, strict=True))
    by_image = [[routings[place] for place in places] for places in places_of.values()]
    shares = routing_shares(plan, assignment.stage, by_image)
    return [answered[place] for place in range(len(questions))], shares


def routing_shares(
    plan: Plan, task: int, by_image: Iterable[Sequence[Routing]]
) -> dict[str, float]:
    """Return means over different images of what the router said of each one's questions.

    They are the shares that went to the task's own stage, and to one of its modality, the share
    that is called known, and the confidence, which is calibrated where it is the share that went
    to the own stage.
    """
    modality = plan.stages[task].modality
    rows = [
        np.mean(
            [
                (
                    one.best.stage == task,
                    plan.stages[one.best.stage].modality is modality,
                    one.known,
                    one.best.probability,
                )
                for one in routings
            ],
            axis=0,
            dtype=np.float64,
        )
        for routings in by_image
    ]
    names = (ROUTER_STAGE, ROUTER_MODALITY, ROUTER_KNOWN, ROUTER_CONFIDENCE)
    return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))
