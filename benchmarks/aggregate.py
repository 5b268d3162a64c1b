"""Aggregation by `svd`: ours in rank space against the plain way through dense matrices."""

import numpy as np
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]

from benchmarks.compare import Comparison, compare, comparison
from common.adapter import Adapter, AdapterSource, Array, Pair
from common.plan import Rule
from server.aggregate import Contribution, aggregate

SITES = 8
RANK = 16
#: (outputs, inputs) of the layers: a Mistral-like block at a quarter of the 7B's width, since
#: the plain way's SVD of one layer of 4096 x 4096 alone takes ten seconds on two cores.
SHAPES = {"q_proj": (1024, 1024), "k_proj": (256, 1024), "up_proj": (1792, 1024)}
SEED = 20250811


def run(repeats: int = 5) -> Comparison:
    """Time both ways on the same updates; under a minute with five repeats.

    Both run on one thread, as ours always does: on a busy machine NumPy's own threads
    would slow the plain way down tenfold. Settings add `over_fedavg`, our `svd`'s time
    over that of our `fedavg`.
    """
    contributions = sites_of(SHAPES, SITES, RANK)
    with threadpool_limits(1, "blas"):
        timing = compare(
            lambda: aggregate(Rule.SVD, contributions, None, RANK).adapter,
            lambda: dense_svd(contributions, RANK),
            repeats,
        )
        against_fedavg = compare(
            lambda: aggregate(Rule.SVD, contributions, None, RANK),
            lambda: aggregate(Rule.FEDAVG, contributions, None, RANK),
            repeats,
        )
    settings = {
        "shapes": {name: list(shape) for name, shape in SHAPES.items()},
        "sites": SITES,
        "rank": RANK,
        "threads": 1,
        "over_fedavg": 1 / against_fedavg.ratio,
        "theirs": "dense weighted sum, numpy SVD, truncation (FlexLoRA, arXiv 2402.11505)",
    }
    equal_to = largest_difference(timing.our_result, timing.their_result)
    return comparison("aggregate", timing, equal_to, settings)


def sites_of(shapes: dict[str, tuple[int, int]], sites: int, rank: int) -> list[Contribution]:
    """Made-up updates: factors that drifted a third of their norm from a common start."""
    random = np.random.default_rng(SEED)

    def factor(rows: int, columns: int) -> Array:
        return random.standard_normal((rows, columns), dtype=np.float32)

    start = {name: Pair(factor(rank, n), factor(m, rank)) for name, (m, n) in shapes.items()}
    return [
        Contribution(
            site=f"site{number}",
            examples=100 + 50 * number,
            adapter=Adapter(
                {
                    name: Pair(
                        pair.a + np.float32(0.3) * factor(*pair.a.shape),
                        pair.b + np.float32(0.3) * factor(*pair.b.shape),
                    )
                    for name, pair in start.items()
                },
                scale=2.0,
            ),
        )
        for number in range(sites)
    ]


def dense_svd(contributions: list[Contribution], rank: int) -> Adapter:
    """What FlexLoRA does (arXiv 2402.11505): sum the full-size products, SVD, truncate.

    In float32, as its products are; NumPy's SVD is the plain full one.
    """
    total = sum(contribution.examples for contribution in contributions)
    first = contributions[0].adapter
    pairs: dict[str, Pair] = {}
    for name in first.modules:
        pair = first.pair(name)
        mean = np.zeros((pair.b.shape[0], pair.a.shape[1]), np.float32)
        for contribution in contributions:
            adapter, share = contribution.adapter, contribution.examples / total
            pair = adapter.pair(name)
            mean += np.float32(share * adapter.scale / first.scale) * (pair.b @ pair.a)
        left, strength, right = np.linalg.svd(mean, full_matrices=False)
        root = np.sqrt(strength[:rank])
        pairs[name] = Pair(root[:, None] * right[:rank], left[:, :rank] * root)
    return Adapter(pairs, first.scale)


def largest_difference(ours: AdapterSource, theirs: AdapterSource) -> float:
    """Over the layers, the largest ||our product - their product||_F / ||their product||_F."""
    differences: list[float] = []
    for name in theirs.modules:
        expected, found = (product(adapter, name) for adapter in (theirs, ours))
        differences.append(float(np.linalg.norm(found - expected) / np.linalg.norm(expected)))
    return max(differences)


def product(adapter: AdapterSource, name: str) -> Array:
    """What the adapter adds to a layer, dense."""
    pair = adapter.pair(name)
    return adapter.scale * pair.b.astype(np.float64) @ pair.a.astype(np.float64)
