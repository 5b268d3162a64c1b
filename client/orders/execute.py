"""An order becomes an answer: everything is checked, then trained or scored.

The errors that come out of here may name the site's files; they are for its own log.
"""
# pyright: reportUnknownMemberType=false

import json
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

import torch

from client.data.file_stamp import Stamp, stamp_of
from client.data.task import TEST_FILE, TRAIN_FILE, Example, TaskData, images_of, read_task
from client.inference.image_prototype import guarded
from client.methods import joint, mslora_cr, sequential, zero_shot
from client.methods.interface import Assignment, Method
from client.model.base_digest import base_digest
from client.model.device import device_of, settle
from client.model.feature_store import store_in
from client.model.llava import load_base
from client.orders.routed_answers import answer_routed
from client.site import blob_store
from client.site.adapter_cache import AtHand
from client.site.config import Site
from client.site.failures import OrderRefused
from client.site.policy import check_examples, check_order, fewest_images
from client.training.checkpoint import Checkpoint
from client.training.loop import Progress
from common.adapter import StoredAdapter, to_bytes
from common.errors import SiteFailed
from common.exchange import Answer, Order, Reason, Scores, Update, Work
from common.image_prototype import ImagePrototype
from common.image_prototype import from_bytes as prototype_from
from common.image_prototype import to_bytes as prototype_bytes
from common.metrics import Answer as Answered
from common.metrics import majority_answers, task_metrics
from common.plan import Plan
from common.plan_file import parse_plan
from common.process.progress import OnProgress

#: Every method by its name in a plan.
METHODS: Final[dict[str, Method]] = {
    "mslora_cr": mslora_cr,
    "sequential": sequential,
    "joint": joint,
    "zero_shot": zero_shot,
}

#: The adapters of the order before; most of them are named again.
_AT_HAND: Final = AtHand()


def do(order: Order, site: Site, tell: OnProgress, checkpoint: Checkpoint | None) -> Answer:
    """What the order asks for: an update, or scores. Asked twice, it answers the same.

    What it names must be in the site's store. With a checkpoint a training that was cut
    off goes on from there, to the same adapter.

    Raises:
        OrderRefused: it is not within the site's policy, or another base model than the plan's.
        SiteFailed: a blob that is not in the store, a device that is missing, a full disk,
            a loss that is not finite.
        PlanError, ModelError, BankError, DataError: what the order names, or what the site
            has, can't be used.
        NotWanted: the order is no longer wanted, as it turned out at a checkpoint.
    """
    started = time.monotonic()
    plan = plan_of(order, site)
    # Once more: both the code and the policy may have changed since the order came.
    check_order(order, plan, site)
    _check_base(plan, site)
    settle(site)
    try:
        if order.work is Work.EVALUATE:
            return _evaluate(order, site)
        update = _train(order, site, tell, checkpoint)
    except torch.OutOfMemoryError:
        raise SiteFailed(
            f"site {site.name}: stage {plan.stages[order.stage].name!r} needs more GPU memory "
            "than there is; a smaller training.micro_batch or evaluation.batch_size, or "
            "training.gradient_checkpointing, may help"
        ) from None
    return replace(update, seconds=time.monotonic() - started, peak_memory=_peak_memory())


def _train(order: Order, site: Site, tell: OnProgress, checkpoint: Checkpoint | None) -> Update:
    _check_tasks(order, site)
    if site.workers > 1:
        from client.orders.workers import train_with_workers  # DeepSpeed, which few sites have

        # They read their own: nothing of an order before stays in memory beside them.
        _AT_HAND.keep_only(site.store, [])
        update = train_with_workers(order, site, tell, checkpoint)
    else:
        update = train_here(order, assignment_of(order, site, checkpoint), site, tell)
    return replace(update, prototype=_prototype(order, site))


def _check_tasks(order: Order, site: Site) -> None:
    """Every task that the order trains on is within the policy, a joint method's others, too."""
    plan = plan_of(order, site)
    for number in _other_stages(order, site):
        # How often the others are trained on is said by the order's own stage.
        check_order(replace(order, stage=number, round=1), plan, site)
    for number in (order.stage, *_other_stages(order, site)):
        check_examples(site, len(data_of(replace(order, stage=number), site).train))


def _prototype(order: Order, site: Site) -> bytes | None:
    """The prototype of the site's pictures, if the order's plan wants it and they are enough."""
    plan = plan_of(order, site)
    fewest = fewest_images(plan, order.stage, order.round, site)
    if fewest is None:
        return None
    precision, vision = plan.training.precision, plan.vision_weights
    base = load_base(site.base_model, precision, device_of(site), vision)
    model = replace(base, kept=store_in(site.store, site.feature_cache_gib))
    found = guarded(model, images_of(data_of(order, site).train), fewest)
    return None if found is None else prototype_bytes(found)


