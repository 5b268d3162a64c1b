"""An order becomes an answer: everything is checked, then trained or scored.

The errors that come out of here may name the site's files; they are for its own log.
"""
# pyright: reportUnknownMemberType=false

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Final, TypeAlias

import torch

from client import store
from client.base_files import base_digest
from client.data import TEST_FILE, TRAIN_FILE, Example, TaskData, read_task
from client.methods import mslora_cr, sequential
from client.methods.interface import Assignment, Method
from client.site import Device, Site
from client.train import Progress
from common.adapter import Adapter, from_bytes, to_bytes
from common.errors import ModelError, SiteFailed
from common.exchange import Answer, Order, Scores, Update, Work
from common.identity import code_digest
from common.metrics import Answer as Answered
from common.metrics import majority_answers, task_metrics
from common.plan import Plan, parse_plan
from common.progress import News

#: Takes one piece of news of a training: stage, round, site, step, steps, loss.
Tell: TypeAlias = Callable[[News], None]

#: Every method by its name in a plan.
METHODS: Final[dict[str, Method]] = {"mslora_cr": mslora_cr, "sequential": sequential}


def do(order: Order, site: Site, tell: Tell) -> Answer:
    """What the order asks for: an update, or scores. Asked twice, it answers the same.

    Raises:
        SiteFailed: other code than the order's, a release that is not there, a device that
            is missing, a full disk, a loss that is not finite.
        PlanError, ModelError, BankError, DataError: what the order names, or what the site
            has, can't be used.
    """
    if order.code != code_digest():
        raise SiteFailed(
            f"site {site.name} runs code {code_digest()}, the coordinator {order.code}; "
            "expected the same on both sides"
        )
    plan = _plan(order.plan)
    _check_base(plan, site)
    for blob in order.carried.values():
        store.put(site.store, blob)
    _settle(site)
    data = _data(site, plan.stages[order.stage].task)
    try:
        if order.work is Work.TRAIN:
            return _train(order, _assignment(order, plan, site), data, tell)
        return _evaluate(order, _assignment(order, plan, site), data, site)
    except torch.OutOfMemoryError:
        raise SiteFailed(
            f"site {site.name}: stage {plan.stages[order.stage].name!r} needs more GPU memory "
            "than there is; a smaller training.micro_batch or evaluation.batch_size, or "
            "training.gradient_checkpointing, may help"
        ) from None


def _train(order: Order, assignment: Assignment, data: TaskData, tell: Tell) -> Update:
    method = METHODS[assignment.plan.method.name]
    adapter = _adapter_of(order) or method.start(assignment)

    def report(progress: Progress) -> None:
        tell(asdict(progress))

    improved, trained = method.train(assignment, adapter, data.train, report)
    return Update(
        order=order.digest,
        site=assignment.site,
        examples=len(data.train),
        steps=trained.steps,
        loss=trained.loss,
        regularizer=trained.regularizer,
        adapter=to_bytes(improved),
    )


def _evaluate(order: Order, assignment: Assignment, data: TaskData, site: Site) -> Scores:
    texts = METHODS[assignment.plan.method.name].answer(assignment, data.test)
    name = f"{assignment.task.name}-{order.digest[:12]}.jsonl"
    store.write_whole(site.store / "answers" / name, _answer_file(data.test, texts))
    usual = majority_answers([(example.question, example.answer) for example in data.train])
    return Scores(
        order=order.digest,
        site=assignment.site,
        questions=len(data.test),
        metrics=task_metrics(_answered(data.test, texts)),
        majority=task_metrics(_answered(data.test, [usual(q.question) for q in data.test])),
    )


def _answered(questions: Sequence[Example], texts: Sequence[str]) -> list[Answered]:
    return [
        Answered(question=q.question, answer=text, truth=q.answer, kind=q.kind)
        for q, text in zip(questions, texts, strict=True)
    ]


def _answer_file(questions: Sequence[Example], texts: Sequence[str]) -> bytes:
    """One JSON object a line, under the keys of the paper's answer files."""
    lines = [
        json.dumps(
            {
                "question_id": q.question_id,
                "prompt": q.question,
                "text": text,
                "gt": q.answer,
                "answer_type": q.kind,
            },
            ensure_ascii=False,
        )
        for q, text in zip(questions, texts, strict=True)
    ]
    return "".join(f"{line}\n" for line in lines).encode()


@lru_cache(maxsize=4)
def _plan(document: str) -> Plan:
    return parse_plan(json.loads(document), "the order's plan")


def _check_base(plan: Plan, site: Site) -> None:
    """Nothing is added to another model than the plan's."""
    found, pin = base_digest(site.base_model), plan.base_model
    if found != pin.sha256:
        raise ModelError(
            f"base model {pin.name!r} at site {site.name}: found the digest {found}, "
            f"the plan pins {pin.sha256}"
        )


def _assignment(order: Order, plan: Plan, site: Site) -> Assignment:
    return Assignment(
        plan=plan,
        stage=order.stage,
        round=order.round,
        site=site.name,
        bank={ref.stage: _release(site.store, ref.sha256) for ref in order.releases},
        active=order.active,
        candidate=_adapter_of(order) if order.work is Work.EVALUATE else None,
        base_model=site.base_model,
        device=_device(site),
    )


def _adapter_of(order: Order) -> Adapter | None:
    return None if order.adapter is None else from_bytes(order.adapter, "the order's adapter")


def _release(folder: Path, digest: str) -> Adapter:
    return from_bytes(store.get(folder, digest), f"release {digest[:12]}")


def _data(site: Site, task: str) -> TaskData:
    """The site's questions of a task, read again only where a file has changed."""
    folder = site.data / task
    files = [folder / TRAIN_FILE, folder / TEST_FILE]
    stamps = tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)
    return _read(folder, stamps)


@lru_cache(maxsize=16)
def _read(folder: Path, stamps: tuple[int, ...]) -> TaskData:
    return read_task(folder)


def _device(site: Site) -> torch.device:
    there = torch.cuda.is_available()
    if site.device is Device.CUDA and not there:
        raise SiteFailed(f"site {site.name}, device: found no GPU, expected one ('cuda')")
    return torch.device("cpu" if site.device is Device.CPU or not there else "cuda")


def _settle(site: Site) -> None:
    """Equal orders have equal answers: what decides the last bits is set, no seed among it."""
    torch.set_num_threads(site.threads)
    if _device(site).type == "cuda":
        # Without it cuBLAS may choose another way of summing from run to run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
