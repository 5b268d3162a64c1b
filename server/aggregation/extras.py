"""How the arrays beside low-rank factors are averaged, and what a site may say of their rows.

An extra `x`, (rows, ...), is averaged by the sites' examples. With an extra `x.weight`, (rows,),
beside it each row has weights of its own: a site's examples of a class, say, where the rows are
classes. A row of which no site has any keeps the value that the round started from.
"""

from collections.abc import Iterator, Mapping
from math import prod, sqrt
from statistics import median
from typing import Final

import numpy as np

from common.adapter import EXTRA_PREFIX, AdapterSource, row_weights_of
from common.array_reader import in_memory
from common.errors import AggregationError
from common.linear_algebra.streaming_mean import mean, row_weighted_mean
from common.tensors import Array
from server.aggregation.round import ValidatedUpdates

#: A count that travels in bf16 is rounded to 8 significant bits, perhaps upwards.
_ROUNDED_UP: Final = 1 + 2.0**-8


def mean_extra(name: str, updates: ValidatedUpdates) -> Array:
    """Average an array, weighted by the sites' examples, or as a robust rule merges arrays."""
    values, rule = [site.adapter.reader(name) for site in updates.sites], updates.rule
    if rule.robust is not None and rule.robust.merge_arrays is not None:
        return rule.robust.merge_arrays(values, rule.liars)
    return mean(values, updates.weights)


def row_weighted_extra(weight: str, name: str, updates: ValidatedUpdates) -> Array:
    """Average an array row by row with the weights in the array `weight`.

    In a stage's first round the coordinator does not have what it started from: a row without
    weight is then the mean of what the sites sent back, which is that, since none changed it.

    Raises:
        AggregationError: a site's weight is negative or not finite.
    """
    for site in updates.sites:
        values = site.adapter.reader(weight).flat(0, site.adapter.layout()[weight][0])
        if not (np.isfinite(values) & (values >= 0)).all():
            raise AggregationError(
                f"site {site.site}: {weight}: found {values.min():g} among its numbers, expected "
                "0 or more"
            )
    if updates.previous is None:
        otherwise = in_memory(mean_extra(name, updates))
    else:
        otherwise = updates.previous.reader(name)
    rows = [site.adapter.reader(name) for site in updates.sites]
    return row_weighted_mean(
        rows, [site.adapter.reader(weight) for site in updates.sites], otherwise
    )


def rows_with_weight(weight: str, updates: ValidatedUpdates) -> Array:
    """Return 1 for each row that any site has had so far in the stage, else 0.

    The sum of the sites' counts would be released with the adapter, and nothing needs it.
    """
    sources = [site.adapter for site in updates.sites]
    known = sources if updates.previous is None else [*sources, updates.previous]
    rows = sources[0].layout()[weight][0]
    held = [one.reader(weight).flat(0, rows) > 0 for one in known]
    return np.logical_or.reduce(held).astype(np.float32)


def fault_of_row_weights(update: AdapterSource, examples: int) -> str | None:
    """Return which weight of a row is none that a site of so many examples may have, or None."""
    layout = update.layout()
    for name, weight in _row_weighted(update).items():
        found, rows = layout[weight], layout[name][:1]
        if found != rows or not rows:
            return f"{weight}: found the shape {found}, expected {rows}, one for each row of {name}"
        values = update.reader(weight).flat(0, rows[0])
        wrong = values[~((values >= 0) & (values <= examples * _ROUNDED_UP))]
        if len(wrong):
            return f"{weight}: found {wrong[0]:g}, expected 0 to the update's {examples} examples"
        if (total := float(values.sum(dtype=np.float64))) > examples * _ROUNDED_UP:
            return (
                f"{weight}: found {total:g} in all its rows, expected at most the update's "
                f"{examples} examples: each is of one row"
            )
    return None


def fault_of_rows(
    updates: Mapping[str, AdapterSource], ordered: AdapterSource | None, limit: float, step: float
) -> dict[str, str]:
    """Return, by site, a row that is more than `limit` times as long as is usual.

    The usual length is the median over all rows of the other sites and of what the round started
    from, without rows of zeros; or that of a row whose numbers are all `step`, where it is longer:
    one site's tiny rows do not make another's too long. A row's mean may be a single site's own,
    and the norm of the whole update would not show it. Only rows that the site gives a weight are
    looked at.
    """
    lengths = {site: dict(_row_lengths(update)) for site, update in updates.items()}
    before = {} if ordered is None else dict(_row_lengths(ordered))
    found: dict[str, str] = {}
    for site, update in updates.items():
        for name, weight in _row_weighted(update).items():
            others = [lengths[other].get(name) for other in updates if other != site]
            every = [one for one in (*others, before.get(name)) if one is not None]
            usual = [float(value) for one in every for value in one if value > 0]
            held = update.reader(weight).flat(0, len(lengths[site][name])) > 0
            longest = float(lengths[site][name][held].max(initial=0.0))
            width = prod(update.layout()[name][1:])
            known = max(median(usual), step * sqrt(width)) if usual else 0.0
            if usual and longest > limit * known:
                found[site] = (
                    f"{name}: found a row of length {longest:.3g}, expected at most {limit:g} "
                    f"times the {known:.3g} that is usual"
                )
    return found


def _row_lengths(adapter: AdapterSource) -> Iterator[tuple[str, Array]]:
    for name in _row_weighted(adapter):
        rows = adapter.extra(name.removeprefix(EXTRA_PREFIX))
        yield name, np.linalg.norm(rows.reshape(len(rows), -1).astype(np.float64), axis=1)


def _row_weighted(adapter: AdapterSource) -> dict[str, str]:
    return row_weights_of(f"{EXTRA_PREFIX}{name}" for name in adapter.extra_names)
