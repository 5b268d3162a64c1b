"""The resident trainer as a process: killed, stopped, ended, and the same bytes at the end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest
import yaml

from client.model import feature_store
from client.node import trainer
from client.node.jobs import Jobs
from client.node.trainer import DEATHS, main, trainer_is_running
from client.site.config import Site
from common.exchange import Answer, Order, Reason, Scores, Update
from common.plan.plan import Plan
from common.work import Work
from tests.flow.forked import ForkedModule
from tests.flow.small_site import (
    do,
    order_of,
    plan_of,
    second_stage,
    site_in,
    staged,
    write_site,
)
from tests.unit.client.node.test_jobs import died

ROOT = Path(__file__).resolve().parents[4]
#: Generous: the machine may be busy with other things.
PATIENCE_S = 180.0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def site(shared: Path, tmp_path: Path) -> Site:
    """A site that keeps a checkpoint of every step."""
    return site_in(shared, tmp_path / "store", checkpoint_seconds=1e-9)


def long(plan: Plan) -> Plan:
    """So many steps that a kill finds the training under way: 60 epochs of 2 batches."""
    return staged(staged(plan, 0, local_epochs=60.0), 1, local_epochs=60.0)


Process: TypeAlias = subprocess.Popen[bytes] | ForkedModule


@contextmanager
def trainer_of(site: Site, start: Callable[..., Process] = ForkedModule) -> Generator[Process]:
    """A trainer process, which has ended afterwards.

    It is forked, which saves it 9 s of imports; one test starts it as sites do.
    """
    file = site.store.parent / "site.yaml"
    file.write_text(yaml.safe_dump(json.loads(site.model_dump_json())))
    command = [sys.executable, "-m", "client.node.trainer", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log_of(site).open("ab") as log:
        process = start(command, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def log_of(site: Site) -> Path:
    return site.store.parent / "trainer.log"


def until(true: Callable[[], bool], process: Process) -> None:
    """It has become true while the process lived."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)


def ended(order: Order, site: Site) -> bool:
    return Jobs(site.store).requested() != order


def step_of(order: Order, site: Site) -> int:
    return Jobs(site.store).progress(order.digest)[0]


def answer_of(order: Order, site: Site) -> Answer:
    """The trainer's answer, if it did not fail."""
    jobs = Jobs(site.store)
    answer = jobs.answer(order.digest)
    assert answer is not None, jobs.failure(order.digest)
    return answer


def free(answer: Answer) -> Answer:
    """As if it had cost nothing."""
    return replace(answer, seconds=0.0, peak_memory=0) if isinstance(answer, Update) else answer


def undisturbed(order: Order, site: Site) -> Answer:
    return free(do(order, site, lambda news: None, None))


def test_a_trainer_killed_again_and_again_ends_with_the_undisturbed_update(site: Site):
    plan = long(plan_of(site))
    first = do(order_of(site, plan_of(site)), site, lambda news: None, None)
    assert isinstance(first, Update)
    order = second_stage(site, plan, first)
    expected = undisturbed(order, site)
    Jobs(site.store).request(order)
    for step in (5, 20, 50):
        with trainer_of(site) as process:
            until(lambda step=step: step_of(order, site) >= step, process)
            assert Jobs(site.store).requested() == order  # it had not ended before the kill
            process.kill()
    with trainer_of(site) as process:
        until(lambda: ended(order, site), process)
        # Removed once the answer is on the disk.
        until(lambda: not Jobs(site.store).checkpoint(order.digest).exists(), process)
    answer = answer_of(order, site)
    assert free(answer) == expected
    assert isinstance(answer, Update) and answer.seconds > 0 and answer.peak_memory > 100e6


