"""Two processes with DeepSpeed on the CPU come to what one process comes to."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

from client.model.base_digest import base_digest
from client.orders import workers
from client.orders.worker_job import (
    WorkerJob,
    found_refusal,
    found_update,
    leave_refusal,
    leave_update,
    read_job,
    write_job,
)
from client.site import blob_store
from client.site.config import Site
from client.training.checkpoint import Checkpoint, JobCancelled
from common.adapter import arrays, from_bytes
from common.code_digest import code_digest
from common.errors import DataError, SiteFailed
from common.exchange import Order, ReleaseRef, Update
from common.identity import ROOT
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.process.progress import OnEvent, ProgressEvent
from common.work import Work
from tests.flow.forked import ForkedModule
from tests.flow.small_site import do
from tests.flow.tiny_llava import write_llava, write_task

pytest.importorskip("deepspeed")

QUESTIONS = [
    ("what colour is this ?", "red"),
    ("is it the left side ?", "no the right side"),
    ("what colour is this ?", "red"),
    ("is this it ?", "yes"),
    ("what colour is this ?", "blue"),
    ("which side ?", "left"),
    ("what is this ?", "the left side of it"),
]


POLICY = {"modalities": ["ct", "mr"], "plans": "any", "rounds": 9, "examples": 1}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    write_llava(folder / "base")
    write_task(folder / "data" / "first", QUESTIONS)
    write_task(folder / "data" / "second", list(reversed(QUESTIONS)))
    return folder


def site_of(shared: Path, store: Path, **changes: Any) -> Site:
    fields: dict[str, Any] = {
        "name": "north", "data": shared / "data", "base_model": shared / "base", "store": store,
        "device": "cpu", "threads": 1,
        "policy": POLICY,
    }  # fmt: skip
    text = json.dumps({**fields, **changes}, default=str)
    return Site.model_validate_json(text)


def plan_of(
    shared: Path,
    rule: str = "svd",
    weight: float = 0.1,
    batch_size: int = 5,
    epochs: float = 4.0,
    **training: Any,
) -> Plan:
    stages = [
        {
            "name": task, "modality": modality, "task": task, "sites": ["north"], "rounds": 3,
            "local_epochs": epochs, "learning_rate": 0.01, "batch_size": batch_size,
        }
        for task, modality in (("first", "ct"), ("second", "mr"))
    ]  # fmt: skip
    return parse_plan(
        {
            "name": "plan", "seed": 7, "aggregation": rule, "stages": stages, "wire": "fp32",
            "base_model": {"name": "tiny", "sha256": base_digest(shared / "base")},
            "training": {"micro_batch": 2, **training},
            "method": {
                "name": "mslora_cr", "rank": 2, "alpha": 2.0,
                "active": "all",
                "contrast": {"similarity": "exp", "weight": weight, "orthogonality": 0.01},
            },
        },
        "test",
    )  # fmt: skip


def order_of(plan: Plan, site: Site, **changes: Any) -> Order:
    fields: dict[str, Any] = {
        "work": Work.TRAIN, "plan": blob_store.put(site.store, plan.canonical().encode()),
        "stage": 0, "round": 1, "releases": (), "active": (), "adapter": None,
        "code": code_digest(),
    }  # fmt: skip
    return Order(**{**fields, **changes})


Process: TypeAlias = subprocess.Popen[bytes] | ForkedModule


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forked, which saves them 10 s of imports; one test starts them as sites do."""
    monkeypatch.setattr(workers, "subprocess", SimpleNamespace(Popen=ForkedModule, DEVNULL=None))
    monkeypatch.setattr(workers, "_POLL_S", 0.02)


def ignore(_: ProgressEvent) -> None:
    """Nobody listens."""


