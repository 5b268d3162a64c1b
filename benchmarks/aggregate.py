"""Aggregation at the size of the 7B: `svd` in rank space against forming the dense products."""

import os
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]

from benchmarks.compare import BenchmarkResult, Timing, benchmark_result, relative_difference
from common.adapter import Adapter, Pair, StoredAdapter, from_bytes, to_bytes
from common.plan_fields import Precision
from common.rules.interface import Rule
from common.rules.registry import rule_named
from common.tensors import Array
from server.aggregation.aggregate import WORKERS, Merged, merge
from server.aggregation.round import SiteUpdate

SEED = 20250811
#: Modules up to this smaller side have their dense SVD taken, to compare with.
CHECKED_UP_TO = 1024


@dataclass(frozen=True, slots=True)
class AdapterSizes:
    """The adapters: so many blocks of layers with (outputs, inputs), sites and rank."""

    blocks: int
    shapes: Mapping[str, tuple[int, int]]
    sites: int
    rank: int


#: LLaVA-Med v1.5's text model, Mistral 7B: 224 layers with an adapter, 84 MB of it in bf16.
LARGE = AdapterSizes(
    blocks=32,
    shapes={
        "self_attn.q_proj": (4096, 4096),
        "self_attn.k_proj": (1024, 4096),
        "self_attn.v_proj": (1024, 4096),
        "self_attn.o_proj": (4096, 4096),
        "mlp.gate_proj": (14336, 4096),
        "mlp.up_proj": (14336, 4096),
        "mlp.down_proj": (4096, 14336),
    },
    sites=8,
    rank=16,
)
#: Numbers of sites at which memory is measured, and the result compared with the dense one.
MEMORY_AT = (2, 8, 32, 128)


@dataclass(frozen=True, slots=True)
class CallTime:
    """Seconds of a call: wall-clock time, and CPU time of all the process's threads together."""

    wall: float
    cpu: float


@dataclass(frozen=True, slots=True)
class SvdAtScale:
    """`svd` at some number of sites: its peak memory in adapters, and its difference from dense."""

    memory: float
    difference: float


@dataclass(frozen=True, slots=True)
class Turn:
    """The times of all ways, measured one directly after the other."""

    read: CallTime
    fedavg: CallTime
    svd: CallTime
    dense: CallTime
    stacked: CallTime
    missed: CallTime


def run(repeats: int = 3, size: AdapterSizes = LARGE) -> BenchmarkResult:
    """Time `svd`, plain `fedavg`, reading, and forming the dense products, in turns.

    The sites' adapters are files in bf16, in the page cache for every way. Every way has the
    same number of threads, one layer each. About two minutes for the 7B's size with three
    repeats on two idle cores, 1 GB of disk and 2 GB of memory.
    """
    with TemporaryDirectory() as folder, threadpool_limits(1, "blas"):
        files = sites_in(Path(folder), size)
        sites = [contribution(number, file) for number, file in enumerate(files)]
        take_turn(files, sites, size)
        turns = [take_turn(files, sites, size) for _ in range(repeats)]
        equal_to = largest_difference(sites, size)
        at = {str(count): measured_at(size, count) for count in MEMORY_AT}
    timing = Timing(
        tuple(turn.svd.wall for turn in turns), tuple(turn.dense.wall for turn in turns), None, None
    )
    settings = _settings(size) | ratios(turns)
    settings["memory_in_adapters"] = {count: found.memory for count, found in at.items()}
    settings["equal_to_at"] = {count: found.difference for count, found in at.items()}
    return benchmark_result("aggregate", timing, equal_to, settings)


def _settings(size: AdapterSizes) -> dict[str, Any]:
    return {
        "layers": size.blocks * len(size.shapes),
        "shapes": {name: list(shape) for name, shape in size.shapes.items()},
        "sites": size.sites,
        "rank": size.rank,
        "threads": threads(),
        "ours": "svd of all layers, from files to the bytes that travel",
        "theirs": (
            "the dense weighted sum of products alone, without its SVD (FlexLoRA, arXiv "
            f"2402.11505); {threads()} layers of each shape measured, times the layers there are"
        ),
        "stacked": "as theirs, but each layer by one product of the stacked factors",
        "equal_to": f"dense SVD of a layer of each shape with a side of {CHECKED_UP_TO} at most",
        "equal_to_at": "the same, by sites",
        "memory": "tracemalloc's peak of svd, the result and one block's layers, by sites",
    }


