"""Aggregate the updates of a round into one adapter; pure.

A site's adapter may be in memory or in a file (`AdapterSource`): only parts of the layers in
work are held of it, and the result's bits are the same. Neither the order in which updates
arrive nor the number of cores changes a bit either.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController  # pyright: ignore[reportMissingTypeStubs]

from common.adapter import (
    AdapterSource,
    name_of_a,
    name_of_b,
    not_finite,
    row_weights_of,
    writer,
)
from common.array_reader import read_all
from common.errors import AggregationError
from common.plan_fields import Precision
from common.rules.interface import FindError, LayerError, MergedLayer, Rule
from common.tensors import Array
from server.aggregation.extras import mean_extra, row_weighted_extra, rows_with_weight
from server.aggregation.round import SiteUpdate as SiteUpdate
from server.aggregation.round import ValidatedUpdates, validated

#: Layers in work at a time, each on one thread. More would hold more memory.
WORKERS = 2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Merged:
    """The round's adapter as it travels, safetensors."""

    blob: bytes
    _updates: ValidatedUpdates
    _errors: Sequence[LayerError | FindError]

    @property
    def error(self) -> float:
        """The rule's error, without the rounding to the wire's precision.

        ||mean product - adapter's product||_F / ||mean product||_F over all layers together: 0.0
        where the rule is exact, 1.0 where the mean itself is zero and missed.

        Where the rule does not know it from merging, the updates are read again now, which
        may cost more than merging them.

        Raises:
            AggregationError: the updates are too large.
            BankError: an update's file can't be read any more.
        """
        return _relative_error(self._errors, self._updates)


def merge(
    rule: Rule,
    updates: Sequence[SiteUpdate],
    previous: AdapterSource | None,
    rank: int,
    wire: Precision,
) -> Merged:
    """Merge the sites' adapters into one, weighted by examples.

    It takes the memory of the result's bytes and of some layers' parts.

    Args:
        rule: how layers are merged, and whether ranks and scales may differ between sites.
        updates: one per site, in any order.
        previous: what the sites started from, None in a stage's first round.
        rank: the plan's rank, that of the result.
        wire: the precision in which the result travels.

    Raises:
        AggregationError: the updates can't be merged; the message names the site.
        BankError: an update's file can't be read any more.
    """
    checked = validated(rule, updates, previous, rank)
    blob = writer(checked.layout(), checked.scale, wire)
    errors = _merge_arrays(checked, blob.put)
    return Merged(blob.blob(), checked, errors)


def _merge_arrays(
    updates: ValidatedUpdates, put: Callable[[str, Array], None]
) -> list[LayerError | FindError]:
    """Call `put` with every array of the result and its PEFT name, from several threads.

    Returns the layers' errors, in the order of the modules.
    """

    def merge_one(module: str) -> LayerError | FindError:
        merged = _merged_layer(module, updates)
        put(name_of_a(module), merged.pair.a)
        put(name_of_b(module), merged.pair.b)
        return merged.error

    errors = list(in_threads(merge_one, updates.modules))
    weights = row_weights_of(updates.extras)
    for name in updates.extras:
        if name in weights.values():
            continue
        if name in weights:
            put(name, checked_mean(name, updates, partial(row_weighted_extra, weights[name])))
            put(weights[name], rows_with_weight(weights[name], updates))
        else:
            put(name, checked_mean(name, updates, mean_extra))
    return errors


def _merged_layer(module: str, updates: ValidatedUpdates) -> MergedLayer:
    """Merge a layer and check that it is finite.

    A sum keeps what is not finite, and to check every number of every site costs as much as
    to average it: so the sites are checked only where the result is not finite.
    """
    merged = None
    try:
        with np.errstate(all="ignore"):
            merged = updates.rule.merge(updates.layer(module))
    except AggregationError:
        _check_finite(updates, name_of_a(module), name_of_b(module))
        raise
    except np.linalg.LinAlgError:
        pass
    if merged is None or not all(np.isfinite(x).all() for x in (merged.pair.a, merged.pair.b)):
        _check_finite(updates, name_of_a(module), name_of_b(module))
        raise AggregationError(f"{module}: found updates too large to be merged")
    return merged


def checked_mean(
    name: str, updates: ValidatedUpdates, mean_of: Callable[[str, ValidatedUpdates], Array]
) -> Array:
    """Average an array that is no factor of a layer, and check it as `_merged_layer` does."""
    with np.errstate(all="ignore"):
        value = mean_of(name, updates)
    if not np.isfinite(value).all():
        _check_finite(updates, name)
        raise AggregationError(f"{name}: found updates too large to be merged")
    return value


def _check_finite(updates: ValidatedUpdates, *names: str) -> None:
    for name in names:
        for site in updates.sites:
            if (fault := not_finite(name, read_all(site.adapter.reader(name)))) is not None:
                raise AggregationError(f"site {site.site}: {fault}")


def _relative_error(errors: Sequence[LayerError | FindError], updates: ValidatedUpdates) -> float:
    """Return the error over all layers; those that merging did not give are found now."""

    def find(found: tuple[str, LayerError | FindError]) -> LayerError:
        module, error = found
        if isinstance(error, LayerError):
            return error
        with np.errstate(all="ignore"):
            return error(updates.layer(module))

    layers = list(in_threads(find, list(zip(updates.modules, errors, strict=True))))
    discarded = sum(layer.discarded for layer in layers)
    energy = sum(layer.energy for layer in layers)
    if not math.isfinite(discarded + energy):
        raise AggregationError("found updates too large to be merged")
    if discarded == 0.0:
        return 0.0
    return math.sqrt(discarded / energy) if energy > 0.0 else 1.0


S = TypeVar("S")


@cache
def _thread_pools() -> ThreadpoolController:
    """Return the libraries' thread pools, looked for once: that takes longer than a small layer."""
    return ThreadpoolController()


def in_threads(work: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
    """Do `work` on every item, some of them at a time; yields in the order of the items."""
    # One thread a layer: how many threads BLAS splits a product over changes its last bits,
    # and small QRs of several threads were up to a hundred times slower on a busy machine.
    workers = min(WORKERS, os.cpu_count() or 1)
    waiting: deque[Future[T]] = deque()
    one_thread = _thread_pools().limit(  # pyright: ignore[reportUnknownMemberType]
        limits=1, user_api="blas"
    )
    with one_thread, ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            # Few are queued, so that a failure of the first layer is raised before the last runs.
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
