"""Several processes train one order together, one a GPU, with DeepSpeed.

The site's trainer starts them over a job folder and watches them. A worker that dies takes
the others with it, and all are started again from the job's last checkpoint: it costs the
site a little time, and the federation nothing.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import torch

from client.model.device import device_of
from client.orders.resolve import ResolvedOrder
from client.orders.worker_job import WorkerJob, found_refusal, found_update, write_job
from client.site.config import Site
from client.training.checkpoint import Checkpoint
from common.durable import DISK, remove_if_there
from common.errors import SiteFailed
from common.exchange import Update
from common.identity import ROOT
from common.process.progress import Follower, OnEvent

#: So often in a row the workers may end without having got on to a new checkpoint.
TRIES: Final = 3
_POLL_S: Final = 0.2
#: How long workers may take to end when the update is there.
_END_S: Final = 10.0


def train_with_workers(
    resolved: ResolvedOrder, on_event: OnEvent, checkpoint: Checkpoint | None
) -> Update:
    """Train the order's round over `site.workers` processes.

    Raises:
        SiteFailed: DeepSpeed is missing, or the workers died again and again.
        JobCancelled: the job is no longer requested, as it turned out at a checkpoint.
        Refusal: what a worker said, in its own class.
    """
    site = resolved.site
    if find_spec("deepspeed") is None:
        raise SiteFailed(f"site {site.name}, workers: found no DeepSpeed, expected it installed")
    job = WorkerJob(
        order=resolved.order,
        site=_seen_by_one(site),
        stage=site.zero,
        checkpoints=None
        if checkpoint is None
        else (checkpoint.folder.absolute(), checkpoint.every_s),
    )
    if device_of(site).type == "cuda":
        # The trainer's own base model does not stay beside the first worker's.
        torch.cuda.empty_cache()
    folder, tries = site.store / "workers", 0
    while tries < TRIES:
        latest = _latest(checkpoint)
        update = _try(folder, job, site, on_event, checkpoint)
        if update is not None:
            remove_if_there(folder, DISK)
            return update
        tries = 0 if _latest(checkpoint) != latest else tries + 1
    raise SiteFailed(
        f"site {site.name}: the {site.workers} workers ended {TRIES} times without an update or a "
        f"new checkpoint; their output is in {folder}"
    )


class WorkerGroup:
    """The worker processes of one try; none outlives the block."""

    def __init__(self, folder: Path, site: Site) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._folder, self._site = folder, site

    def __enter__(self) -> Self:
        try:
            for place in range(self._site.workers):
                self._processes.append(_start(self._folder, self._site, place))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def broken(self) -> bool:
        """Return whether a worker died, or all have ended."""
        codes = [process.poll() for process in self._processes]
        return None not in codes or any(codes)

    def wait(self) -> None:
        """Give the workers time to end by themselves."""
        until = time.monotonic() + _END_S
        while not self.broken() and time.monotonic() < until:
            time.sleep(_POLL_S)

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()


def _try(
    folder: Path, job: WorkerJob, site: Site, tell: OnEvent, checkpoint: Checkpoint | None
) -> Update | None:
    """Try the job once; return the update, or None where a worker died."""
    remove_if_there(folder, DISK)
    folder.mkdir(parents=True)
    write_job(folder, job)
    follower = Follower(folder)
    wanted = _asked_at_checkpoints(checkpoint)
    with WorkerGroup(folder, site) as group:
        while True:
            # Asked before the folder is read, so that last words are not missed.
            broken = group.broken()
            for _, news in follower.events():
                tell(news)
            if (update := found_update(folder)) is not None:
                group.wait()
                return update
            if (refusal := found_refusal(folder)) is not None:
                raise refusal
            if broken:
                return None
            wanted()
            time.sleep(_POLL_S)


def _asked_at_checkpoints(checkpoint: Checkpoint | None) -> Callable[[], None]:
    """Return a check for each new checkpoint: it raises where the job is no longer requested."""
    seen = [_latest(checkpoint)]

    def ask() -> None:
        latest = _latest(checkpoint)
        if checkpoint is not None and latest != seen[0]:
            seen[0] = latest
            checkpoint.raise_if_cancelled()

    return ask


def _start(folder: Path, site: Site, place: int) -> subprocess.Popen[bytes]:
    # Without the working folder in front, this very code is what `-m` finds.
    command = [sys.executable, "-P", "-m", "client.orders.worker", str(folder.absolute())]
    loopback = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    environment = {
        **os.environ,
        **loopback,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "DS_ACCELERATOR": device_of(site).type,
        "RANK": str(place),
        "LOCAL_RANK": str(place),
        "WORLD_SIZE": str(site.workers),
        "LOCAL_WORLD_SIZE": str(site.workers),
        "TRAINER_PID": str(os.getpid()),
    }
    with (folder / f"worker-{place}.log").open("ab") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def _seen_by_one(site: Site) -> Site:
    """Return the site as one worker sees it: alone, with its share of the threads."""
    paths = {name: getattr(site, name).absolute() for name in ("data", "base_model", "store")}
    threads = max(1, site.threads // site.workers)
    return site.model_copy(update={**paths, "workers": 1, "threads": threads})


def _latest(checkpoint: Checkpoint | None) -> str | None:
    return None if checkpoint is None else checkpoint.latest()
