"""Check whether a site is ready: data, machine, key, coordinator, one step of training.

Every check returns findings and raises nothing: an admin needs the whole list at once.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from client.data.check import may_share
from client.data.file_modality import foreign_codes
from client.data.task import TRAIN_FILE, TaskData, check_task, images_of
from client.model.base_digest import base_digest
from client.model.kinds import check_kind
from client.node.connectivity import check_connection, check_proxy
from client.node.enrolment import check_enrolment
from client.node.processes import check_flower
from client.site.approval import (
    PlannedStage,
    adapted_layers,
    extra_numbers,
    planned_stages,
    sent_bytes,
)
from client.site.config import Device, Federation, Plans, Site
from client.site.finding import Finding, Level, ok, problem
from client.site.keys import load_key
from client.site.policy import approval_file, fewest_images
from common.errors import Refusal
from common.metrics import AnswerKind
from common.partial_adapter import AdapterPart
from common.plan.plan import Plan
from common.plan.reference_list import LIST_FILE, check_images, read_list
from common.plan_fields import Modality
from common.printable import counted

#: Bytes that a site needs besides its adapters: logs, plans, the trainer's own files.
_SPARE: Final = 2 * 10**9
#: Adapters in a store besides the releases: recent answers, those in training, and two
#: checkpoints with the optimizer's state in fp32 (client/node/jobs.py).
_ADAPTERS: Final = 64 + 8 + 2 * 6

_Check: TypeAlias = Callable[[], list[Finding]]


def check_site(site: Site, plan: Plan | None) -> Iterator[Finding]:
    """Yield the findings on the site, for the plan if one is given; the slow checks come last."""
    planned: tuple[PlannedStage, ...] = ()
    yield from _findings_of("flower", _flower)
    if plan is not None:
        try:
            planned = planned_stages(plan, site)
        except Refusal as refusal:
            yield problem("plan", str(refusal))
        else:
            yield _approved(plan, site)
    yield from _findings_of("base model", lambda: [_base_model(site, plan)])
    yield from _findings_of("reference pairs", lambda: _reference(site, plan))
    yield from _findings_of("disk", lambda: [_disk(site, plan)])
    if site.federation is not None:
        yield from quick_checks(site.federation)
    yield from _findings_of("device", lambda: [_device(site)])
    tasks = [one.stage.task for one in planned] if plan is not None else task_names(site.data)
    if not tasks and plan is None:
        yield problem("data", f"{site.data}: found no task's folder (one with a {TRAIN_FILE})")
    for task in dict.fromkeys(tasks):
        fewest = _fewest_images(plan, planned, task, site)
        modality = next((one.stage.modality for one in planned if one.stage.task == task), None)
        yield from _findings_of(
            f"data {task}",
            lambda task=task, n=fewest, modality=modality: _task(site, task, n, modality),
        )
    if plan is not None and planned:
        yield from _findings_of("training step", lambda: [_step(plan, site, planned[0])])


def quick_checks(federation: Federation) -> list[Finding]:
    """Check what a start needs: key file, proxy, connection, certificate, clock, enrolment."""
    found = _findings_of("key file", lambda: [_key(federation)])
    way = _findings_of("proxy", lambda: [check_proxy(federation)])
    found += way
    if all(finding.passed for finding in way):
        found += _findings_of("certificate", lambda: check_connection(federation))
    if all(finding.passed for finding in found):
        found += _findings_of("key", lambda: [check_enrolment(federation)])
    return found


def first_obstacle(findings: Sequence[Finding]) -> Finding | None:
    """Return the finding that keeps a site from starting: a problem, else what may pass by itself.

    None where there is no obstacle.
    """
    for level in (Level.PROBLEM, Level.UNKNOWN, Level.AWAY):
        for finding in findings:
            if finding.level is level:
                return finding
    return None


def task_names(data: Path) -> list[str]:
    """Return the names of a site's task folders, sorted."""
    return sorted(file.parent.name for file in data.glob(f"*/{TRAIN_FILE}"))


def _findings_of(name: str, check: _Check) -> list[Finding]:
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
    if approval_file(site.federation.approved, plan.digest).is_file():
        return ok("plan", f"{plan.name} ({plan.digest[:12]}) is approved")
    return problem(
        "plan",
        f"{plan.name} ({plan.digest[:12]}): found no approval, expected one: read the plan and "
        "approve it with `fedmslora site approve`",
    )


def _base_model(site: Site, plan: Plan | None) -> Finding:
    if plan is not None:
        check_kind(plan, site.base_model)
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


def _reference(site: Site, plan: Plan | None) -> list[Finding]:
    """Check the public pairs that the plan's method trains on, byte for byte, if it does."""
    name = "reference pairs"
    if plan is None or not plan.method.reference_pairs:
        return []
    if site.reference is None:
        lacking = (
            f"found no folder `reference` in the site file, expected one: the method "
            f"{plan.method.name!r} trains on public pairs, too"
        )
        return [problem(name, lacking)]
    listed = read_list(site.reference / LIST_FILE, plan.method.pinned_reference)
    check_images(site.reference, listed.pairs)
    pinned = (
        "as the plan pins them" if plan.method.pinned_reference else "which the plan does not pin"
    )
    return [ok(name, f"{counted(len(listed.pairs), 'pair')}, {pinned}")]


