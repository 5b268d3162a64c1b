"""Aggregate the updates of a round into one adapter; pure.

A site's adapter may be in memory or in a file (`AdapterSource`): no more of it is held than
a part of the layers in work, and the result's bits are the same. Neither the order in which
updates arrive nor the number of cores changes a bit either.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]

from common.adapter import (
    EXTRA_PREFIX,
    Adapter,
    AdapterSource,
    Array,
    from_arrays,
    name_of_a,
    name_of_b,
    not_finite,
    writer,
)
from common.errors import AggregationError
from common.numbers import whole
from common.plan import Precision, Rule
from server.aggregation.layer_factors import Factors, Term
from server.aggregation.low_rank import squared_norm, tall
from server.aggregation.round import Contribution as Contribution
from server.aggregation.round import Round, fitted
from server.aggregation.rules import Layer, MergedLayer, Missed, aggregate_pair, missed_by_fedavg
from server.aggregation.streaming_mean import mean

#: Layers in work at a time, each on one thread. More would hold more memory.
WORKERS = 2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The round's adapter.

    `error` is ||mean product - adapter's product||_F / ||mean product||_F over all layers
    together: 0.0 where the rule is exact, 1.0 where the mean itself is zero and missed.
    """

    adapter: Adapter
    error: float


@dataclass(frozen=True, slots=True)
class Merged:
    """The round's adapter as it travels, safetensors."""

    blob: bytes
    _round: Round
    _missed: Sequence[Missed | None]

    @property
    def error(self) -> float:
        """As in `Aggregate`: what the rule misses, without the rounding to the wire's precision.

        Under `fedavg` it is found when it is asked for: the updates are read again, and it
        costs more than averaging them.

        Raises:
            AggregationError: the updates are too large.
            BankError: an update's file can't be read any more.
        """
        return _relative(_found(self._missed, self._round))


def aggregate(
    rule: Rule,
    contributions: Sequence[Contribution],
    previous: AdapterSource | None,
    rank: int,
) -> Aggregate:
    """One adapter of rank `rank` out of the sites' adapters, weighted by examples.

    Args:
        rule: how; all but `svd` need equal names, shapes and scales at every site.
        contributions: one per site; their order is of no consequence.
        previous: what the sites started from, None in a stage's first round.
        rank: the plan's rank. Under `svd` sites may have others.

    Raises:
        AggregationError: the updates don't fit together; the message names the site.
        BankError: an update's file can't be read any more.
    """
    fitting = fitted(rule, contributions, previous, rank)
    named: dict[str, Array] = {}
    missed = _each_array(fitting, named.__setitem__)
    error = _relative(_found(missed, fitting))
    ordered = {name: named[name] for name in fitting.layout()}
    return Aggregate(from_arrays(ordered, fitting.scale, "the aggregate"), error)


def merge(
    rule: Rule,
    contributions: Sequence[Contribution],
    previous: AdapterSource | None,
    rank: int,
    wire: Precision,
) -> Merged:
    """`to_bytes` of what `aggregate` gives, in memory of these bytes and parts of some layers.

    Arguments and errors as in `aggregate`.
    """
    fitting = fitted(rule, contributions, previous, rank)
    blob = writer(fitting.layout(), fitting.scale, wire)
    missed = _each_array(fitting, blob.put)
    return Merged(blob.blob(), fitting, missed)


def norm(adapter: AdapterSource) -> float:
    """Frobenius norm of all that the adapter changes: sqrt(sum |scale b @ a|^2 + |extras|^2).

    Holds one layer. nan or infinite where a value is not finite.
    """
    total = 0.0
    with np.errstate(all="ignore"), threadpool_limits(1, "blas"):
        for module in adapter.modules:
            pair = adapter.pair(module)
            total += squared_norm(tall(pair.b), tall(pair.a.T))
        total *= adapter.scale * adapter.scale
        for name in adapter.extra_names:
            total += float(np.sum(np.square(adapter.extra(name), dtype=np.float64)))
    return math.sqrt(total)