def test_a_trainer_does_job_after_job_and_ends_cleanly_amid_one(site: Site):
    plan = plan_of(site)
    evaluation = order_of(site, plan, work=Work.EVALUATE, round=0)
    never_done = order_of(site, staged(plan, 0, local_epochs=10_000.0))
    jobs = Jobs(site.store)
    with trainer_of(site, subprocess.Popen) as process:
        for order in (order_of(site, plan), evaluation):
            jobs.request(order)
            until(lambda order=order: ended(order, site), process)
            assert free(answer_of(order, site)) == undisturbed(order, site)
        assert isinstance(answer_of(evaluation, site), Scores)
        jobs.request(never_done)
        until(lambda: step_of(never_done, site) > 0, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert "the trainer has ended" in log_of(site).read_text()
    assert jobs.requested() == never_done
    assert jobs.failure(never_done.digest) is None
    assert not trainer_is_running(site.store)


@pytest.mark.parametrize("gib", [0.0, 1.0])
def test_features_that_are_to_go_go_at_the_start_and_while_no_order_comes(
    site: Site, monkeypatch: pytest.MonkeyPatch, gib: float
):
    site = site.model_copy(update={"feature_cache_gib": gib})
    entries = [site.store / "features" / "ab" / f"ab{number:062x}" for number in range(3)]
    entries[0].parent.mkdir(parents=True)
    then, there = time.time() - feature_store.MAX_UNUSED_S - 60, list[list[bool]]()
    for entry in entries:
        entry.write_bytes(b"of a picture")
    os.utime(entries[0], (then, then))

    def next_job(*_: object) -> None:
        there.append([entry.exists() for entry in entries])
        if len(there) == 2:
            raise KeyboardInterrupt
        if gib:
            os.utime(entries[1], (then, then))

    monkeypatch.setattr(trainer, "_next_job", next_job)
    monkeypatch.setattr(feature_store, "_EVICTION_PERIOD_S", 0.0)
    trainer.run_trainer(site)
    none = [False, False, False]
    assert there == ([[False, True, True], [False, False, True]] if gib else [none, none])


def test_a_job_that_fails_is_recorded_and_the_next_one_is_done(site: Site, tmp_path: Path):
    (tmp_path / "data").mkdir()
    bare = site.model_copy(update={"data": tmp_path / "data"})
    plan = plan_of(site)
    jobs = Jobs(site.store)
    order, other_code = order_of(site, plan), order_of(site, plan, code="feed")
    with trainer_of(bare) as process:
        jobs.request(order)
        until(lambda: ended(order, site), process)
        failure = jobs.failure(order.digest)
        assert failure is not None
        assert (failure.site, failure.error, failure.reason) == ("north", "DataError", None)
        assert failure.reference in (site.store / "failures.log").read_text()
        jobs.request(other_code)
        until(lambda: ended(other_code, site), process)
        refusal = jobs.failure(other_code.digest)
        assert refusal is not None and refusal.reason is Reason.CODE
        for task in ("first", "second"):
            shutil.copytree(site.data / task, bare.data / task)
        jobs.request(order)
        until(lambda: ended(order, site), process)
    log = log_of(site).read_text()
    assert isinstance(answer_of(order, site), Update)
    # The text, which names a file, is in the site's own log of failures alone.
    assert failure.reference in log and "expected a task" not in log


def test_an_order_over_which_trainers_die_again_and_again_fails_until_asked_for_anew(site: Site):
    order, jobs = order_of(site, plan_of(site)), Jobs(site.store)
    jobs.request(order)
    for _ in range(DEATHS):
        died(site.store, order)
    with trainer_of(site) as process:
        until(lambda: ended(order, site), process)
        failure = jobs.failure(order.digest)
        assert failure is not None and failure.error == "SiteFailed"
        assert f"died {DEATHS} times in a row" in (site.store / "failures.log").read_text()
        jobs.request(order)
        until(lambda: ended(order, site), process)
    assert isinstance(answer_of(order, site), Update)


def test_a_newly_wanted_order_takes_the_place_of_one_under_way_which_goes_on_later(site: Site):
    plan = plan_of(site)
    slow, quick = order_of(site, long(plan)), order_of(site, plan)
    expected = undisturbed(slow, site)
    jobs = Jobs(site.store)
    with trainer_of(site) as process:
        jobs.request(slow)
        until(lambda: step_of(slow, site) >= 20, process)
        jobs.request(quick)
        until(lambda: jobs.answer(quick.digest) is not None, process)
        assert jobs.answer(slow.digest) is None and jobs.failure(slow.digest) is None
        assert jobs.checkpoint(slow.digest).exists()
        jobs.request(slow)
        until(lambda: ended(slow, site), process)
    assert free(answer_of(slow, site)) == expected


def test_one_trainer_a_store_even_while_it_is_stopped(
    site: Site, capsys: pytest.CaptureFixture[str]
):
    assert not trainer_is_running(site.store)
    with trainer_of(site) as process:
        until(lambda: trainer_is_running(site.store), process)
        process.send_signal(signal.SIGSTOP)
        assert main([str(site.store.parent / "site.yaml")]) == 2
        said = capsys.readouterr().err
        assert said == f"{site.store}: found a trainer at work, expected none beside this one\n"
        Jobs(site.store).request(order_of(site, plan_of(site)))  # asks no lock
        process.send_signal(signal.SIGCONT)
        until(lambda: ended(order_of(site, plan_of(site)), site), process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)
        assert not trainer_is_running(site.store)


def test_a_trainer_without_a_site_file_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main([]) == 2
    assert "usage: python -m client.node.trainer SITE_FILE" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere.yaml")]) == 2
    assert "nowhere.yaml: can't be read as a site file" in capsys.readouterr().err
