"""What grows with the sites: a coordinator's work for rounds of 8 to 1,000 sites, in one process.

The sites are canned: adapters of the embedded model's size, some percent about a common one.
What is measured is the coordinator's process time; disks and lines are not.
"""
# pyright: reportUnknownMemberType=false

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from benchmarks.scale.stages import RANK, Series, embedded, milliseconds
from benchmarks.step import trained_adapter
from common.adapter import StoredAdapter, to_bytes
from common.code_digest import code_digest
from common.exchange import Delivery, Order, Presence, Update
from common.identity import sha256
from common.methods.interface import AdapterLayout
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.plan_fields import Modality, Precision
from common.rules.interface import Factor
from common.rules.registry import rule_named
from common.work import Work
from server.aggregation.aggregate import merge
from server.aggregation.compatibility import TrainedPart, incompatible_updates
from server.aggregation.round import SiteUpdate
from server.asked_site import SIMULATED
from server.coordinator.registry import EnrolledSite, enroll, enrolled
from server.coordinator.state import State
from server.coordinator.status import site_statuses
from server.network import Network
from server.run.accept import Accept, Done, Received, Refused, Waiting, durable
from server.run.context import RunContext
from server.run.folder import RunFolder
from server.run.journal import Journal
from server.run.stage import train_stage
from simulation.inprocess import grid_of

SITES = (8, 64, 250, 1000)


def sites(counts: Sequence[int] = SITES, repeats: int = 3) -> dict[str, Series]:
    """Measure every series over so many sites."""
    series: dict[str, Series] = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as scratch:
            for name, unit, value in _of_sites(count, Path(scratch), repeats):
                series.setdefault(name, Series(name, unit)).values[count] = value
    return series


def _of_sites(count: int, scratch: Path, repeats: int) -> Iterator[tuple[str, str, float]]:
    """Yield (name, unit, figure) of a federation of so many sites."""
    names = [f"site{number}" for number in range(count)]
    yield from _of_registry(names, scratch, repeats)
    updates = dict(zip(names, _adapters(count), strict=True))
    yield from _of_updates(updates, scratch)
    yield "a round: messages", "ms a site", _messages(updates) / count
    yield "a round: accept, journal, merge", "ms a site", _round(updates, scratch) / count


def _of_registry(
    names: Sequence[str], scratch: Path, repeats: int
) -> Iterator[tuple[str, str, float]]:
    state = State(scratch)
    keys = [_public_key() for _ in range(len(names) + repeats)]
    members = [
        EnrolledSite(name=name, modalities=(Modality.CT,), public_key=key)
        for name, key in zip(names, keys, strict=False)
    ]
    enroll(state.registry, members[0])
    # As `enroll` would leave it, which writes to the disk once for each.
    document = {"sites": [member.model_dump(mode="json") for member in members]}
    state.registry.write_text(json.dumps(document), encoding="utf-8")
    more = iter(keys[len(names) :])
    yield "registry: read", "ms", milliseconds(lambda: enrolled(state.registry), repeats)
    yield (
        "registry: enroll a site", "ms",
        milliseconds(lambda: enroll(state.registry, _newcomer(next(more))), repeats),
    )  # fmt: skip
    yield "status of all sites", "ms", milliseconds(lambda: site_statuses(state, None, []), 3)


def _newcomer(key: str) -> EnrolledSite:
    return EnrolledSite(name=f"new{abs(hash(key))}", modalities=(Modality.CT,), public_key=key)


def _public_key() -> str:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _adapters(count: int) -> Iterator[bytes]:
    """Yield safetensors of which no two have the same numbers."""
    blob = to_bytes(trained_adapter(embedded().adapted.layer_shapes(), RANK, 0), Precision.BF16)
    begin = 8 + int.from_bytes(blob[:8], "little")
    bits = np.frombuffer(blob[begin:], "<u2")
    random = np.random.default_rng(1)
    for _ in range(count):
        # The last 4 of a bfloat16's 7 bits after the point: it moves by 12 % at most.
        moved = bits ^ random.integers(0, 16, len(bits), dtype=np.uint16)
        yield blob[:begin] + moved.tobytes()


