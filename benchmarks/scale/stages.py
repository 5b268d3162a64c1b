"""What grows with the stages: the embedded model's bank, its step, and what is read and sent."""
# torch and typer leave parts of their interfaces untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from benchmarks.step import trained_adapter
from client.data.task import Example
from client.model.llava import LlavaModel, load_llava
from client.site import blob_store
from client.site.adapter_cache import AdapterCache
from client.site.known_bank import check_bank
from client.training.batches import Batches
from client.training.optimizer import LocalOptimizer
from client.training.token_loss import DecoderLoss
from common.adapter import AdapterSource, to_bytes
from common.bank.bank import Bank, verify_bank
from common.bank.check import Expected, clear_release_cache
from common.bank.release import Draft
from common.exchange import Order, ReleaseRef
from common.metrics import AnswerKind
from common.plan.file import parse_plan
from common.plan.plan import Plan, Training
from common.plan_fields import BaseModelPin, Composition, Modality, Precision
from common.rules.interface import Factor
from common.signing import SigningKey
from common.work import Work
from server.app import blob_of
from server.run.folder import RunFolder
from server.run.journal import Journal
from simulation.hospitals import BASE_MODELS

STAGES = (1, 8, 50, 100, 200)
RANK, BATCH = 8, 8
_PIN = BaseModelPin(name="tiny-llava", sha256="a" * 64)


@dataclass
class Series:
    """A figure at each number of stages or of sites, in `unit`."""

    name: str
    unit: str
    values: dict[int, float] = field(default_factory=dict[int, float])

    @property
    def growth(self) -> float:
        """The last over the first."""
        figures = list(self.values.values())
        return figures[-1] / figures[0]


def stages(counts: Sequence[int] = STAGES, repeats: int = 5) -> dict[str, Series]:
    """Measure every series over banks of so many releases."""
    series: dict[str, Series] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch) / "run")
        for bank in _growing(folder, max(counts)):
            if len(bank.releases) in counts:
                for name, unit, value in _of_bank(bank, folder, Path(scratch), repeats):
                    one = series.setdefault(name, Series(name, unit))
                    one.values[len(bank.releases)] = value
        site, cache = _site(Path(scratch), max(counts)), AdapterCache()
        releases = Bank.open(folder.bank).releases[: max(counts)]
        adapters = [cache.get(site, one.adapter, "release") for one in releases]
        for hold in Composition:
            for one in _steps(adapters, counts, hold, repeats):
                series[one.name] = one
    return series


