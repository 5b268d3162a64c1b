"""Updates of sites that have drifted from a common start, and what rules make of them, dense."""

# M outputs, N inputs of a layer, R rank
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from common.adapter import Adapter, AdapterSource, Pair, StoredAdapter, from_bytes, to_bytes
from common.plan_fields import Precision
from common.rules.fedsvd import RULE as FEDSVD
from common.rules.interface import Factor, Rule
from common.rules.registry import rules
from common.tensors import Array
from server.aggregation.round import SiteUpdate

SHAPES = {"q": (9, 12), "v": (7, 5)}
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=25, deadline=None)
every_rule = pytest.mark.parametrize("rule", rules().values(), ids=rules().keys())
#: All but those that make a basis of their own in a round: tests/unit/common/rules/test_rules.py.
every_rule_that_keeps_the_basis = pytest.mark.parametrize(
    "rule",
    [rule for rule in rules().values() if rule.merge is not FEDSVD.merge],
    ids=lambda rule: rule.name,
)


def adapter(
    random: np.random.Generator, rank: int = 3, scale: float = 2.0, extra: bool = True
) -> Adapter:
    pairs = {
        name: Pair(normal(random, rank, n), normal(random, m, rank))
        for name, (m, n) in SHAPES.items()
    }
    return Adapter(pairs, scale, {"prompt": normal(random, 2, 4)} if extra else {})


def normal(random: np.random.Generator, *shape: int) -> Array:
    return random.standard_normal(shape).astype(np.float32)


def drifted(random: np.random.Generator, start: Adapter, by: float) -> Adapter:
    """The start after a little training: every array moved by `by` of its spread."""

    def moved(value: Array) -> Array:
        return value + np.float32(by) * normal(random, *value.shape)

    pairs = {name: Pair(moved(p.a), moved(p.b)) for name, p in start.pairs.items()}
    return replace(start, pairs=pairs, extras={k: moved(v) for k, v in start.extras.items()})


def fitting(rule: Rule, seed: int, count: int) -> tuple[list[SiteUpdate], Adapter]:
    """Updates that the rule accepts, and the adapter that they started from."""
    random = np.random.default_rng(seed)
    start = adapter(random)
    sites: list[SiteUpdate] = []
    for number in range(count):
        after = drifted(random, start, 0.3)
        if rule.trained_factors(1) is Factor.B:
            pairs = {name: Pair(start.pairs[name].a, p.b) for name, p in after.pairs.items()}
            after = replace(after, pairs=pairs)
        sites.append(SiteUpdate(f"site{number}", int(random.integers(1, 500)), after))
    return sites, start


def loaded(source: AdapterSource) -> Adapter:
    return from_bytes(to_bytes(source), "a test")


def stored(
    folder: Path, sites: Sequence[SiteUpdate], wire: Precision = Precision.FP32
) -> list[SiteUpdate]:
    """The same contributions, their adapters in files."""
    return [replace(site, adapter=filed(folder / site.site, site.adapter, wire)) for site in sites]


def filed(file: Path, adapter: AdapterSource, wire: Precision = Precision.FP32) -> StoredAdapter:
    file.write_bytes(to_bytes(adapter, wire))
    return StoredAdapter.in_file(file, file.name)


def product(adapter: AdapterSource, name: str) -> Array:
    pair = adapter.pair(name)
    return adapter.scale * pair.b.astype(np.float64) @ pair.a.astype(np.float64)


def mean_product(sites: Sequence[SiteUpdate], name: str) -> Array:
    """The target of every rule, dense and in float64."""
    total = sum(site.examples for site in sites)
    dense = [site.examples / total * product(site.adapter, name) for site in sites]
    return np.sum(dense, axis=0)


def dense_error(sites: Sequence[SiteUpdate], result: Adapter) -> float:
    lost = sum(
        np.linalg.norm(mean_product(sites, name) - product(result, name)) ** 2 for name in SHAPES
    )
    whole = sum(np.linalg.norm(mean_product(sites, name)) ** 2 for name in SHAPES)
    return float(np.sqrt(lost / whole))


def cut_dense(matrix: Array, rank: int) -> Array:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def one_layer(a: Any, b: Any, scale: float = 1.0) -> Adapter:
    return Adapter({"q": Pair(np.array(a, np.float32), np.array(b, np.float32))}, scale)
