"""The runs with one site each: every hospital alone, and the data of all of them in one place.

They have nothing to tell each other, so that several are carried out at a time.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from pathlib import Path
from typing import TypeAlias

from client.data.task import read_task
from common.errors import StateError
from common.plan.plan import Plan
from common.plan.simulation import CurveSchedule
from server.run.folder import RunFolder
from simulation.baselines import (
    LOCAL,
    POOLED,
    local_plan,
    pooled_plan,
    pooled_tasks,
    with_equal_steps,
)
from simulation.engines import Engine, forkserver_context
from simulation.joined_data import JoinedTask, link_parts
from simulation.planned_run import PlannedRun, carry_out, check_resumable, finished

#: (site, task) -> the folder with the site's questions of the task.
TaskFolder: TypeAlias = Callable[[str, str], Path]


def local_runs(plan: Plan, root: Path, task_folder: TaskFolder) -> list[PlannedRun]:
    """List a run for each hospital alone, on the data that it has in the federation.

    Args:
        plan: the federation's.
        root: the folder of the runs with the plan's seed.
    """
    return [_local_run(plan, site, root / LOCAL / site, task_folder) for site in plan.sites]


def curve_runs(
    plan: Plan, root: Path, task_folder: TaskFolder, points: Sequence[int]
) -> list[PlannedRun]:
    """List a run for each hospital alone and each number of questions.

    A hospital that has no more questions than that of any of its tasks has no such run.
    """
    return [
        _local_run(plan, site, root / "curve" / f"{first}" / site, task_folder, first)
        for first in points
        for site in plan.sites
        if first < max(_questions(plan, site, task_folder).values())
    ]


def pooled_run(plan: Plan, root: Path, task_folder: TaskFolder) -> PlannedRun:
    """Return the run with all data at one site: of each stage, in the order of its sites."""
    folder = root / POOLED
    data = folder / "data"
    joined = {
        task: JoinedTask(
            folder=data / POOLED / task,
            parts={site: task_folder(site, stage.task) for site in stage.sites},
        )
        for stage, task in zip(plan.stages, pooled_tasks(plan), strict=True)
    }
    return PlannedRun(
        label=POOLED,
        plan=pooled_plan(plan),
        folder=RunFolder(folder),
        sites=folder / "sites",
        data=data,
        joined=tuple(joined.values()),
    )


def _local_run(
    plan: Plan, site: str, folder: Path, task_folder: TaskFolder, first: int | None = None
) -> PlannedRun:
    alone, data = local_plan(plan, site), folder / "data"
    schedule = plan.simulation.curve_schedule if plan.simulation else CurveSchedule.STEPS
    if first is not None and schedule is CurveSchedule.STEPS:
        alone = with_equal_steps(alone, _questions(plan, site, task_folder), first)
    joined = tuple(
        JoinedTask(data / site / task, {site: task_folder(site, task)}, first, plan.seed)
        for task in dict.fromkeys(stage.task for stage in alone.stages)
    )
    return PlannedRun(
        label=LOCAL,
        plan=alone,
        folder=RunFolder(folder),
        sites=folder / "sites",
        data=data,
        joined=joined,
        hospital=site,
        first=first,
    )


def _questions(plan: Plan, site: str, task_folder: TaskFolder) -> dict[str, int]:
    """Return the number of training questions of each task of the site."""
    tasks = dict.fromkeys(stage.task for stage in plan.stages if site in stage.sites)
    return {task: len(read_task(task_folder(site, task)).train) for task in tasks}


def carry_out_all(
    runs: Sequence[PlannedRun], engine: Engine, base_model: Path, quiet: bool
) -> None:
    """Carry out every run that is not finished, to its end.

    With Flower's engine each is in a process of its own, as many at a time as there are cores.
    There is nobody to talk to in such a run, so the apps are called directly, as
    `--engine inprocess` does; the bytes are the same.

    Raises:
        Refusal: with one clear sentence; the others are ended.
    """
    missing = [run for run in runs if finished(run) is None]
    for task in chain.from_iterable(run.joined for run in runs if run not in missing):
        # Finished, and perhaps moved since: the report reads their questions.
        link_parts(task)
    for run in missing:
        check_resumable(run)
    if engine is Engine.IN_PROCESS or len(missing) < 2:
        for run in missing:
            carry_out(run, Engine.IN_PROCESS, base_model, quiet)
        return
    longest_first = sorted(missing, key=lambda run: -sum(map(_weight, run.joined)))
    for number, title in enumerate(_side_by_side(longest_first, base_model), 1):
        if not quiet:
            print(f"  {number} of {len(missing)} done: {title}", flush=True)


def _weight(task: JoinedTask) -> int:
    return len(task.parts)


def _side_by_side(runs: Sequence[PlannedRun], base_model: Path) -> Iterator[str]:
    """Carry out the runs in processes of their own, and yield the title of each that is done."""
    workers = min(len(runs), os.cpu_count() or 1)
    pool = ProcessPoolExecutor(
        workers, forkserver_context(), _ignore_interrupts, max_tasks_per_child=1
    )
    try:
        running = {
            pool.submit(carry_out, run, Engine.IN_PROCESS, base_model, True): run.title
            for run in runs
        }
        for done in as_completed(running):
            done.result()
            yield running[done]
    except BrokenProcessPool:
        raise StateError(
            "a process that carried out a run with one site was killed: its memory may not have "
            "sufficed; the same command continues from here"
        ) from None
    except BaseException:
        # Those that still run would be waited for.
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the parent, which ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