def second_stage(plan: Plan, site: Site) -> Order:
    """Round 2 of the second stage: on a release, and with a regularizer."""
    first = do(order_of(plan, site), site, ignore, None)
    assert isinstance(first, Update)
    digest = blob_store.put(site.store, first.adapter)
    return order_of(
        plan, site, stage=1, round=2, releases=(ReleaseRef(0, digest),), active=(0,),
        adapter=digest,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Task:
    """An order that the store of `site` has everything for, and its plan."""

    order: Order
    site: Site

    def one(self) -> Update:
        """What one process comes to."""
        return done(self.order, self.site, None)

    def two(
        self, stage: int, checkpoint: Checkpoint | None = None, tell: OnEvent = ignore
    ) -> Update:
        """What two processes come to."""
        both = self.site.model_copy(update={"workers": 2, "zero": stage})
        return done(self.order, both, checkpoint, tell)


def done(order: Order, site: Site, checkpoint: Checkpoint | None, tell: OnEvent = ignore) -> Update:
    update = do(order, site, tell, checkpoint)
    assert isinstance(update, Update)
    return update


def task_of(shared: Path, folder: Path, **changes: Any) -> Task:
    site = site_of(shared, folder)
    return Task(second_stage(plan_of(shared, **changes), site), site)


def distance(one: Update, other: Update) -> float:
    """The largest difference of any number of the two adapters."""
    ours, theirs = (arrays(from_bytes(update.adapter, "test")) for update in (one, other))
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)


#: Sums of fp32 numbers in another order differ by 1e-7 of them, and AdamW hands a gradient's
#: relative error on to the step, of which there are six of at most the rate, 0.01: some 1e-7
#: is measured. A gradient that is really another one moves a number by a good part of the rate.
ROUNDING = 2e-6


@pytest.mark.parametrize(
    ("stage", "optimizer", "changes"),
    [
        (1, "DeepSpeedZeroOptimizer", {"rule": "alternating"}),
        (2, "DeepSpeedZeroOptimizer", {"packing": True, "micro_batch": 3}),
        (3, "DeepSpeedZeroOptimizer_Stage3", {"gradient_checkpointing": True}),
        (
            3,
            "DeepSpeedZeroOptimizer_Stage3",
            {"rule": "frozen_a", "micro_batch": None, "proximal": 0.1},
        ),
    ],
)
def test_two_processes_come_to_what_one_comes_to(
    shared: Path,
    tmp_path: Path,
    stage: int,
    optimizer: str,
    changes: dict[str, Any],
    request: pytest.FixtureRequest,
):
    if stage > 1:
        request.getfixturevalue("forked")
    task = task_of(shared, tmp_path / "store", **changes)
    one = task.one()
    two = task.two(stage, Checkpoint(tmp_path / "kept", 0.0))
    layout = json.loads((tmp_path / "kept" / "checkpoint.json").read_text())["of"]["layout"]
    assert layout == f"DeepSpeedEngine with {optimizer}, stage {stage}, 2 processes"
    assert distance(one, two) < ROUNDING
    assert (two.steps, two.examples, two.order) == (one.steps, 7, one.order)
    assert two.loss == pytest.approx(one.loss, rel=1e-6)
    assert two.regularizer == pytest.approx(one.regularizer, rel=1e-6)
    assert one.regularizer > 0


BASELINE: dict[str, Any] = {"rank": 2, "alpha": 2.0}


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("stage", "method", "steps"),
    [
        (2, {"name": "joint", **BASELINE}, 6),
        (
            3,
            {
                "name": "mslora_cr",
                **BASELINE,
                "active": "all",
                "contrast": None,
                "start": "gradient",
            },
            6,
        ),
        (1, {"name": "zero_shot", **BASELINE}, 0),
    ],
    ids=["joint", "gradient", "zero_shot"],
)
def test_two_processes_do_the_other_methods_as_one_does(
    shared: Path, tmp_path: Path, stage: int, method: dict[str, Any], steps: int
):
    site = site_of(shared, tmp_path / "store", policy={**POLICY, "images": 2})
    document = plan_of(shared).model_dump(mode="json")
    stages = [{**one, "rounds": 1} for one in document["stages"]]
    changes = {"method": method, "stages": stages, "router": {"minimum": 2}}
    plan = parse_plan({**document, **changes}, "test")
    task = Task(order_of(plan, site), site)
    one, two = task.one(), task.two(stage)
    assert distance(one, two) < ROUNDING
    assert (one.steps, two.steps) == (steps, steps)
    assert two.loss == pytest.approx(one.loss, rel=1e-6)
    # The prototype is made by the site's own process, whoever trained.
    assert two.prototype == one.prototype
    assert (one.prototype is None) is (plan.routing is None)


