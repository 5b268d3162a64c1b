"""The resident trainer: one process that owns the device, and does the site's jobs one by one.

It keeps the base model in memory between orders; Flower's ClientApp processes come and go.
Whenever it dies it is started again, and goes on from the job's checkpoint.

    python -m client.node.trainer SITE_FILE
"""
# pyright: reportUnknownMemberType=false

import fcntl
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from client.node.jobs import Jobs
from client.site.blob_store import disk_trouble_said, make_folders
from client.site.config import Site, load_site
from client.site.failures import record_failure
from common.errors import Refusal, SiteFailed, StateError
from common.exchange import Order, Work
from common.process.progress import News

#: How often an idle trainer looks for a job.
POLL_S: Final = 0.2
#: An order over which so many trainers died in a row has failed, until it is wanted again.
DEATHS: Final = 10
#: So long a trainer waits for one that is just ending, or for somebody who asks `at_work`.
_PATIENCE_S: Final = 3.0

_LOCK = "trainer.lock"

log = logging.getLogger("fedmslora.trainer")


def run_trainer(site: Site) -> None:
    """Do the jobs of the site's store until SIGTERM or SIGINT; a job that fails is not the end.

    A signal ends it at once, in the middle of a step too (behind a picture that is being read
    ahead): what counts is on the disk.

    Raises:
        StateError: another trainer works on this store.
        SiteFailed: the store can't be written, or the GPU is lost to this process. Started
            again it may do better.
    """
    jobs = Jobs(site.store)
    try:
        with _ending_on_signals(), _alone(site.store):
            jobs.clear_leftovers()
            # Now and not with the first job: torch takes seconds, the first answer comes
            # sooner, and what is wrong with the installation shows at the start.
            import client.orders.execute  # pyright: ignore[reportUnusedImport]  # noqa: F401

            _serve(jobs, site)
    except KeyboardInterrupt:
        log.info("site %s: the trainer has ended", site.name)


def at_work(store: Path) -> bool:
    """Whether a trainer runs on this store."""
    try:
        descriptor = os.open(store / "jobs" / _LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _locked(descriptor)
    finally:
        os.close(descriptor)


def _serve(jobs: Jobs, site: Site) -> NoReturn:
    from client.model.feature_store import store_in

    # Not with the orders alone: what is to go goes while none comes, too.
    features = store_in(site.store, site.feature_cache_gib)
    log.info("site %s: the trainer is ready", site.name)
    while True:
        _next_job(jobs, site)
        if features is not None:
            features.tidy_if_due()


def _next_job(jobs: Jobs, site: Site) -> None:
    """The wanted job has been done, has failed or was given up; or there was none for a moment."""
    from client.training.checkpoint import NotWanted

    order = jobs.wanted()
    if order is None:
        time.sleep(POLL_S)
        return
    log.info("%s: begun", _words(order))
    try:
        _do(order, jobs, site)
    except NotWanted:
        log.info("%s: given up, another order is wanted", _words(order))
    except Exception as error:  # whatever it is, the next order may succeed
        failure = record_failure(site, error)
        jobs.fail(order, failure)
        # Not its text: that may name a patient's file, and logs are read by many.
        log.error("%s: %s; see %s", _words(order), failure.error, failure.reference)
    else:
        log.info("%s: answered", _words(order))
        return
    _free_memory()


def _do(order: Order, jobs: Jobs, site: Site) -> None:
    from client.orders.execute import do
    from client.training.checkpoint import Checkpoint

    digest = order.digest

    def tell(news: News) -> None:
        jobs.tell(digest, news)

    def wanted() -> bool:
        # None is one that can't be read just now: no reason to stop.
        newest = jobs.wanted()
        return newest is None or newest.digest == digest

    with jobs.attempt(order) as deaths:
        if deaths >= DEATHS:
            raise SiteFailed(
                f"site {site.name}: the trainer died {deaths} times in a row over this order, at "
                "the same step; the machine's log says why, often it is short of memory"
            )
        checkpoint = Checkpoint(jobs.checkpoint(digest), site.checkpoint_seconds, wanted)
        jobs.finish(order, do(order, site, tell, checkpoint))


def _free_memory() -> None:
    """The failed job's tensors are gone from memory.

    Raises:
        SiteFailed: the GPU is lost to this process, as after a fault in one of its kernels.
    """
    import torch

    gc.collect()  # the error's frames held them
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        kind = type(error).__name__
        raise SiteFailed(f"the GPU can't be used any more ({kind}); start again") from None


def _words(order: Order) -> str:
    where = f"stage {order.stage + 1}"
    where += f", round {order.round}" if order.work is Work.TRAIN else ""
    return f"{order.work} {where} ({order.digest[:12]})"


@contextmanager
def _alone(store: Path) -> Generator[None]:
    """While this lasts, no other trainer works on this store.

    The system frees the lock of a process that dies, however it dies.
    """
    with disk_trouble_said():
        make_folders(store / "jobs")
        # Not handed down to the processes that it starts, which may outlive it.
        descriptor = os.open(store / "jobs" / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        until = time.monotonic() + _PATIENCE_S
        while not _locked(descriptor):
            if time.monotonic() > until:
                raise StateError(f"{store}: found a trainer at work, expected none beside this one")
            time.sleep(POLL_S)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _ending_on_signals() -> Generator[None]:
    """While this lasts, SIGTERM and SIGINT raise KeyboardInterrupt, wherever the process is."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str]) -> int:
    """Run the trainer of the site whose file is the one argument; the exit code."""
    if len(arguments) != 1:
        print("usage: python -m client.node.trainer SITE_FILE", file=sys.stderr)
        return 2
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    try:
        run_trainer(load_site(Path(arguments[0])))
    except Refusal as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
