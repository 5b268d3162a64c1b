"""The resident trainer: one process that owns the device and does the site's jobs one by one.

It keeps the base model in memory between orders, while Flower starts a ClientApp process for
each message. Whenever it dies it is started again, and resumes the job from its checkpoint.

    python -m client.node.trainer SITE_FILE
"""
# pyright: reportUnknownMemberType=false

import gc
import logging
import signal
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

from client.node.jobs import Jobs
from client.site.blob_store import disk_errors_as_site_failed, make_folders
from client.site.config import Site, load_site
from client.site.failures import record_failure
from common.errors import Refusal, SiteFailed, StateError
from common.exchange import Order
from common.process.file_lock import file_lock, is_locked
from common.process.progress import ProgressEvent
from common.work import Work

if TYPE_CHECKING:
    from client.orders.session import SiteSession

#: How often an idle trainer looks for a job.
POLL_S: Final = 0.2
#: An order over which so many trainers died in a row has failed, until it is requested again.
DEATHS: Final = 10
#: So long a trainer waits for one that is just ending, or for a process that asks
#: `trainer_is_running`.
_PATIENCE_S: Final = 3.0

log = logging.getLogger("fedmslora.trainer")


def run_trainer(site: Site) -> None:
    """Do the jobs of the site's store until SIGTERM or SIGINT; a failed job does not end it.

    A signal ends it at once, even in the middle of a step (after an image that is being
    prefetched): what counts is on the disk.

    Raises:
        StateError: another trainer works on this store.
        SiteFailed: the store can't be written, or this process has lost the GPU; a restart may
            help.
    """
    jobs = Jobs(site.store)
    try:
        with _interrupted_by_signals(), _only_trainer(site.store):
            jobs.clear_leftovers()
            # Now and not with the first job: importing torch takes seconds, and a broken
            # installation shows at the start.
            from client.orders.kept_answers import remove_answers
            from client.orders.session import SiteSession

            if not site.keep_answers:
                remove_answers(site)  # of releases before 0.7, which kept all
            _serve(jobs, SiteSession(site))
    except KeyboardInterrupt:
        log.info("site %s: the trainer has ended", site.name)


def trainer_is_running(store: Path) -> bool:
    """Return whether a trainer works on this store."""
    return is_locked(_lock_file(store))


def _serve(jobs: Jobs, session: "SiteSession") -> NoReturn:
    log.info("site %s: the trainer is ready", session.site.name)
    while True:
        # Here and not only with an order: what has expired is removed while no order comes, too.
        if session.features is not None:
            session.features.evict_if_due()
        _next_job(jobs, session)


def _next_job(jobs: Jobs, session: "SiteSession") -> None:
    """Do the requested job, or wait a moment where there is none."""
    from client.training.checkpoint import JobCancelled

    order = jobs.requested()
    if order is None:
        time.sleep(POLL_S)
        return
    log.info("%s: started", _label(order))
    try:
        _execute(order, jobs, session)
    except JobCancelled:
        log.info("%s: suspended, another order is requested", _label(order))
    except Exception as error:  # whatever it is, the next order may succeed
        failure = record_failure(session.site, error)
        jobs.fail(order, failure)
        # Not its text: that may name a patient's file, and logs are read by many.
        log.error("%s: %s; see %s", _label(order), failure.error, failure.reference)
    else:
        log.info("%s: answered", _label(order))
        return
    _free_memory()


def _execute(order: Order, jobs: Jobs, session: "SiteSession") -> None:
    from client.orders.execute import execute
    from client.training.checkpoint import Checkpoint

    digest, site = order.digest, session.site

    def on_event(event: ProgressEvent) -> None:
        jobs.record_progress(digest, event)

    def still_requested() -> bool:
        # None is an order that can't be read just now: no reason to stop.
        newest = jobs.requested()
        return newest is None or newest.digest == digest

    with jobs.attempt(order) as deaths:
        if deaths >= DEATHS:
            raise SiteFailed(
                f"site {site.name}: the trainer died {deaths} times in a row over this order, at "
                "the same step; the machine's log says why, often it is short of memory"
            )
        checkpoint = Checkpoint(jobs.checkpoint(digest), site.checkpoint_seconds, still_requested)
        jobs.finish(order, execute(order, session, on_event, checkpoint))


def _free_memory() -> None:
    """Free the failed job's tensors.

    Raises:
        SiteFailed: this process has lost the GPU, as after a fault in one of its kernels.
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
        raise SiteFailed(f"the GPU can't be used any more ({kind}): restart the trainer") from None


def _label(order: Order) -> str:
    where = f"stage {order.stage + 1}"
    where += f", round {order.round}" if order.work is Work.TRAIN else ""
    return f"{order.work.words} {where} ({order.digest[:12]})"


@contextmanager
def _only_trainer(store: Path) -> Generator[None]:
    """Lock the store against other trainers during the body."""

    def taken() -> StateError:
        return StateError(f"{store}: found a trainer at work, expected none beside this one")

    with ExitStack() as stack:
        with disk_errors_as_site_failed():
            make_folders(store / "jobs")
            lock = file_lock(_lock_file(store), patience_s=_PATIENCE_S, error=taken, mode=0o600)
            stack.enter_context(lock)
        yield


def _lock_file(store: Path) -> Path:
    return store / "jobs" / "trainer.lock"


@contextmanager
def _interrupted_by_signals() -> Generator[None]:
    """Have SIGTERM and SIGINT raise KeyboardInterrupt during the body."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str]) -> int:
    """Run the trainer of the site whose file is the one argument; return the exit code."""
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
