"""A federation at full size on random weights: `python -m benchmarks.rehearsal_7b [--json FILE]`.

Two simulated sites, one stage of a few steps on one picture, on this machine's CPU: from a
checkpoint in LLaVA-Med v1.5's published layout to a verified bank, an export and one answer, by
the commands that a user would give. It needs 22 GB of memory and 40 GB of disk. What it finds is
compared with `fedmslora plan cost`.
"""
# typer leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import psutil
import typer
import yaml

from benchmarks.checkpoint_7b import write_checkpoint
from benchmarks.shapes_7b import SMALL, Shapes
from client.model.base_digest import base_digest
from common.durable import DISK, write_file
from common.errors import StateError
from common.plan.file import load_plan
from common.process.flower_environment import OFFLINE
from common.process.progress import Follower
from cost.geometry import read_geometry
from cost.plan import DataAssumptions, plan_cost
from report.json_file import read_report
from simulation.task_folder.write_task import Question, write_task

SITES: Final = ("north", "south")
TASK: Final = "rehearsal"
#: Training questions of each site, all about one picture.
QUESTIONS: Final = 2
#: Tokens of a question without its picture, and those of its answer, by the made-up tokenizer.
_TOKENS, _LABELS = 40, 8
MEMORY_BYTES: Final = 22 * 10**9
DISK_BYTES: Final = 40 * 10**9
_POLL_S: Final = 0.2

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """What one command took.

    Attributes:
        seconds: its wall time.
        peak_private: largest memory of its processes that is not mapped from a file, in bytes.
        peak_resident: the same with what is mapped from files and in memory.
        events: seconds after its start, and what happened then.
    """

    seconds: float
    peak_private: int
    peak_resident: int
    events: Sequence[tuple[float, str]] = ()


@dataclass(slots=True)
class _Peak:
    private: int = 0
    resident: int = 0

    def look(self, root: psutil.Process) -> None:
        """Take the memory that the process and its children have now."""
        private = resident = 0
        try:
            for process in (root, *root.children(recursive=True)):
                memory: Any = process.memory_info()
                private += memory.rss - memory.shared
                resident += memory.rss
        except psutil.NoSuchProcess:
            return
        self.private = max(self.private, private)
        self.resident = max(self.resident, resident)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The folder of a rehearsal: checkpoint, data, plan and run."""

    root: Path
    shapes: Shapes
    say: Callable[[str], None] = field(default=print)

    @property
    def base_model(self) -> Path:
        """The checkpoint."""
        return self.root / "base"

    @property
    def data(self) -> Path:
        """A folder for each site."""
        return self.root / "data"

    @property
    def plan(self) -> Path:
        """The plan."""
        return self.root / "plan.yaml"

    @property
    def run(self) -> Path:
        """The simulation's folder."""
        return self.root / "run"

    def prepare(self) -> float:
        """Write checkpoint, data and plan where they are missing; return the checkpoint's seconds.

        A checkpoint that is there is taken as it is: it is renamed when it is complete.
        """
        began = time.monotonic()
        if not self.base_model.exists():
            partial = self.base_model.with_name("base.partial")
            shutil.rmtree(partial, ignore_errors=True)
            self.say("writing the checkpoint ...")
            write_checkpoint(partial, self.shapes)
            partial.rename(self.base_model)
        seconds = time.monotonic() - began
        for site in SITES:
            write_task(self.data / site / TASK, *_questions(self.shapes.pixels, site))
        self.plan.write_text(yaml.safe_dump(_plan(self.base_model, self.shapes)), encoding="utf-8")
        return seconds

    def parts(self) -> Mapping[str, Part]:
        """Run every command, one after another, from the first that has not ended yet.

        What a command took is kept in `parts.json` of the folder. One that failed is run again.
        """
        bank, export = self.run / "bank", self.root / "export"
        kept = self.root / "parts.json"
        done: dict[str, Part] = {}
        if kept.exists():
            told = json.loads(kept.read_text(encoding="utf-8"))
            done = {name: Part(**part) for name, part in told.items()}
        image = next((self.data / SITES[0] / TASK / "images").iterdir())
        base = ["--base-model", str(self.base_model)]
        commands: dict[str, list[str]] = {
            "simulate": [
                "simulate", str(self.plan), "--out", str(self.run), "--engine", "inprocess",
                "--data", str(self.data), *base,
            ],
            "bank verify": ["bank", "verify", str(bank)],
            "bank export": ["bank", "export", str(bank), TASK, str(export)],
            "bank ask": [
                "bank", "ask", str(image), "is it red ?", "--bank", str(bank), "--stage", TASK,
                "--vision-weights", "checkpoint", "--precision", "bf16", "--max-new-tokens", "4",
                *base,
            ],
        }  # fmt: skip
        for name, arguments in commands.items():
            if name in done:
                continue
            for folder in {"simulate": [self.run], "bank export": [export]}.get(name, []):
                shutil.rmtree(folder, ignore_errors=True)
            done[name] = self._command(name, arguments)
            document = {name: asdict(part) for name, part in done.items()}
            write_file(kept, json.dumps(document, indent=1).encode(), DISK)
        return done

    def _command(self, name: str, arguments: Sequence[str]) -> Part:
        """Run a command of the command line, and watch its memory and the run's events.

        Raises:
            StateError: it failed.
        """
        self.say(f"fedmslora {name} ...")
        events: list[tuple[float, str]] = []
        folders = [self.run / "progress"]
        folders += [self.run / "sites" / site / "store" / "progress" for site in SITES]
        followers = [Follower(folder) for folder in folders]
        peak, began = _Peak(), time.monotonic()
        command = [sys.executable, "-m", "fedmslora", *arguments]
        with (self.root / f"{name.replace(' ', '_')}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **OFFLINE}
            )
            watched = psutil.Process(process.pid)
            while process.poll() is None:
                peak.look(watched)
                for follower in followers:
                    for writer, event in follower.events():
                        said = f"{writer}: {_told(event)}"
                        events.append((round(time.monotonic() - began, 1), said))
                        self.say(f"  {events[-1][0]:8.1f} s  {said}")
                time.sleep(_POLL_S)
        if process.returncode != 0:
            raise StateError(f"fedmslora {name} failed; {log.name} says why")
        return Part(time.monotonic() - began, peak.private, peak.resident, events)

    def figures(self) -> Figures:
        """Run everything, and put what was measured beside what `plan cost` reckons."""
        written = self.prepare()
        parts = self.parts()
        report = read_report(self.run)[0]
        assumed = DataAssumptions(questions=QUESTIONS, images=1, tokens=_TOKENS, labels=_LABELS)
        cost = plan_cost(load_plan(self.plan), read_geometry(self.base_model), "7b", assumed)
        stage = cost.stages[0]
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "cores": os.cpu_count(),
            "checkpoint_seconds": written,
            "checkpoint_bytes": sum(
                file.stat().st_size for file in self.base_model.rglob("*") if file.is_file()
            ),
            "parts": {
                name: {
                    "seconds": part.seconds,
                    "peak_private": part.peak_private,
                    "peak_resident": part.peak_resident,
                    "events": part.events,
                }
                for name, part in parts.items()
            },
            "bytes": {
                "down": sum(site.bytes_down for site in report.cost.sites.values()),
                "up": sum(site.bytes_up for site in report.cost.sites.values()),
                "reckoned_down": stage.down,
                "reckoned_up": stage.up,
            },
            "memory": {"reckoned": stage.memory.total, "base": cost.base},
            "operations": {"reckoned_a_site": stage.site_operations, "steps": stage.steps},
        }


