"""A site with a tiny model and two small tasks, and orders for it whose blobs it has."""

from pathlib import Path
from typing import Any

import numpy as np

from client.methods.interface import Assignment
from client.model.base_digest import base_digest
from client.orders import execute
from client.orders.resolve import ResolvedOrder, resolve
from client.orders.session import Sessions
from client.site import blob_store
from client.site.approval import adapted_layers
from client.site.config import Device, Plans, Policy, Site
from client.training.checkpoint import Checkpoint
from common.adapter import Adapter, Pair, to_bytes
from common.code_digest import code_digest
from common.exchange import Answer, Order, ReleaseRef, Update
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.plan_fields import Modality
from common.process.progress import OnEvent
from common.work import Work
from tests.flow.tiny_llava import write_llava, write_task

QUESTIONS = [
    ("what colour is this ?", "red"),
    ("is it the left side ?", "no the right side"),
    ("what colour is this ?", "red"),
    ("is this it ?", "yes"),
    ("what colour is this ?", "blue"),
    ("which side ?", "left"),
]

MSLORA_CR: dict[str, Any] = {
    "name": "mslora_cr",
    "rank": 2,
    "alpha": 2.0,
    "active": "all",
    "contrast": {"similarity": "exp", "weight": 0.1, "orthogonality": 0.01},
}


def write_site(folder: Path) -> Path:
    """The model and the data of a site, in `folder`."""
    write_llava(folder / "base")
    write_task(folder / "data" / "first", QUESTIONS)
    write_task(folder / "data" / "second", list(reversed(QUESTIONS)))
    return folder


def site_in(folder: Path, store: Path, **changes: Any) -> Site:
    """The site of what `write_site` wrote, with its own store."""
    fields: dict[str, Any] = {
        "name": "north",
        "data": folder / "data",
        "base_model": folder / "base",
        "store": store,
        "device": Device.CPU,
        "threads": 1,
        "policy": Policy(
            modalities=tuple(Modality),
            plans=Plans.ANY,
            rounds=None,
            examples=1,
            test_questions=1,
        ),
    }
    return Site(**{**fields, **changes})


def plan_of(site: Site, rule: str = "fedavg", **changes: Any) -> Plan:
    """Two stages of two rounds; in full precision on the wire, so that small steps show."""
    stages = [
        {
            "name": task,
            "modality": modality,
            "task": task,
            "sites": ["north"],
            "rounds": 2,
            "local_epochs": 2.0,
            "learning_rate": 0.01,
            "batch_size": 3,
            "max_new_tokens": 6,
        }
        for task, modality in (("first", "ct"), ("second", "mr"))
    ]
    document: dict[str, Any] = {
        "name": "plan",
        "seed": 7,
        "base_model": {"name": "tiny", "sha256": base_digest(site.base_model)},
        "method": MSLORA_CR,
        "aggregation": rule,
        "wire": "fp32",
        "stages": stages,
    }
    return parse_plan({**document, **changes}, "test")


def staged(plan: Plan, stage: int, **changes: Any) -> Plan:
    """The plan with changed fields of one stage."""
    document = plan.model_dump(mode="json")
    document["stages"][stage] |= changes
    return parse_plan(document, "test")


def order_of(site: Site, plan: Plan, adapter: bytes | None = None, **changes: Any) -> Order:
    """An order of stage 0, round 1, whose plan and adapter the site has got."""
    fields: dict[str, Any] = {
        "work": Work.TRAIN,
        "plan": blob_store.put(site.store, plan.canonical().encode()),
        "stage": 0,
        "round": 1,
        "releases": (),
        "active": (),
        "adapter": None if adapter is None else blob_store.put(site.store, adapter),
        "code": code_digest(),
    }
    return Order(**{**fields, **changes})


def adapter_of_plan(site: Site, plan: Plan, value: float = 1.0, rank: int | None = None) -> bytes:
    """An adapter whose layers have the shapes that the plan adapts; all numbers are `value`."""
    rank = rank or plan.method.layout.rank
    pairs = {
        f"layer{number}": Pair(
            np.full((rank, inputs), value, np.float32), np.full((outputs, rank), value, np.float32)
        )
        for number, (outputs, inputs) in enumerate(adapted_layers(plan, site.base_model))
    }
    return to_bytes(Adapter(pairs, plan.method.layout.scale), plan.wire)


def second_stage(site: Site, plan: Plan, first: Update, **changes: Any) -> Order:
    """An order of stage 1 on top of the released first stage, which the site has got."""
    fields: dict[str, Any] = {
        "stage": 1,
        "releases": (ReleaseRef(0, blob_store.put(site.store, first.adapter)),),
        "active": plan.frozen_stages(1),
    }
    return order_of(site, plan, **{**fields, **changes})


_sessions = [Sessions()]


def as_in_a_new_process() -> None:
    """What was kept of earlier orders is forgotten."""
    _sessions[0] = Sessions()


def resolved(order: Order, site: Site) -> ResolvedOrder:
    return resolve(order, _sessions[0].of(site))


def assignment_of(order: Order, site: Site, checkpoint: Checkpoint | None = None) -> Assignment:
    return execute.assignment_of(resolved(order, site), _sessions[0].of(site), checkpoint)


def do(order: Order, site: Site, on_event: OnEvent, checkpoint: Checkpoint | None) -> Answer:
    """The site's answer, from a process that may have worked off orders before."""
    return execute.execute(order, _sessions[0].of(site), on_event, checkpoint)