def ratios(turns: Sequence[Turn]) -> dict[str, float]:
    """Return medians over the turns: of wall-clock time, and of CPU time (`_cpu`)."""
    found: dict[str, float] = {}
    for mark, of in (("", _wall), ("_cpu", _cpu)):
        found |= {
            f"over_fedavg{mark}": median(of(turn.svd) / of(turn.fedavg) for turn in turns),
            f"fedavg_over_read{mark}": median(of(turn.fedavg) / of(turn.read) for turn in turns),
            f"dense_over_ours{mark}": median(of(turn.dense) / of(turn.svd) for turn in turns),
            f"stacked_over_ours{mark}": median(of(turn.stacked) / of(turn.svd) for turn in turns),
            f"its_error_over_fedavg{mark}": median(
                of(turn.missed) / of(turn.fedavg) for turn in turns
            ),
            f"fedavg_seconds{mark}": median(of(turn.fedavg) for turn in turns),
            f"read_seconds{mark}": median(of(turn.read) for turn in turns),
        }
    return found


def _wall(cost: CallTime) -> float:
    return cost.wall


def _cpu(cost: CallTime) -> float:
    return cost.cpu


def threads() -> int:
    """Return how many layers are processed at a time, in every way."""
    return min(WORKERS, os.cpu_count() or 1)


def take_turn(files: Sequence[Path], sites: Sequence[SiteUpdate], size: AdapterSizes) -> Turn:
    """Time all ways, one after the other; `missed` is the time that `fedavg`'s error takes."""
    merged: list[Merged] = []

    def merging(rule: Rule) -> Callable[[], None]:
        return lambda: merged.append(merge(rule, sites, None, size.rank, Precision.BF16))

    return Turn(
        read=time_of(lambda: [len(file.read_bytes()) for file in files]),
        fedavg=time_of(merging(rule_named("fedavg"))),
        svd=time_of(merging(rule_named("svd"))),
        dense=dense_time(partial(dense_mean, sites), size),
        stacked=dense_time(partial(stacked_mean, sites), size),
        missed=time_of(lambda: merged[0].error),
    )


def time_of(work: Callable[[], object]) -> CallTime:
    """Time one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return CallTime(time.perf_counter() - wall, time.process_time() - cpu)


def dense_time(form: Callable[[str], Array], size: AdapterSizes) -> CallTime:
    """Time forming a dense mean product on each thread, and scale it to all layers."""
    wall = cpu = 0.0
    for shape, count in Counter(size.shapes.values()).items():
        name = next(name for name, found in size.shapes.items() if found == shape)
        modules = [module_name(number, name) for number in range(min(threads(), size.blocks))]
        with ThreadPoolExecutor(threads()) as pool:
            cost = time_of(partial(_each_dense, pool, form, modules))
        times = count * size.blocks / len(modules)
        wall, cpu = wall + times * cost.wall, cpu + times * cost.cpu
    return CallTime(wall, cpu)


def _each_dense(
    pool: ThreadPoolExecutor, form: Callable[[str], Array], modules: Sequence[str]
) -> None:
    for done in [pool.submit(form, module) for module in modules]:
        done.result()


def dense_mean(sites: Sequence[SiteUpdate], module: str) -> Array:
    """Form a layer's mean product as FlexLoRA does: full-size products, summed.

    arXiv 2402.11505. In float32, as its products are.
    """
    total = sum(site.examples for site in sites)
    pair = sites[0].adapter.pair(module)
    mean = np.zeros((pair.b.shape[0], pair.a.shape[1]), np.float32)
    for site in sites:
        pair = site.adapter.pair(module)
        mean += np.float32(site.adapter.scale * site.examples / total) * (pair.b @ pair.a)
    return mean


def stacked_mean(sites: Sequence[SiteUpdate], module: str) -> Array:
    """Form the same by one product of the stacked factors: the fastest dense way."""
    total = sum(site.examples for site in sites)
    pairs = [site.adapter.pair(module) for site in sites]
    shares = [np.float32(site.adapter.scale * site.examples / total) for site in sites]
    b = np.hstack([share * pair.b for share, pair in zip(shares, pairs, strict=True)])
    return b @ np.vstack([pair.a for pair in pairs])


def sites_in(folder: Path, size: AdapterSizes) -> list[Path]:
    """Write made-up updates: factors that drifted a third of their norm from a common start.

    Every block of a site has the numbers of its first.
    """
    random = np.random.default_rng(SEED)
    start = {
        name: Pair(_factor(random, size.rank, n), _factor(random, m, size.rank))
        for name, (m, n) in size.shapes.items()
    }
    files: list[Path] = []
    for number in range(size.sites):
        block = {name: _drifted(random, pair) for name, pair in start.items()}
        pairs = {
            module_name(number, name): pair
            for number in range(size.blocks)
            for name, pair in block.items()
        }
        files.append(folder / f"site{number:02}")
        files[-1].write_bytes(to_bytes(Adapter(pairs, scale=2.0), Precision.BF16))
    return files


def contribution(number: int, file: Path) -> SiteUpdate:
    """Return the update in a file of `sites_in`; the later sites have more examples."""
    return SiteUpdate(file.name, 100 + 50 * number, StoredAdapter.in_file(file, file.name))


def module_name(block: int, name: str) -> str:
    """Return a layer's path in the model."""
    return f"model.layers.{block}.{name}"


