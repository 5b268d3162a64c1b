"""One step of training on the site's own data, to see that it can: the result is thrown away."""
# pyright: reportUnknownMemberType=false

import time

import torch

from client.data.task import read_task
from client.methods.interface import Assignment
from client.orders.execute import METHODS
from client.site.config import Device, Site
from client.training.loop import Progress
from common.errors import SiteFailed
from common.plan import Plan


def one_step(plan: Plan, site: Site, stage: int) -> tuple[float, float]:
    """The seconds and the mean loss of one optimizer step of the stage, as round 1 begins it.

    Raises:
        SiteFailed: there is too little memory, or the loss is not finite.
        DataError, ModelError: what the site has can't be used.
    """
    task = plan.stages[stage]
    examples = read_task(site.data / task.task).train[: task.batch_size]
    torch.set_num_threads(site.threads)
    assignment = _assignment(_shortened(plan, stage), site, stage)
    method = METHODS[plan.method.name]
    started = time.monotonic()
    try:
        _, trained = method.train(assignment, method.start(assignment, examples), examples, _silent)
    except torch.OutOfMemoryError:
        raise SiteFailed(
            f"stage {task.name}: a step needs more GPU memory than there is; a smaller "
            "training.micro_batch in the plan may help, or a trainer that runs now holds it"
        ) from None
    return time.monotonic() - started, trained.loss


def _shortened(plan: Plan, stage: int) -> Plan:
    """The plan, but its stage is one epoch of one round."""
    stages = list(plan.stages)
    stages[stage] = stages[stage].model_copy(update={"rounds": 1, "local_epochs": 1.0})
    return plan.model_copy(update={"stages": tuple(stages)})


def _assignment(plan: Plan, site: Site, stage: int) -> Assignment:
    there = torch.cuda.is_available() and site.device is not Device.CPU
    return Assignment(
        plan=plan,
        stage=stage,
        round=1,
        site=site.name,
        # No earlier release: a step costs about the same with them.
        bank={},
        active=(),
        candidate=None,
        base_model=site.base_model,
        device=torch.device("cuda" if there else "cpu"),
        checkpoint=None,
    )


def _silent(_: Progress) -> None:
    """Nobody follows a single step."""
