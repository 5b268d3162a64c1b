"""Answer questions whose stage nobody tells: each picture chooses (client/inference/router.py).

It does so by itself and its file's header; the question's words play no part.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from client.data.task import Example, images_of
from client.inference.image_prototype import picture_of
from client.inference.router import PictureRouter, RoutedStage
from client.methods.interface import Assignment
from client.model.backbone import Prediction
from common.metrics import ROUTER_MODALITY, ROUTER_STAGE
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
    """Answer each question by the stage that its picture chooses; return how often it is right.

    A stage answers with the adapters that answer its task by now. The shares are of different
    picture files.

    Raises:
        DataError: a picture can't be read.
        BankError: no prototype is of this base model.
    """
    plan, backbone = assignment.plan, assignment.backbone
    stages = {
        stage: RoutedStage(prototype, plan.stages[stage].modality, plan.stages[stage].name)
        for stage, prototype in prototypes.items()
    }
    router = PictureRouter(stages, (plan.routing or Router()).temperature)
    chosen = {
        image: router.route(picture_of(backbone, image)).best.stage
        for image in images_of(questions)
    }
    answered: dict[int, Prediction] = {}
    for stage in sorted(set(chosen.values())):
        places = [place for place, q in enumerate(questions) if chosen[q.image] == stage]
        active = plan.answering_stages(stage, max(assignment.bank))
        predictions = answer(
            replace(assignment, active=active), [questions[place] for place in places]
        )
        answered.update(zip(places, predictions, strict=True))
    shares = routing_shares(plan, assignment.stage, list(chosen.values()))
    return [answered[place] for place in range(len(questions))], shares


def routing_shares(plan: Plan, task: int, chosen: Sequence[int]) -> dict[str, float]:
    """Return the shares of the chosen stages that are the task's own, and of its modality."""
    modality = plan.stages[task].modality
    alike = sum(plan.stages[stage].modality is modality for stage in chosen)
    return {
        ROUTER_STAGE: sum(stage == task for stage in chosen) / len(chosen),
        ROUTER_MODALITY: alike / len(chosen),
    }