def _factor(random: np.random.Generator, rows: int, columns: int) -> Array:
    return random.standard_normal((rows, columns), dtype=np.float32)


def _drifted(random: np.random.Generator, pair: Pair) -> Pair:
    a, b = (
        factor + np.float32(0.3) * _factor(random, *factor.shape) for factor in (pair.a, pair.b)
    )
    return Pair(a, b)


def largest_difference(sites: Sequence[SiteUpdate], size: AdapterSizes) -> float:
    """Return the largest ||ours - theirs||_F / ||theirs||_F over the layers that are checked.

    Ours in float32: the rounding to the wire is no part of the comparison.
    """
    names = checked(size)
    own = [_only(site, names) for site in sites]
    found = merge(rule_named("svd"), own, None, size.rank, Precision.FP32)
    ours = from_bytes(found.blob, "ours")
    differences: list[float] = []
    for name in names:
        theirs = cut_dense(dense_mean(sites, name), size.rank)
        pair = ours.pair(name)
        product = ours.scale * pair.b @ pair.a
        differences.append(relative_difference(product, theirs))
    return max(differences)


def checked(size: AdapterSizes) -> list[str]:
    """Return a layer of each shape that is small enough for its dense SVD."""
    small = {shape: name for name, shape in size.shapes.items() if min(shape) <= CHECKED_UP_TO}
    return [module_name(0, name) for name in small.values()]


def _only(site: SiteUpdate, modules: Sequence[str]) -> SiteUpdate:
    pairs = {module: site.adapter.pair(module) for module in modules}
    return replace(site, adapter=Adapter(pairs, site.adapter.scale))


def cut_dense(matrix: Array, rank: int) -> Array:
    """Return the best matrix of this rank, by NumPy's plain full SVD."""
    left, strength, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * strength[:rank]) @ right[:rank]


def measured_at(size: AdapterSizes, sites: int) -> SvdAtScale:
    """Measure memory and exactness with so many sites, on the layers of one block.

    The other blocks' part of the result is added: only a few layers are processed at a time.
    """
    block = replace(size, blocks=1, sites=sites)
    with TemporaryDirectory() as folder:
        files = sites_in(Path(folder), block)
        updates = [contribution(number, file) for number, file in enumerate(files)]
        tracemalloc.start()
        try:
            merged = merge(rule_named("svd"), updates, None, size.rank, Precision.BF16)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        difference = largest_difference(updates, block)
    of_a_block = len(merged.blob)
    memory = (peak + (size.blocks - 1) * of_a_block) / (size.blocks * of_a_block)
    return SvdAtScale(memory, difference)
