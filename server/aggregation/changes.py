"""How far each update of a round changes the model, and how alike the changes are.

A change is of all layers' products scale * B @ A together, and of the arrays beside them, against
what the round began with. In a stage's first round the coordinator does not have that; a LoRA's
first product is zero. Of the products, and not of the factors, since (B R)(R^-1 A) is one change
with many factors.
"""

# N updates, and what the round began with; R ranks of a layer's factors
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from common.adapter import EXTRA_PREFIX, AdapterSource, row_weights_of
from common.array_reader import ArrayReader, read_all
from common.identity import seed_for
from common.linear_algebra.layer_factors import SiteFactors, has_many_ranks, stacked
from common.linear_algebra.low_rank import gram
from common.tensors import Array
from server.aggregation.aggregate import in_threads
from server.aggregation.round import factors_of

#: Rows and columns of a layer's random sketch, where its exact products would take too long.
SKETCH = 32
#: Numbers of each update that are read at a time.
_READ = 2**16


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """The changes of a round's N updates.

    Attributes:
        products: inner products <D_i, D_j> of the changes, (N, N).
        results: the same of what the updates are, not of what they change.
        a: Frobenius norm of each update's change of all its factors A, (N,); where it is not
            known what the round began with, of the factors themselves.
        b: the same of B.
    """

    products: Array
    results: Array
    a: Array
    b: Array

    @property
    def norms(self) -> Array:
        """Frobenius norm of each change, (N,)."""
        return np.sqrt(np.maximum(np.diag(self.products), 0.0))

    @property
    def cosines(self) -> Array:
        """Cosines between the changes, (N, N); 0 where one of them is 0."""
        return _cosines(self.products)

    @property
    def cosines_of_results(self) -> Array:
        """The same between the updates themselves, (N, N)."""
        return _cosines(self.results)

    @property
    def squared_distances(self) -> Array:
        """|D_i - D_j|^2, (N, N)."""
        squares = np.diag(self.products)
        return np.maximum(squares[:, None] + squares - 2 * self.products, 0.0)

    def cosines_to_others(self) -> list[float | None]:
        """Return each change's cosine to the others' mean direction; None where there is none.

        The others' changes are brought to length 1, so that a long one does not decide.
        """
        cosines = self.cosines
        found: list[float | None] = []
        for place in range(len(cosines)):
            others = [other for other in range(len(cosines)) if other != place]
            size = math.sqrt(max(0.0, float(cosines[np.ix_(others, others)].sum())))
            total = float(cosines[place, others].sum())
            found.append(max(-1.0, min(1.0, total / size)) if size > 0 else None)
        return found


def measure(updates: Sequence[AdapterSource], start: AdapterSource | None, seed: int) -> Changes:
    """Measure the changes of updates that have the same arrays.

    Where the ranks of all updates together are many, the inner products of a layer are estimated:
    E <L D_i R, L D_j R> = <D_i, D_j> for random L and R (arXiv 1206.6457, section 2).

    Args:
        start: what the round began with; None where that is not known.
        seed: of the sketch; nobody who sends an update should know it before.
    """
    parties = [*updates, *([] if start is None else [start])]
    of_layer = partial(_of_layer, parties=parties, has_start=start is not None, seed=seed)
    count = len(parties)
    results, a, b = np.zeros((count, count)), np.zeros(len(updates)), np.zeros(len(updates))
    for layer in in_threads(of_layer, updates[0].modules):
        results += layer.products
        a += layer.a
        b += layer.b
    names = [f"{EXTRA_PREFIX}{name}" for name in updates[0].extra_names]
    weights = set(row_weights_of(names).values())
    for name in names:
        if name not in weights:
            results += _inner_products([one.reader(name) for one in parties])
    products = results
    if start is not None:
        # D_i = P_i - P of the start, which is the last.
        differences = np.hstack([np.eye(len(updates)), -np.ones((len(updates), 1))])
        products = differences @ results @ differences.T
    own = slice(0, len(updates))
    return Changes(products, results[own, own], np.sqrt(a), np.sqrt(b))


def _cosines(products: Array) -> Array:
    norms = np.sqrt(np.maximum(np.diag(products), 0.0))
    sizes = np.outer(norms, norms)
    found = np.divide(products, sizes, out=np.zeros_like(sizes), where=sizes > 0)
    return np.clip(found, -1.0, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """A layer's inner products of all parties, and the squared changes of its factors."""

    products: Array
    a: Array
    b: Array


def _of_layer(module: str, parties: Sequence[AdapterSource], has_start: bool, seed: int) -> _Layer:
    """Return a layer's inner products, of all parties, and the squared changes of its factors."""
    sites = [SiteFactors("", 1.0, one.scale, factors_of(module, one)) for one in parties]
    if has_many_ranks(sites):
        return _sketched(module, sites, has_start, seed)
    b, a = stacked(sites)
    gram_b, gram_a = gram(b), gram(a)
    products = _blocks(gram_b * gram_a, sites).sum(axis=(1, 3))
    of_a, of_b = (np.einsum("irjr->ij", _blocks(one, sites)) for one in (gram_a, gram_b))
    return _Layer(
        products, _squared(of_a, has_start), _squared(of_b, has_start) / sites[0].scale ** 2
    )


def _blocks(matrix_RR: Array, sites: Sequence[SiteFactors]) -> Array:
    """Split rows and columns by the site that they are of."""
    rank = sites[0].rank
    return matrix_RR.reshape(len(sites), rank, len(sites), rank)


def _squared(products: Array, has_start: bool) -> Array:
    """Return squared norms: of the differences from the last, or of all of them."""
    squares = np.diag(products)
    if has_start:
        squares = (squares + squares[-1] - 2 * products[-1])[:-1]
    return np.maximum(squares, 0.0)


def _sketched(module: str, sites: Sequence[SiteFactors], has_start: bool, seed: int) -> _Layer:
    random = np.random.default_rng(seed_for(seed, module))
    outputs, inputs = sites[0].factors.b.shape[0], sites[0].factors.a.shape[1]
    left = random.standard_normal((SKETCH, outputs)) / math.sqrt(SKETCH)
    right = random.standard_normal((inputs, SKETCH)) / math.sqrt(SKETCH)
    rows = np.empty((len(sites), SKETCH * SKETCH))
    start = sites[-1] if has_start else None
    a, b = np.zeros(len(sites) - has_start), np.zeros(len(sites) - has_start)
    for place, site in enumerate(sites):
        one_b = read_all(site.factors.b).astype(np.float64)
        one_a = read_all(site.factors.a).astype(np.float64)
        rows[place] = (site.scale * (left @ one_b) @ (one_a @ right)).ravel()
        if site is not start:
            a[place] = _squared_difference(one_a, None if start is None else start.factors.a)
            b[place] = _squared_difference(one_b, None if start is None else start.factors.b)
    return _Layer(rows @ rows.T, a, b)


def _squared_difference(value: Array, start: ArrayReader | None) -> float:
    difference = value if start is None else value - read_all(start)
    return float(np.vdot(difference, difference))


def _inner_products(values: Sequence[ArrayReader]) -> Array:
    size = math.prod(values[0].shape)
    total = np.zeros((len(values), len(values)))
    for begin, end in pairwise([*range(0, size, _READ), size]):
        part = np.stack([value.flat(begin, end) for value in values]).astype(np.float64)
        total += part @ part.T
    return total