def _of_updates(updates: dict[str, bytes], scratch: Path) -> Iterator[tuple[str, str, float]]:
    folder = scratch / "updates"
    folder.mkdir()
    for name, blob in updates.items():
        (folder / name).write_bytes(blob)
    sources = {name: StoredAdapter.in_file(folder / name, name) for name in updates}
    parts = [SiteUpdate(name, 100, source) for name, source in sources.items()]
    for rule in (rule_named("fedavg"), rule_named("svd")):
        merged = milliseconds(lambda rule=rule: merge(rule, parts, None, RANK, Precision.BF16), 1)
        yield f"merge, {rule.name}", "ms a site", merged / len(updates)
    checking = milliseconds(
        lambda: incompatible_updates(
            sources, None, AdapterLayout(RANK, RANK), TrainedPart(Factor.BOTH)
        ),
        1,
    )
    yield "check the updates' compatibility", "ms a site", checking / len(updates)


def _plan(names: Sequence[str]) -> Plan:
    stage = {
        "name": "one", "modality": "ct", "task": "t", "sites": list(names), "rounds": 1,
        "local_epochs": 1, "learning_rate": 0.1, "batch_size": 8,
    }  # fmt: skip
    document = {
        "name": "scale", "seed": 1, "base_model": {"name": "tiny-llava", "sha256": "a" * 64},
        "method": {
            "name": "mslora_cr", "rank": RANK, "alpha": RANK, "active": "all", "contrast": None
        },
        "aggregation": "fedavg", "stages": [stage],
    }  # fmt: skip
    return parse_plan(document, "scale")


def _round(updates: dict[str, bytes], scratch: Path) -> float:
    """Return the milliseconds of a round, from the first answer to the merged adapter."""
    plan = _plan(list(updates))

    def ask(
        order: Order, asked: Sequence[str], accept: Accept
    ) -> Iterator[Done | Refused | Waiting]:
        for site in asked:
            why = accept(Received(_update(order.digest, site, updates[site]), 1000, 1000))
            yield Done(site) if why is None else Refused(site, why)

    with closing(Journal(RunFolder(scratch / "run"), plan)) as journal:
        context = RunContext(plan, durable(ask, journal), journal, lambda _: None, patient=False)
        return milliseconds(lambda: train_stage(context, 0, ()), 1)


def _messages(updates: dict[str, bytes]) -> float:
    """Return the milliseconds of messages to every site and back, the sites' own work included."""
    app = ClientApp()

    @app.query()
    def introduce(message: Message, context: Context) -> Message:  # pyright: ignore[reportUnusedFunction]
        presence = Presence(site=str(context.node_config["name"]), code=code_digest(), holds=())
        return Message(presence.to_record(), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:  # pyright: ignore[reportUnusedFunction]
        site = str(context.node_config["name"])
        digest = Delivery.from_record(message.content).order.digest
        return Message(_update(digest, site, updates[site]).to_record(), reply_to=message)

    order = Order(
        work=Work.TRAIN, plan=sha256(b""), stage=0, round=1, releases=(), active=(), adapter=None,
        code=code_digest(),
    )  # fmt: skip
    network = Network(grid_of(app, [{"name": name} for name in updates]), lambda _: b"", SIMULATED)
    done: list[Done | Refused | Waiting] = []
    taken = milliseconds(lambda: done.extend(network.ask(order, list(updates), lambda _: None)), 1)
    assert sum(isinstance(event, Done) for event in done) == len(updates)
    return taken


def _update(order: str, site: str, adapter: bytes) -> Update:
    return Update(
        order=order, site=site, examples=100, steps=10, loss=0.5, regularizer=0.0, adapter=adapter
    )  # fmt: skip
