"""One training step on the site's own data, to see that it can; the result is discarded."""
# pyright: reportUnknownMemberType=false

import time

import torch

from client.backbones.registry import load_backbone
from client.data.task import read_task
from client.methods.interface import Assignment, method_code
from client.site.config import Device, Site
from common.errors import SiteFailed
from common.plan.plan import Plan


def trial_step(plan: Plan, site: Site, stage: int) -> tuple[float, float]:
    """Make one optimizer step of the stage, as round 1 begins it; return its seconds and loss.

    Raises:
        SiteFailed: there is too little memory, or the loss is not finite.
        DataError, ModelError: what the site has can't be used.
    """
    task = plan.stages[stage]
    examples = read_task(site.data / task.task).train[: task.site_batch_size]
    torch.set_num_threads(site.threads)
    cuda = torch.cuda.is_available() and site.device is not Device.CPU
    one_step = task.model_copy(update={"rounds": 1, "local_epochs": 1.0})
    stages = (*plan.stages[:stage], one_step, *plan.stages[stage + 1 :])
    method = method_code(plan.method)
    started = time.monotonic()
    try:
        assignment = Assignment(
            plan=plan.model_copy(update={"stages": stages}),
            stage=stage,
            round=1,
            site=site.name,
            backbone=load_backbone(
                site.base_model,
                plan.training.precision,
                torch.device("cuda" if cuda else "cpu"),
                plan.vision_weights,
            ),
            # No earlier release: a step costs about the same with them.
            bank={},
            active=(),
            candidate=None,
            checkpoint=None,
            reference=site.reference,
        )
        adapter = method.start(assignment, examples)
        _, result = method.train(assignment, adapter, examples, lambda _: None)
    except torch.OutOfMemoryError:
        raise SiteFailed(
            f"stage {task.name}: a step needs more GPU memory than there is; a smaller "
            "training.micro_batch in the plan may help, or a trainer that runs now holds it"
        ) from None
    return time.monotonic() - started, result.loss