def _site(scratch: Path, count: int) -> Path:
    """Return the store of a site that has received so many releases."""
    return scratch / f"site{count}"


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median process time of `work` in ms, which excludes other processes."""
    taken: list[float] = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return 1e3 * median(taken)


def embedded(precision: Precision = Precision.FP32) -> LlavaModel:
    """Load the small model that comes with the project."""
    return load_llava(BASE_MODELS["tiny-llava"], precision, torch.device("cpu"))


def _growing(folder: RunFolder, count: int) -> Iterator[Bank]:
    """Yield the bank after each of `count` releases."""
    shapes, key = embedded().adapted.layer_shapes(), SigningKey.from_seed(bytes(32))
    folder.root.mkdir(parents=True)
    bank = Bank.create(folder.bank, _PIN)
    for number in range(count):
        blob = to_bytes(trained_adapter(shapes, RANK, number), Precision.BF16)
        bank = bank.add(_draft(bank), blob, key)
        yield bank


def _draft(bank: Bank) -> Draft:
    stage = len(bank.releases)
    return Draft(
        stage=stage,
        name=f"stage{stage}",
        modality=list(Modality)[stage % 3],
        task="lesions",
        parent=bank.head,
        plan=_plan(1).digest,
        sums=tuple(range(stage + 1)),
        sites={"north": 300, "south": 300, "west": 300},
        rule="svd",
        error=0.125,
        scores={"accuracy": 0.75},
        code="c" * 16,
    )


def _plan(count: int) -> Plan:
    """Return a plan of so many stages."""
    stage = {
        "modality": "ct", "task": "t", "sites": ["north"], "rounds": 3, "local_epochs": 1,
        "learning_rate": 0.1, "batch_size": 8,
    }  # fmt: skip
    document = {
        "name": "scale", "seed": 1, "base_model": _PIN.model_dump(), "aggregation": "svd",
        "method": {
            "name": "mslora_cr", "rank": RANK, "alpha": RANK, "active": "all", "contrast": None
        },
        "stages": [{**stage, "name": f"stage{number}"} for number in range(count)],
    }  # fmt: skip
    return parse_plan(document, "scale")


def _of_bank(
    bank: Bank, folder: RunFolder, scratch: Path, repeats: int
) -> Iterator[tuple[str, str, float]]:
    """Yield (name, unit, figure) of the work on the bank without a model."""
    home, count = bank.folder, len(bank.releases)

    def first() -> None:
        clear_release_cache()
        Bank.open(home)

    yield "bank open, first time", "ms", milliseconds(first, repeats)
    yield "bank open, again", "ms", milliseconds(lambda: Bank.open(home), repeats)

    def verify() -> None:
        clear_release_cache()
        verify_bank(home, Expected())

    yield "bank verify", "ms", milliseconds(verify, 3)
    yield "bank.json", "kB", len(bank.index.to_bytes()) / 1e3
    order = _order(bank)
    yield "order", "kB", len(str(order.header())) / 1e3
    yield "order, its digest", "ms", milliseconds(lambda: order.digest, repeats)
    site = _site(scratch, count)
    for stage in range(count):
        blob_store.put(site, bank.adapter_bytes(stage))
    yield "site: check the bank", "ms", milliseconds(lambda: check_bank(site, order), repeats)

    def check(cache: AdapterCache) -> None:
        for ref in order.releases:
            cache.get(site, ref.sha256, "release")

    yield (
        "site: check the releases, first time",
        "ms",
        milliseconds(lambda: check(AdapterCache()), 3),
    )
    known = AdapterCache()
    check(known)
    yield "site: check the releases, again", "ms", milliseconds(lambda: check(known), repeats)
    yield from _of_coordinator(bank, folder, repeats)


def _of_coordinator(
    bank: Bank, folder: RunFolder, repeats: int
) -> Iterator[tuple[str, str, float]]:
    plan = _plan(len(bank.releases) + 1)
    last = bank.releases[-1].adapter
    yield (
        "coordinator: find a blob of the bank", "ms",
        milliseconds(lambda: blob_of(plan, folder, last), repeats),
    )  # fmt: skip
    other = RunFolder(folder.root.parent / f"journal{len(bank.releases)}")
    with closing(Journal(other, plan)) as journal:
        order = _order(bank)
        yield (
            "journal: open an order",
            "ms",
            milliseconds(lambda: journal.open_order(order), repeats),
        )


def _order(bank: Bank) -> Order:
    return Order(
        work=Work.TRAIN,
        plan="0" * 64,
        stage=len(bank.releases),
        round=1,
        releases=tuple(ReleaseRef(one.stage, one.adapter) for one in bank.releases),
        active=tuple(range(len(bank.releases))),
        adapter=None,
        code="c" * 16,
    )


def _steps(
    adapters: Sequence[AdapterSource], counts: Sequence[int], hold: Composition, repeats: int
) -> Iterator[Series]:
    """Measure a step on so many frozen adapters, and how long it takes to read and sum them.

    The counts take turns, so that a machine that slows down slows all of them.
    """
    model = embedded()
    taken: dict[int, list[float]] = {count: [] for count in counts}
    put = Series(f"{hold}: read and sum the adapters", "ms")
    with tempfile.TemporaryDirectory() as folder:
        examples = _examples(Path(folder))
        for _ in range(repeats):
            for count in counts:
                put.values[count] = milliseconds(
                    lambda count=count: model.adapted.freeze_adapters(adapters[:count], hold), 1
                )
                taken[count].append(_step(model, examples))
    model.adapted.detach()
    model.adapted.freeze_adapters([], hold)
    yield Series(f"step, {hold}", "ms", {n: median(found) for n, found in taken.items()})
    yield put


def _step(model: LlavaModel, examples: Sequence[Example]) -> float:
    """Return the milliseconds of a step, the median of five after a first one."""
    shapes = model.adapted.layer_shapes()
    model.adapted.attach(trained_adapter(shapes, RANK, 1), Factor.BOTH)
    decoder, batch = DecoderLoss(model), Batches(model, examples).collate(range(len(examples)))
    descent = LocalOptimizer(decoder, model.adapted.trainable_parameters(), Training())

    def step() -> None:
        descent.step([decoder(batch)], None, 0.0)

    step()
    return milliseconds(step, 5)


def _examples(folder: Path) -> list[Example]:
    found: list[Example] = []
    for number in range(BATCH):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        asked = "is there a mass in the left lung ?"
        file = folder / f"{number}.png"
        found.append(Example(str(number), file, asked, "yes", AnswerKind.CLOSED))
    return found