@pytest.mark.parametrize("wrong", [{"weight": 0.2}, {"max_grad_norm": 1e9}, {"batch_size": 3}])
def test_a_wrong_step_would_be_seen_far_above_rounding(
    shared: Path, tmp_path: Path, wrong: dict[str, Any]
):
    right = task_of(shared, tmp_path / "right").one()
    other = task_of(shared, tmp_path / "wrong", **wrong).one()
    # Their first stages differ, too, but for the regularizer, which is not in it.
    assert distance(right, other) > 100 * ROUNDING


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_has_its_settings(stage: int):
    file = ROOT / "configs" / f"zero{stage}.json"
    assert json.loads(file.read_text())["zero_optimization"]["stage"] == stage


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, forked: None) -> list[Process]:
    """Every worker that is started from now on."""
    processes: list[Process] = []
    start: Callable[[Path, Site, int], Process] = workers._start  # pyright: ignore[reportPrivateUsage]

    def starting(folder: Path, site: Site, place: int) -> Process:
        processes.append(start(folder, site, place))
        return processes[-1]

    monkeypatch.setattr(workers, "_start", starting)
    return processes


@pytest.mark.parametrize("stage", [2, 3])
def test_given_up_and_killed_it_goes_on_to_the_same_bytes(
    shared: Path, tmp_path: Path, started: list[Process], stage: int
):
    task = task_of(shared, tmp_path / "store", epochs=12.0)
    whole = task.two(stage)
    with pytest.raises(JobCancelled):
        task.two(stage, Checkpoint(tmp_path / "kept", 0.0, lambda: False))
    assert len(started) == 4
    assert all(process.returncode is not None for process in started)
    killed: list[Process] = []

    def kill_one() -> bool:
        if not killed:
            killed.append(started[-1])
            started[-1].kill()
        return True

    steps: list[int] = []
    checkpoint = Checkpoint(tmp_path / "kept", 0.0, kill_one)
    again = task.two(stage, checkpoint, lambda news: steps.append(news["step"]))
    assert len(started) == 8
    assert steps == sorted(steps) and steps[-1] == whole.steps  # it never began anew
    assert replace(again, seconds=0, peak_memory=0) == replace(whole, seconds=0, peak_memory=0)
    assert not (task.site.store / "workers").exists()


def stand_in(code: str) -> Callable[[Path, Site, int], Process]:
    """Workers that do something else; `place` is theirs, `folder` the job's."""

    def start(folder: Path, site: Site, place: int) -> Process:
        given = f"folder, place = {str(folder)!r}, {place}\n"
        return subprocess.Popen([sys.executable, "-c", given + code])

    return start


