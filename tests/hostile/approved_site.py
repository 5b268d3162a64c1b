"""A site that has approved a plan, and what a coordinator may send it; no torch, no process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

from client.node.jobs import Jobs
from client.node.receive import receive
from client.site.config import Device, Federation, Plans, Policy, Site
from client.site.failures import OrderRefused
from client.site.policy import approval_file
from common.adapter import Adapter, Pair, to_bytes
from common.code_digest import code_digest
from common.exchange import Delivery, Order, Reason, ReleaseRef, Reply, Scores, Update
from common.identity import sha256
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.plan_fields import Modality
from common.router.image_prototype import ImagePrototype
from common.router.image_prototype import to_bytes as prototype_bytes
from common.work import Work

#: (outputs, inputs) of the base model's layers that a plan adapts.
LAYERS = ((6, 4), (4, 6), (4, 4))
RANK = 2

STAGE: dict[str, Any] = {
    "name": "cxp", "modality": "radiology", "task": "CXP", "sites": ["north", "south"],
    "rounds": 3, "local_epochs": 1.0, "learning_rate": 1e-3, "batch_size": 8,
}  # fmt: skip


def plan_of(**changes: Any) -> Plan:
    """Two stages of three rounds at this site, and one at another alone."""
    document: dict[str, Any] = {
        "name": "demo",
        "seed": 1,
        "base_model": {"name": "tiny", "sha256": "0" * 64},
        "method": {
            "name": "mslora_cr", "rank": RANK, "alpha": 2.0, "active": "all", "contrast": {},
        },
        "aggregation": "fedavg",
        "stages": [
            STAGE,
            {**STAGE, "name": "nuclei", "modality": "microscopy"},
            {**STAGE, "name": "film", "modality": "xray", "sites": ["south"]},
        ],
    }  # fmt: skip
    return parse_plan({**document, **changes}, "test")


def site_in(folder: Path, plan: Plan | None = None, **policy: Any) -> Site:
    """A resident site in the folder that has approved the plan, if one is given."""
    base, approved = folder / "base", folder / "approved"
    base.mkdir(parents=True)
    approved.mkdir()
    weights = {
        f"model.language_model.layers.{number}.self_attn.q_proj.weight": np.zeros(shape, np.float32)
        for number, shape in enumerate(LAYERS)
    }
    save_file(weights, base / "model.safetensors")
    if plan is not None:
        approval_file(approved, plan.digest).write_text(plan.canonical())
    fields: dict[str, Any] = {
        "modalities": tuple(Modality), "plans": Plans.APPROVED, "rounds": None, "examples": 1,
    }  # fmt: skip
    return Site(
        name="north",
        data=folder / "data",
        base_model=base,
        store=folder / "store",
        device=Device.CPU,
        threads=1,
        policy=Policy(**{**fields, **policy}),
        federation=Federation(
            address="localhost:1", ca=folder / "ca", key=folder / "key", approved=approved
        ),
    )


def adapter(value: float, rank: int = RANK, layers: tuple[tuple[int, int], ...] = LAYERS) -> bytes:
    """An adapter whose numbers are all `value`; by default laid out as the plan says."""
    pairs = {
        f"layer{number}": Pair(
            np.full((rank, inputs), value, np.float32), np.full((outputs, rank), value, np.float32)
        )
        for number, (outputs, inputs) in enumerate(layers)
    }
    return to_bytes(Adapter(pairs, 2.0 / RANK))


def prototype(direction: float) -> bytes:
    """An image prototype of 60 images."""
    vector = np.array([0.5, direction], np.float32)
    return prototype_bytes(ImagePrototype(vector, 0.1, 60))


def training(plan: Plan, round_number: int, start: bytes | None = None, **changes: Any) -> Order:
    """The order to train a round of the first stage from `start`."""
    fields: dict[str, Any] = {
        "work": Work.TRAIN, "plan": plan.digest, "stage": 0, "round": round_number,
        "releases": (), "active": (), "adapter": None if start is None else sha256(start),
        "code": code_digest(),
    }  # fmt: skip
    return Order(**{**fields, **changes})


def scoring(plan: Plan, candidate: bytes | None = None, **changes: Any) -> Order:
    """The order to score the first task; without a candidate and releases, by the base model."""
    return training(plan, 0, candidate, **{"work": Work.EVALUATE, **changes})


def bank(*adapters: bytes) -> tuple[ReleaseRef, ...]:
    """References to these releases, the first stage's first."""
    return tuple(ReleaseRef(stage, sha256(blob)) for stage, blob in enumerate(adapters))


def sent(site: Site, plan: Plan, order: Order, *blobs: bytes) -> Reply:
    """The site's reply to the order, which comes with the plan and these blobs."""
    every = {sha256(blob): blob for blob in (plan.canonical().encode(), *blobs)}
    return receive(Delivery(order=order, blobs=every), site)


def reason_of(site: Site, plan: Plan, order: Order, *blobs: bytes) -> Reason | None:
    """The reason for which the site refuses the order; None if it takes it."""
    try:
        sent(site, plan, order, *blobs)
    except OrderRefused as refused:
        return refused.reason
    return None


def answered(site: Site, order: Order) -> Update | Scores:
    """Have the trainer answer the order; return the answer."""
    if order.work is Work.TRAIN:
        answer: Update | Scores = Update(
            order=order.digest, site=site.name, examples=40, steps=5, loss=1.0, regularizer=0.0,
            adapter=adapter(9.0),
        )  # fmt: skip
    else:
        metrics: Mapping[str, float] = {"accuracy": 0.5}
        answer = Scores(
            order=order.digest, site=site.name, questions=40, metrics=metrics, majority=metrics
        )
    Jobs(site.store).finish(order, answer)
    return answer