def train_here(order: Order, assignment: Assignment, site: Site, tell: OnProgress) -> Update:
    """What the order's training in this process comes to."""
    plan, examples = assignment.plan, data_of(order, site).train
    method = METHODS[plan.method.name]
    sent = _adapter_of(order, site)
    adapter = method.start(assignment, examples) if sent is None else sent.loaded()

    def report(progress: Progress) -> None:
        tell(asdict(progress))

    improved, trained = method.train(assignment, adapter, examples, report)
    return Update(
        order=order.digest,
        site=site.name,
        examples=len(examples),
        steps=trained.steps,
        loss=trained.loss,
        regularizer=trained.regularizer,
        adapter=to_bytes(improved, plan.wire),
    )


def _evaluate(order: Order, site: Site) -> Scores:
    assignment, data = assignment_of(order, site, None), data_of(order, site)
    answer, shares = METHODS[assignment.plan.method.name].answer, dict[str, float]()
    if order.prototypes:
        texts, shares = answer_routed(assignment, _prototypes(order, site), data.test, answer)
    else:
        texts = answer(assignment, data.test)
    name = f"{assignment.task.name}-{order.digest[:12]}.jsonl"
    blob_store.write_whole(site.store / "answers" / name, _answer_file(data.test, texts))
    usual = majority_answers([(example.question, example.answer) for example in data.train])
    return Scores(
        order=order.digest,
        site=site.name,
        questions=len(data.test),
        metrics={**task_metrics(_answered(data.test, texts)), **shares},
        majority=task_metrics(_answered(data.test, [usual(q.question) for q in data.test])),
    )


def _peak_memory() -> int:
    """The largest resident memory so far of this process, or of one it has started, in bytes."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(process).ru_maxrss for process in who) * 1024


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


def plan_of(order: Order, site: Site) -> Plan:
    """The order's plan, from the site's store.

    Raises:
        SiteFailed: it is not there.
        PlanError: it is no plan.
    """
    return _parsed(blob_store.get(site.store, order.plan))


@lru_cache(maxsize=4)
def _parsed(document: bytes) -> Plan:
    return parse_plan(json.loads(document), "the order's plan")


def _check_base(plan: Plan, site: Site) -> None:
    """Nothing is added to another model than the plan's."""
    found, pin = base_digest(site.base_model), plan.base_model
    if found != pin.sha256:
        raise OrderRefused(
            Reason.BASE_MODEL,
            f"base model {pin.name!r} at site {site.name}: found the digest {found}, "
            f"the plan pins {pin.sha256}",
        )


def assignment_of(order: Order, site: Site, checkpoint: Checkpoint | None) -> Assignment:
    """The order with everything it names, from the site's store.

    Raises:
        SiteFailed, PlanError, BankError: something is not there or can't be used.
    """
    named = [ref.sha256 for ref in order.releases]
    _AT_HAND.keep_only(site.store, [*named, *([order.adapter] if order.adapter else [])])
    return Assignment(
        plan=plan_of(order, site),
        stage=order.stage,
        round=order.round,
        site=site.name,
        bank={ref.stage: _stored(site, ref.sha256, "release") for ref in order.releases},
        active=order.active,
        candidate=_adapter_of(order, site) if order.work is Work.EVALUATE else None,
        base_model=site.base_model,
        device=device_of(site),
        checkpoint=checkpoint,
        features=store_in(site.store, site.feature_cache_gib),
        others=_others(order, site),
    )


def _others(order: Order, site: Site) -> dict[int, tuple[Example, ...]]:
    """What `Assignment.others` is."""
    return {
        number: data_of(replace(order, stage=number), site).train
        for number in _other_stages(order, site)
    }


def _other_stages(order: Order, site: Site) -> list[int]:
    """The site's stages beside the order's own whose tasks are trained on with it."""
    plan = plan_of(order, site)
    if order.work is Work.EVALUATE or plan.method.name != "joint":
        return []
    return [
        number
        for number, stage in enumerate(plan.stages)
        if number != order.stage and site.name in stage.sites
    ]


def _adapter_of(order: Order, site: Site) -> StoredAdapter | None:
    return None if order.adapter is None else _stored(site, order.adapter, "the order's adapter")


def _stored(site: Site, digest: str, what: str) -> StoredAdapter:
    return _AT_HAND.get(site.store, digest, what)


def _prototypes(order: Order, site: Site) -> dict[int, ImagePrototype]:
    """What the order has its pictures choose among, from the site's store."""
    return {
        ref.stage: prototype_from(
            blob_store.get(site.store, ref.sha256), f"the prototype of release {ref.stage + 1}"
        )
        for ref in order.prototypes
    }


def data_of(order: Order, site: Site) -> TaskData:
    """The site's questions of the order's task, read again only where a file has changed.

    Raises:
        DataError: the site has no such task, or it can't be used.
    """
    folder = site.data / plan_of(order, site).stages[order.stage].task
    files = [folder / TRAIN_FILE, folder / TEST_FILE]
    stamps = tuple(map(stamp_of, files))
    return _read(folder, stamps)


@lru_cache(maxsize=16)
def _read(folder: Path, stamps: tuple[Stamp | None, ...]) -> TaskData:
    return read_task(folder)
