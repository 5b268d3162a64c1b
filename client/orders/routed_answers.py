"""Answer questions whose stage nobody tells: each picture chooses (client/inference/router.py)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from client.data.task import Example, images_of
from client.inference.image_prototype import picture_feature
from client.inference.router import route
from client.methods.interface import Assignment
from client.methods.lora_recipe import base_of
from common.exchange import ROUTER_MODALITY, ROUTER_STAGE
from common.image_prototype import ImagePrototype
from common.plan import Plan, Router

#: A method's way of answering.
Answering: TypeAlias = Callable[[Assignment, Sequence[Example]], list[str]]


def answer_routed(
    assignment: Assignment,
    prototypes: Mapping[int, ImagePrototype],
    questions: Sequence[Example],
    answering: Answering,
) -> tuple[list[str], dict[str, float]]:
    """The answer to each question by the stage of its picture's choice, and how often it is right.

    A stage answers with all that it sums itself. The shares are of different picture files.

    Raises:
        DataError: a picture can't be read.
        BankError: no prototype is of this base model.
    """
    chosen = _choices(assignment, prototypes, images_of(questions))
    texts = [""] * len(questions)
    for stage in sorted(set(chosen.values())):
        places = [place for place, q in enumerate(questions) if chosen[q.image] == stage]
        summed = replace(assignment, active=assignment.plan.summed_stages(stage))
        for place, text in zip(
            places, answering(summed, [questions[p] for p in places]), strict=True
        ):
            texts[place] = text
    return texts, shares_of(assignment.plan, assignment.stage, list(chosen.values()))


def shares_of(plan: Plan, task: int, chosen: Sequence[int]) -> dict[str, float]:
    """The shares of the chosen stages that are the task's own, and of its modality."""
    modality = plan.stages[task].modality
    alike = sum(plan.stages[stage].modality is modality for stage in chosen)
    return {
        ROUTER_STAGE: sum(stage == task for stage in chosen) / len(chosen),
        ROUTER_MODALITY: alike / len(chosen),
    }


def _choices(
    assignment: Assignment, prototypes: Mapping[int, ImagePrototype], images: Sequence[Path]
) -> dict[Path, int]:
    """The stage that each picture goes to."""
    model, router = base_of(assignment), assignment.plan.routing or Router()
    return {
        image: route(picture_feature(model, image), prototypes, router.temperature).best.stage
        for image in images
    }