def _each_array(fitting: Round, put: Callable[[str, Array], None]) -> list[Missed | None]:
    """Every array of the result is put under its PEFT name, in any order, by several threads.

    Returns what the layers miss.
    """

    def work(layer: Layer) -> Missed | None:
        merged = _merged_layer(layer, fitting)
        put(name_of_a(layer.name), merged.pair.a)
        put(name_of_b(layer.name), merged.pair.b)
        return merged.missed

    first = fitting.sites[0].adapter
    missed = list(_each_layer(work, fitting))
    for name in (f"{EXTRA_PREFIX}{name}" for name in first.extra_names):
        put(name, _merged_extra(name, fitting))
    return missed


def _merged_extra(name: str, fitting: Round) -> Array:
    """The mean of an array beside the layers; that it is finite is told as in `_merged_layer`."""
    with np.errstate(all="ignore"):
        value = mean([site.adapter.numbers(name) for site in fitting.sites], fitting.weights)
    if not np.isfinite(value).all():
        _check_finite(name, fitting.sites)
        raise AggregationError(f"{name}: found updates too large to be put together")
    return value


def _each_layer(work: Callable[[Layer], T], fitting: Round) -> Iterator[T]:
    """`work` done on every layer, in the order of the modules, some of them at a time."""
    # One thread a layer: how many threads BLAS splits a product over changes its last bits,
    # and small QRs of several threads were up to a hundred times slower on a busy machine.
    workers = min(WORKERS, os.cpu_count() or 1)
    waiting: deque[Future[T]] = deque()
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
        for module in fitting.sites[0].adapter.modules:
            waiting.append(pool.submit(work, _layer(module, fitting)))
            # What is not begun holds nothing; but a failure of the first is heard before the last.
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _found(missed: Sequence[Missed | None], fitting: Round) -> Sequence[Missed]:
    """What the layers miss, also under the rule that does not find it on its way."""
    found = [one for one in missed if one is not None]
    if len(found) == len(missed):
        return found
    return list(_each_layer(_missed_by_fedavg, fitting))


def _missed_by_fedavg(layer: Layer) -> Missed:
    with np.errstate(all="ignore"):
        return missed_by_fedavg(layer)


def _relative(missed: Sequence[Missed]) -> float:
    lost, energy = sum(one.lost for one in missed), sum(one.energy for one in missed)
    if not math.isfinite(lost + energy):
        raise AggregationError("found updates too large to be put together")
    if lost == 0.0:
        return 0.0
    return math.sqrt(lost / energy) if energy > 0.0 else 1.0


def _merged_layer(layer: Layer, fitting: Round) -> MergedLayer:
    """The layer's new factors.

    That a site's numbers are finite is told by the result, and only if not, who has others: a
    sum keeps what is not finite, and to look at every number costs as much as to average it.
    """
    try:
        with np.errstate(all="ignore"):
            merged = aggregate_pair(fitting.rule, layer, fitting.rank, fitting.scale)
    except AggregationError:
        _check_layer(layer.name, fitting.sites)
        raise
    except np.linalg.LinAlgError:
        merged = None
    if merged is None or not all(np.isfinite(x).all() for x in (merged.pair.a, merged.pair.b)):
        _check_layer(layer.name, fitting.sites)
        raise AggregationError(f"{layer.name}: found updates too large to be put together")
    return merged


def _layer(module: str, fitting: Round) -> Layer:
    """One layer of every site and of what they started from, to be read."""
    terms = tuple(
        Term(site.site, weight, site.adapter.scale, _factors(module, site.adapter))
        for site, weight in zip(fitting.sites, fitting.weights, strict=True)
    )
    previous = fitting.previous
    return Layer(module, terms, None if previous is None else _factors(module, previous))


def _factors(module: str, adapter: AdapterSource) -> Factors:
    return Factors(adapter.numbers(name_of_a(module)), adapter.numbers(name_of_b(module)))


def _check_layer(module: str, sites: Sequence[Contribution]) -> None:
    _check_finite(name_of_a(module), sites)
    _check_finite(name_of_b(module), sites)


def _check_finite(name: str, sites: Sequence[Contribution]) -> None:
    for site in sites:
        if (fault := not_finite(name, whole(site.adapter.numbers(name)))) is not None:
            raise AggregationError(f"site {site.site}: {fault}")