def _disk(site: Site, plan: Plan | None) -> Finding:
    site.store.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(site.store).free
    needed = _SPARE
    if plan is not None:
        layers = adapted_layers(plan, site.base_model)
        extra = extra_numbers(plan, site.base_model)
        adapter = sent_bytes(plan, layers, AdapterPart.WHOLE, extra) or 0
        needed += adapter * (_ADAPTERS + len(plan.stages))
    text = f"{site.store}: {free / 1e9:.0f} GB free, about {needed / 1e9:.0f} GB may be needed"
    return (ok if free >= needed else problem)("disk", text)


def _key(federation: Federation) -> Finding:
    load_key(federation.key)
    return ok("key file", f"{federation.key}: only its owner reads it")


def _device(site: Site) -> Finding:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if site.device is Device.CPU:
        return ok("device", f"the CPU, {counted(site.threads, 'thread')}")
    if count == 0 and site.device is Device.CUDA:
        return problem("device", "found no GPU, expected one (device: cuda): is its driver there?")
    if count == 0:
        return Finding("device", Level.WARNING, "found no GPU; the CPU will train, slowly")
    if count < site.workers:
        found = counted(count, "GPU")
        return problem("device", f"found {found}, expected {site.workers}, one for each worker")
    return ok("device", f"{counted(count, 'GPU')}, {torch.cuda.get_device_name(0)}")


def _fewest_images(
    plan: Plan | None, planned: Sequence[PlannedStage], task: str, site: Site
) -> int | None:
    """Return the fewest images of the task's prototype; None where the plan asks for none."""
    for one in planned:
        if plan is not None and one.stage.task == task:
            return fewest_images(plan, one.number - 1, one.stage.rounds, site)
    return None


def _task(site: Site, name: str, fewest: int | None, modality: Modality | None) -> list[Finding]:
    folder = site.data / name
    data = check_task(folder, may_share=may_share(folder))
    counts = f"{len(data.train)} training and {len(data.test)} test questions, every image decodes"
    found = [ok(f"data {name}", counts), _labels(name, data)]
    if len(data.train) < site.policy.examples:
        text = f"found {len(data.train)} training questions, expected at least the policy.examples "
        found.append(problem(f"policy {name}", f"{text}of the site file, {site.policy.examples}"))
    if len(data.test) < site.policy.test_questions:
        text = f"found {len(data.test)} test questions: of fewer than the policy.test_questions of "
        text += f"the site file, {site.policy.test_questions}, no score leaves"
        found.append(Finding(f"scores {name}", Level.WARNING, text))
    images = len(images_of(data.train))
    if fewest is not None and images < fewest:
        text = f"found {counted(images, 'training image')}: of fewer than {fewest} no prototype "
        text += "leaves, so the router learns of the task from other sites alone"
        found.append(Finding(f"prototype {name}", Level.WARNING, text))
    if modality is not None:
        found += _file_modality(name, images_of([*data.train, *data.test]), modality)
    return found


def _file_modality(name: str, images: Sequence[Path], modality: Modality) -> list[Finding]:
    """Warn of DICOM files whose header says another modality than the plan's stage."""
    foreign = foreign_codes(images, modality)
    if not foreign:
        return []
    listed = ", ".join(f"{count} {code}" for code, count in foreign.most_common())
    text = f"found other modalities in the headers of {foreign.total()} of {len(images)} images "
    return [Finding(f"modality {name}", Level.WARNING, f"{text}({listed}), expected {modality}")]


def _labels(name: str, data: TaskData) -> Finding:
    """Check the answers of closed questions: a task with a single answer teaches nothing."""
    train = Counter(q.answer.strip().lower() for q in data.train if q.kind is AnswerKind.CLOSED)
    test = Counter(q.answer.strip().lower() for q in data.test if q.kind is AnswerKind.CLOSED)
    where = f"labels {name}"
    if not train and not test:
        return ok(where, "all questions are open")
    if len(train) == 1:
        return Finding(where, Level.WARNING, "all closed training questions have the same answer")
    new = sum(count for answer, count in test.items() if answer not in train)
    if new:
        text = f"{new} of {test.total()} closed test questions have answers that no training "
        return Finding(where, Level.WARNING, f"{text}question has")
    return ok(where, f"{len(train)} different answers to {train.total()} closed questions")


def _step(plan: Plan, site: Site, planned: PlannedStage) -> Finding:
    from client.orders.trial_step import trial_step

    seconds, loss = trial_step(plan, site, planned.number - 1)
    return ok(
        "training step",
        f"stage {planned.stage.name}: loading and one step took {seconds:.1f} s, the loss was "
        f"{loss:.2f}; the result is discarded",
    )
