"""A training that was cut off goes on from its checkpoint, to the same bytes."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.backbones.registry import load_backbone
from client.data.task import Example, read_task
from client.methods import mslora_cr, sequential
from client.methods.interface import Assignment, Method
from client.model.base_digest import base_digest
from client.training.checkpoint import Checkpoint, JobCancelled, never_cancelled
from client.training.loop import Progress, TrainResult
from common.adapter import Adapter, Pair, to_bytes
from common.durable import Disk
from common.errors import SiteFailed
from common.plan.file import parse_plan
from common.plan_fields import Precision
from tests.flow.tiny_llava import write_llava, write_task

QUESTIONS = [
    ("what colour is this ?", "red"),
    ("is it the left side ?", "no the right side"),
    ("what colour is this ?", "blue"),
    ("is this it ?", "yes"),
    ("which side ?", "left"),
]
STEPS = 12  # Four epochs of five examples in batches of two: ten; and one report in between.
METHODS: Mapping[str, Method] = {"mslora_cr": mslora_cr, "sequential": sequential}
PLANS: Mapping[str, dict[str, Any]] = {
    "mslora_cr": {
        "name": "mslora_cr", "rank": 2, "alpha": 2.0,
        "active": "all", "contrast": {"similarity": "exp", "weight": 0.1, "orthogonality": 0.01},
    },
    "sequential": {"name": "sequential", "rank": 2, "alpha": 2.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    write_llava(folder / "base")
    write_task(folder / "task", QUESTIONS)
    return folder


def some_adapter(adapter: Adapter, seed: int) -> Adapter:
    """An adapter of the same shapes that changes something."""
    drawn = np.random.default_rng(seed)
    pairs = {
        name: Pair(
            drawn.normal(size=pair.a.shape, scale=0.2).astype(np.float32),
            drawn.normal(size=pair.b.shape, scale=0.2).astype(np.float32),
        )
        for name, pair in adapter.pairs.items()
    }
    return Adapter(pairs, adapter.scale)


class Work:
    """One round of the second stage, which may be cut off and begun again."""

    def __init__(
        self, shared: Path, method: str = "mslora_cr", rule: str = "svd", **training: Any
    ) -> None:
        self.shared = shared
        self.method = METHODS[method]
        stages = [
            {
                "name": name, "modality": modality, "task": "t", "sites": ["a"], "rounds": 3,
                "local_epochs": 4.7, "learning_rate": 0.01, "batch_size": 2,
            }
            for name, modality in (("one", "ct"), ("two", "mr"))
        ]  # fmt: skip
        self.plan = parse_plan(
            {
                "name": "plan", "seed": 7, "method": PLANS[method], "aggregation": rule,
                "base_model": {"name": "tiny", "sha256": base_digest(shared / "base")},
                "stages": stages, "training": training,
            },
            "test",
        )  # fmt: skip

    def assignment(self, checkpoint: Checkpoint | None) -> Assignment:
        backbone = load_backbone(self.shared / "base", Precision.FP32, torch.device("cpu"))
        bare = Assignment(
            plan=self.plan, stage=1, round=2, site="a", bank={}, active=(), candidate=None,
            backbone=backbone, checkpoint=checkpoint,
        )  # fmt: skip
        first = some_adapter(self.method.start(bare, ()), 1)
        return replace(bare, bank={0: first}, active=self.plan.frozen_stages(1))

    def train(
        self, checkpoint: Checkpoint | None, report: Callable[[Progress], None] = lambda _: None
    ) -> tuple[bytes, TrainResult]:
        # As in a fresh process: the model is read again, and no image has been seen.
        assignment = self.assignment(checkpoint)
        start = some_adapter(assignment.bank[0].loaded(), 2)
        examples: Sequence[Example] = read_task(self.shared / "task").train
        adapter, trained = self.method.train(assignment, start, examples, report)
        return to_bytes(adapter), trained

    def cut_off(self, folder: Path, steps: int) -> None:
        """The work, gone at the checkpoint behind so many steps."""
        asked: list[None] = []

        def wanted() -> bool:
            asked.append(None)
            return len(asked) < steps

        with pytest.raises(JobCancelled):
            self.train(Checkpoint(folder, 0.0, wanted))
        assert len(asked) == steps


@pytest.mark.parametrize(
    ("method", "rule", "training"),
    [
        ("mslora_cr", "svd", {}),
        ("mslora_cr", "frozen_a", {}),
        ("mslora_cr", "alternating", {}),
        ("sequential", "svd", {}),
        # Near to the round's start, and not to where it was cut off.
        ("sequential", "svd", {"proximal": 0.5}),
    ],
)
def test_cut_off_and_resumed_ends_with_the_same_bytes(
    shared: Path, tmp_path: Path, method: str, rule: str, training: dict[str, Any]
):
    work = Work(shared, method, rule, **training)
    adapter, trained = work.train(None)
    assert trained.steps == STEPS
    assert (trained.regularizer > 0) == (method == "mslora_cr" or "proximal" in training)
    for steps in (1, 7, 10, 12):
        folder = tmp_path / str(steps)
        work.cut_off(folder, steps)
        told: list[Progress] = []
        assert work.train(Checkpoint(folder, 0.0), told.append) == (adapter, trained), steps
        assert [news.step for news in told] == [step for step in (10, 12) if step > steps]


def test_it_may_be_cut_off_many_times(shared: Path, tmp_path: Path):
    work = Work(shared)
    whole = work.train(None)
    for _ in range(4):
        work.cut_off(tmp_path, 2)
    assert work.train(Checkpoint(tmp_path, 0.0)) == whole


def test_progress_after_a_resumption_is_that_of_the_undisturbed_training(
    shared: Path, tmp_path: Path
):
    work = Work(shared)
    told: list[Progress] = []
    work.train(None, told.append)
    work.cut_off(tmp_path, 7)
    again: list[Progress] = []
    work.train(Checkpoint(tmp_path, 0.0), again.append)
    assert again == told


def test_a_checkpoint_changes_no_byte_and_one_is_left(shared: Path, tmp_path: Path):
    work = Work(shared)
    assert work.train(Checkpoint(tmp_path, 0.0)) == work.train(None)
    names = sorted(file.name for file in tmp_path.iterdir())
    digest = json.loads((tmp_path / "checkpoint.json").read_text())["sha256"]
    assert names == sorted(["checkpoint.json", f"{digest}.safetensors"])


def test_a_checkpoint_is_due_by_the_clock_and_not_before(shared: Path, tmp_path: Path):
    Work(shared).train(Checkpoint(tmp_path / "never", 1e9))
    assert not (tmp_path / "never").exists()


def test_after_a_checkpoint_the_next_is_due_as_much_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    checkpoint, due = Checkpoint(tmp_path, 10.0), list[bool]()
    for moment in (109.0, 110.0, 119.0, 120.0):
        now[0] = moment
        due.append(checkpoint.due())
        if due[-1]:
            checkpoint.save({}, {"x": torch.zeros(1)})
    assert due == [False, True, False, True]


def test_the_checkpoint_of_another_round_is_passed_over(shared: Path, tmp_path: Path):
    work, other = Work(shared), Work(shared, rule="frozen_a")
    other.cut_off(tmp_path, 3)
    assert work.train(Checkpoint(tmp_path, 1e9)) == work.train(None)


def flip_a_bit(file: Path) -> None:
    blob = bytearray(file.read_bytes())
    blob[-5] ^= 1
    file.write_bytes(blob)


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip_a_bit, halve, Path.unlink])
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_damaged_checkpoint_counts_as_none(
    shared: Path, tmp_path: Path, damage: Callable[[Path], None], suffix: str
):
    work = Work(shared)
    work.cut_off(tmp_path, 3)
    for file in tmp_path.glob(f"*{suffix}"):
        damage(file)
    asked: list[None] = []
    checkpoint = Checkpoint(tmp_path, 0.0, lambda: not asked.append(None))
    assert work.train(checkpoint) == work.train(None)
    assert len(asked) == STEPS


@pytest.mark.parametrize("text", ["[]", "{}", '{"of": 1}', '{"of": {}, "sha256": 3}', "\x00"])
def test_a_foreign_json_counts_as_none(tmp_path: Path, text: str):
    (tmp_path / "checkpoint.json").write_text(text)
    assert Checkpoint(tmp_path, 0.0).load({}) is None


class Killed(Exception):
    """What a process does not live to see."""


class Dying(Disk):
    """The real file system until so many calls have been made; then nothing more happens."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def _call(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1

    def write(self, file: Path, blob: bytes) -> None:
        if self.left == 0:
            file.write_bytes(blob[: len(blob) // 2])
        self._call()
        super().write(file, blob)

    def sync(self, path: Path) -> None:
        self._call()
        super().sync(path)

    def rename(self, old: Path, new: Path) -> None:
        self._call()
        super().rename(old, new)

    def remove(self, path: Path) -> None:
        self._call()
        super().remove(path)


def test_a_kill_at_any_call_of_a_save_leaves_the_old_state_or_the_new(tmp_path: Path):
    key = {"round": 1}
    old, new = {"x": torch.arange(3)}, {"x": torch.arange(4)}
    held: list[int] = []
    for calls in range(9):
        Checkpoint(tmp_path, 0.0).save(key, old)
        with pytest.raises(Killed):
            Checkpoint(tmp_path, 0.0, files=Dying(calls)).save(key, new)
        found = Checkpoint(tmp_path, 0.0).load(key)
        assert found is not None
        held.append(len(found["x"]))
    # Two files, each with four calls; the new one counts from its JSON's rename on.
    assert held == [3, 3, 3, 3, 3, 3, 3, 4, 4]
    Checkpoint(tmp_path, 0.0).save(key, new)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_unwritable_disk_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SiteFailed, match="could not write a checkpoint"):
        Checkpoint(tmp_path / "file", 0.0).save({}, {"x": torch.zeros(1)})


def test_a_job_is_not_cancelled_by_default(tmp_path: Path):
    assert never_cancelled()
    Checkpoint(tmp_path, 0.0).raise_if_cancelled()