def _told(event: Mapping[str, Any]) -> str:
    kept = ("event", "stage", "round", "task", "step", "steps", "loss", "site", "done", "of")
    return ", ".join(f"{name} {event[name]}" for name in kept if name in event)


def _questions(pixels: int, site: str) -> tuple[list[Question], list[Question]]:
    """Make a picture with training questions, and another with a test question."""
    generator = np.random.default_rng(SITES.index(site))
    coarse = generator.integers(0, 256, (2, 7, 7, 3), np.uint8)
    side = -(-pixels // 7)
    learned, asked = coarse.repeat(side, axis=1).repeat(side, axis=2)
    texts = [("is it red ?", "yes"), ("is it green ?", "no")]
    train = [Question(learned, question, answer, True, 0) for question, answer in texts]
    return train, [Question(asked, texts[0][0], texts[0][1], True, 1)]


def _plan(base_model: Path, shapes: Shapes) -> dict[str, Any]:
    stage = {
        "name": TASK, "modality": "pathology", "task": TASK, "sites": list(SITES), "rounds": 1,
        "local_epochs": 1.0, "learning_rate": 2e-4, "batch_size": 1, "max_new_tokens": 4,
    }  # fmt: skip
    return {
        "name": "rehearsal-7b",
        "seed": 1,
        "base_model": {"name": "llava-med-random", "sha256": base_digest(base_model)},
        "vision_weights": "checkpoint",
        "method": {
            "name": "mslora_cr",
            "rank": shapes.rank,
            "alpha": shapes.rank,
            "active": "all",
            "contrast": {"similarity": "exp", "weight": 0.1},
        },
        "aggregation": "svd",
        "training": {"precision": "bf16", "micro_batch": 1, "gradient_checkpointing": True},
        "stages": [stage],
    }


def _check_room(folder: Path) -> None:
    """Check that memory and disk suffice.

    Raises:
        StateError: they don't.
    """
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(folder).free
    for what, found, expected in (
        ("memory", memory, MEMORY_BYTES),
        ("disk", disk, 0 if (folder / "base").exists() else DISK_BYTES),
    ):
        if found < expected:
            raise StateError(
                f"{folder}: found {found / 1e9:.0f} GB of {what} free, expected at least "
                f"{expected / 1e9:.0f} GB for a 7B model"
            )


def main(
    out: Annotated[
        Path, typer.Option(help="Its folder; the checkpoint in it is used again.")
    ] = Path("runs/rehearsal-7b"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="Tiny shapes: does every part run?")
    ] = False,
) -> None:
    """Run one stage of two sites at the 7B's size on this machine's CPU.

    Example: python -m benchmarks.rehearsal_7b --json rehearsal.json
    """
    out.mkdir(parents=True, exist_ok=True)
    if not small:
        try:
            _check_room(out)
        except StateError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(2) from None
    found = Rehearsal(out.resolve(), SMALL if small else Shapes()).figures()
    document = json.dumps(found, indent=1)
    typer.echo(document)
    if json_file is not None:
        json_file.write_text(document + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