def test_workers_that_only_die_are_given_up_and_none_is_left(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # One dies at once; the other would wait for it for ever.
    code = "import time\nif place: raise SystemExit(1)\ntime.sleep(1000)"
    monkeypatch.setattr(workers, "_start", stand_in(code))
    task = task_of(shared, tmp_path / "store")
    with pytest.raises(SiteFailed, match="site north: the 2 workers ended 3 times without"):
        task.two(2)


def test_workers_that_get_on_may_die_more_often(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[Process]
):
    code = "raise SystemExit(1)"
    monkeypatch.setattr(workers, "_start", stand_in(code))
    starts: list[int] = []
    start = workers._start  # pyright: ignore[reportPrivateUsage]

    def getting_on(folder: Path, site: Site, place: int) -> Process:
        starts.append(place)
        if len(starts) <= 8:  # four tries that get on, then three that do not
            Checkpoint(tmp_path / "kept", 0.0).save({}, {"x": torch.tensor(len(starts))})
        return start(folder, site, place)

    monkeypatch.setattr(workers, "_start", getting_on)
    task = task_of(shared, tmp_path / "store")
    with pytest.raises(SiteFailed, match="ended 3 times"):
        task.two(2, Checkpoint(tmp_path / "kept", 0.0))
    assert len(starts) == 2 * (4 + 3)


def test_what_a_worker_refuses_is_raised_in_its_own_class_and_not_tried_again(
    shared: Path, tmp_path: Path, started: list[Process]
):
    task = task_of(shared, tmp_path / "store")
    shutil.copytree(shared / "data", tmp_path / "data")
    (tmp_path / "data" / "second" / "p1.png").write_bytes(b"no picture")
    site = task.site.model_copy(update={"data": tmp_path / "data"})
    with pytest.raises(DataError, match=r"p1\.png"):
        replace(task, site=site).two(2)
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)


def test_a_site_without_deepspeed_is_told_so(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    task = task_of(shared, tmp_path / "store")

    def absent(name: str) -> None:
        assert name == "deepspeed"

    monkeypatch.setattr(workers, "find_spec", absent)
    with pytest.raises(SiteFailed, match="site north, workers: found no DeepSpeed"):
        task.two(2)


def test_a_job_is_read_as_it_was_written(shared: Path, tmp_path: Path):
    task = task_of(shared, tmp_path / "store")
    for kept in (None, (tmp_path / "kept", 300.0)):
        job = WorkerJob(order=task.order, site=task.site, stage=3, checkpoints=kept)
        write_job(tmp_path, job)
        assert read_job(tmp_path) == job


def test_an_update_is_found_once_it_is_left(shared: Path, tmp_path: Path):
    update = task_of(shared, tmp_path / "store").one()
    assert found_update(tmp_path) is None
    leave_update(tmp_path, update)
    assert found_update(tmp_path) == update


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DataError("x: found nothing, expected a picture"), DataError),
        (SiteFailed("the loss is nan"), SiteFailed),
        (torch.OutOfMemoryError("full"), torch.OutOfMemoryError),
        (KeyError("strange"), SiteFailed),
    ],
)
def test_a_refusal_is_found_in_its_own_class(
    tmp_path: Path, error: Exception, expected: type[Exception]
):
    assert found_refusal(tmp_path) is None
    leave_refusal(tmp_path, error)
    found = found_refusal(tmp_path)
    assert type(found) is expected and str(found) == str(error)


def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path):
    child = (
        "import os, sys, time; from common.process.die_with_parent import die_with_parent; "
        "die_with_parent(int(sys.argv[1])); open(sys.argv[2], 'w').write(str(os.getpid())); "
        "time.sleep(1000)"
    )
    parent = (
        "import os, subprocess, sys; "
        f"subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid()), sys.argv[1]]).wait()"
    )
    file = tmp_path / "pid"
    root = ROOT
    started = subprocess.Popen([sys.executable, "-c", parent, str(file)], cwd=root)
    pid = int(eventually(lambda: file.read_text() if file.exists() else ""))
    started.kill()
    started.wait()
    eventually(lambda: "gone" if state_of(pid) in ("", "Z") else "")


def test_a_worker_whose_parent_is_gone_already_ends_at_once():
    code = (
        "from common.process.die_with_parent import die_with_parent; "
        "die_with_parent(1); print('alive')"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert (ended.returncode, ended.stdout) == (-9, b"")


def state_of(pid: int) -> str:
    """One letter as in proc(5); nothing where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def eventually(look: Callable[[], str]) -> str:
    """What `look` finds at last."""
    until = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < until, "nothing came"
        time.sleep(0.05)
    return found
