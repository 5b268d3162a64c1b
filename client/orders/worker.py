"""One of the processes that train together: `python -m client.orders.worker FOLDER`.

The folder holds the job (client/orders/worker_job.py); the leading process leaves the update there.
"""
# DeepSpeed has no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportMissingTypeStubs=false, reportMissingImports=false, reportUnknownLambdaType=false

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

import deepspeed
import torch
from deepspeed.runtime import compiler
from torch import nn

from client.model.device import configure_torch, device_of
from client.model.lora import merge_permanently
from client.orders.execute import assignment_of, train_here
from client.orders.resolve import resolve
from client.orders.session import SiteSession
from client.orders.worker_job import WorkerJob, leave_refusal, leave_update, read_job
from client.training.checkpoint import Checkpoint
from client.training.deepspeed import ZeroOptimizer
from client.training.optimizer import Optimizer
from common.errors import Refusal
from common.plan.plan import Training
from common.process import progress
from common.process.die_with_parent import die_with_parent

#: How long a process waits for the others before it takes them for dead.
_PATIENCE: Final = timedelta(minutes=20)


def main(folder: Path) -> int:
    """Do this process's part of the job; return 0, or 2 where it can't be done.

    A refusal would be the same at every try, so it is written down. Any other error ends
    this process, and the job is tried again.
    """
    die_with_parent(int(os.environ["TRAINER_PID"]))
    job = read_job(folder)
    try:
        _work(job, folder)
    except (Refusal, torch.OutOfMemoryError) as error:
        leave_refusal(folder, error)
        return 2
    return 0


def _work(job: WorkerJob, folder: Path) -> None:
    configure_torch(job.site)
    # Before the model is loaded: that is what says which GPU is this process's.
    _join(folder, device_of(job.site))
    leads = torch.distributed.get_rank() == 0

    def on_event(event: progress.ProgressEvent) -> None:
        if leads:
            progress.write_event(folder, "progress", event)

    session = SiteSession(job.site)
    resolved = resolve(job.order, session)
    checkpoint = None if job.checkpoints is None else Checkpoint(*job.checkpoints)
    assignment = replace(
        assignment_of(resolved, session, checkpoint),
        make_optimizer=partial(_zero_optimizer, stage=job.stage),
    )
    update = train_here(resolved, assignment, on_event)
    if leads:
        leave_update(folder, update)
    torch.distributed.destroy_process_group()


def _zero_optimizer(
    network: nn.Module, factors: Sequence[nn.Parameter], training: Training, stage: int
) -> Optimizer:
    # One copy of the weights: this process has one job, and the bare model is of no use in it.
    merge_permanently(network)
    return ZeroOptimizer(network, factors, training, stage)


def _join(folder: Path, device: torch.device) -> None:
    """Join the process group: of one machine, so its processes meet in a file, not at a port."""
    place, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        # Otherwise a C++ extension for CPUs is built at the first start (deepspeed 0.19:
        # 100 s, and a compiler), whose sums gloo does as well.
        deepspeed.ops.__dict__["__compatible_ops__"] = {}
    # To see that AdamW is not Muon, deepspeed 0.19 imports Muon, and its decorators torch's
    # compiler: half of the processor time that a worker took before its first step.
    compiler.__dict__["compile"] = lambda: compiler.dummy_decorator
    # deepspeed 0.19 calls what torch 2.13 has renamed, several times a step; not ours to mend.
    warnings.filterwarnings("ignore", ".*torch.distributed.* is deprecated", FutureWarning)
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=(folder / "meeting").absolute().as_uri(),
        rank=place,
        world_size=count,
        timeout=_PATIENCE,
    )
    deepspeed.init_distributed()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
