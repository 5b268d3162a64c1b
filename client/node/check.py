"""Whether a site is ready: its data, its machine, its key, its coordinator, one step of training.

Every check comes to findings, never to an exception of its own: an admin wants the whole list.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from client.data.check import may_share
from client.data.task import TRAIN_FILE, TaskData, check_task, images_of
from client.model.base_digest import base_digest
from client.node.connectivity import reach
from client.node.enrolment import enrolment
from client.node.processes import check_flower
from client.site.approval import Part, adapter_bytes, parts_in
from client.site.config import Device, Federation, Plans, Site
from client.site.finding import Finding, Level, ok, problem
from client.site.keys import load_key
from client.site.policy import fewest_images
from common.errors import Refusal
from common.metrics import AnswerKind
from common.plan import Plan

#: Bytes that a site needs beside its adapters: logs, plans, the trainer's own files.
_SPARE: Final = 2 * 10**9
#: Adapters that a store holds beside the releases: late answers, those in training, and two
#: checkpoints with the optimizer's state in fp32 (client/node/jobs.py).
_ADAPTERS: Final = 64 + 8 + 2 * 6

_Check: TypeAlias = Callable[[], list[Finding]]


def check_site(site: Site, plan: Plan | None) -> Iterator[Finding]:
    """Every finding on the site, for the plan if one is given; the slow ones come last."""
    parts: tuple[Part, ...] = ()
    yield from _tried("flower", _flower)
    if plan is not None:
        try:
            parts = parts_in(plan, site)
        except Refusal as refusal:
            yield problem("plan", str(refusal))
        else:
            yield _approved(plan, site)
    yield from _tried("base model", lambda: [_base_model(site, plan)])
    yield from _tried("disk", lambda: [_disk(site, plan)])
    if site.federation is not None:
        yield from quick(site.federation)
    yield from _tried("device", lambda: [_device(site)])
    tasks = [part.stage.task for part in parts] if plan is not None else task_names(site.data)
    if not tasks and plan is None:
        yield problem("data", f"{site.data}: found no task's folder (one with a {TRAIN_FILE})")
    for task in dict.fromkeys(tasks):
        fewest = _fewest_images(plan, parts, task, site)
        yield from _tried(f"data {task}", lambda task=task, n=fewest: _task(site, task, n))
    if plan is not None and parts:
        yield from _tried("training step", lambda: [_step(plan, site, parts[0])])


def quick(federation: Federation) -> list[Finding]:
    """The checks before a start: the key file, the way to the coordinator, the clock, the key."""
    found = _tried("key file", lambda: [_key(federation)])
    found += _tried("certificate", lambda: reach(federation))
    if all(finding.passed for finding in found):
        found += _tried("key", lambda: [enrolment(federation)])
    return found


def worst(findings: Sequence[Finding]) -> Finding | None:
    """The finding that stops a start: a problem, else what may mend itself."""
    for level in (Level.PROBLEM, Level.UNKNOWN, Level.AWAY):
        for finding in findings:
            if finding.level is level:
                return finding
    return None


def task_names(data: Path) -> list[str]:
    """The task folders of a site, in name order."""
    return sorted(file.parent.name for file in data.glob(f"*/{TRAIN_FILE}"))


def _tried(name: str, check: _Check) -> list[Finding]:
    try:
        return check()
    except Refusal as refusal:
        return [problem(name, str(refusal))]
    except OSError as error:
        return [problem(name, f"{error.filename or 'the disk'}: can't be used ({error.strerror})")]


def _flower() -> list[Finding]:
    check_flower()
    return [ok("flower", "the tested version")]


def _approved(plan: Plan, site: Site) -> Finding:
    if site.policy.plans is Plans.ANY or site.federation is None:
        return ok("plan", f"{plan.name}: the site's policy allows any plan")
    if (site.federation.approved / f"{plan.digest}.json").exists():
        return ok("plan", f"{plan.name} ({plan.digest[:12]}) is approved")
    return problem(
        "plan",
        f"{plan.name} ({plan.digest[:12]}): found no approval, expected one: read and approve it "
        "with `fedmslora site approve`",
    )


def _base_model(site: Site, plan: Plan | None) -> Finding:
    found = base_digest(site.base_model)
    if plan is None:
        return ok("base model", f"digest {found}")
    if found != plan.base_model.sha256:
        return problem(
            "base model",
            f"{site.base_model}: found the digest {found}, the plan pins {plan.base_model.sha256} "
            f"({plan.base_model.name})",
        )
    return ok("base model", f"{plan.base_model.name}, as the plan pins it")


def _disk(site: Site, plan: Plan | None) -> Finding:
    site.store.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(site.store).free
    adapter = 0 if plan is None else adapter_bytes(plan, site.base_model) or 0
    needed = _SPARE + adapter * (_ADAPTERS + (0 if plan is None else len(plan.stages)))
    said = f"{free / 1e9:.0f} GB free, about {needed / 1e9:.0f} GB may be needed"
    return (ok if free >= needed else problem)("disk", f"{site.store}: {said}")


def _key(federation: Federation) -> Finding:
    load_key(federation.key)
    return ok("key file", f"{federation.key}: only its owner reads it")


def _device(site: Site) -> Finding:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if site.device is Device.CPU:
        return ok("device", f"the CPU, {site.threads} threads")
    if count == 0 and site.device is Device.CUDA:
        return problem("device", "found no GPU, expected one (device: cuda): is its driver there?")
    if count == 0:
        return Finding("device", Level.WARNING, "found no GPU; the CPU will do the work, slowly")
    if count < site.workers:
        return problem("device", f"found {count} GPUs, expected {site.workers} (workers)")
    return ok("device", f"{count} GPU, {torch.cuda.get_device_name(0)}")


def _fewest_images(plan: Plan | None, parts: Sequence[Part], task: str, site: Site) -> int | None:
    """Of how many images of the task a prototype may leave; None where none is wanted."""
    for part in parts:
        if plan is not None and part.stage.task == task:
            return fewest_images(plan, part.number - 1, part.stage.rounds, site)
    return None


def _task(site: Site, name: str, fewest: int | None) -> list[Finding]:
    folder = site.data / name
    data = check_task(folder, may_share=may_share(folder))
    counts = f"{len(data.train)} training and {len(data.test)} test questions, every image decodes"
    found = [ok(f"data {name}", counts), _labels(name, data)]
    if len(data.train) < site.policy.examples:
        said = f"found {len(data.train)} training questions, the site's own policy.examples asks "
        found.append(problem(f"policy {name}", f"{said}for {site.policy.examples}"))
    images = len(images_of(data.train))
    if fewest is not None and images < fewest:
        said = f"found {images} training images: of fewer than {fewest} no prototype leaves, so "
        said += "the router knows the task from other sites alone"
        found.append(Finding(f"prototype {name}", Level.WARNING, said))
    return found


def _labels(name: str, data: TaskData) -> Finding:
    """What the answers of one choice among few look like; a task with one answer teaches none."""
    train = Counter(q.answer.strip().lower() for q in data.train if q.kind is AnswerKind.CLOSED)
    test = Counter(q.answer.strip().lower() for q in data.test if q.kind is AnswerKind.CLOSED)
    where = f"labels {name}"
    if not train and not test:
        return ok(where, "all questions are open ones")
    if len(train) == 1:
        return Finding(where, Level.WARNING, "all closed training questions have the same answer")
    new = sum(count for answer, count in test.items() if answer not in train)
    if new:
        said = f"{new} of {test.total()} closed test questions have an answer that training has not"
        return Finding(where, Level.WARNING, said)
    return ok(where, f"{len(train)} different answers to {train.total()} closed questions")


def _step(plan: Plan, site: Site, part: Part) -> Finding:
    from client.orders.trial_step import one_step

    seconds, loss = one_step(plan, site, part.number - 1)
    return ok(
        "training step",
        f"stage {part.stage.name}: one step took {seconds:.1f} s with its loading, "
        f"the loss was {loss:.2f}; the result is thrown away",
    )
