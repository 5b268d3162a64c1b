"""Initial adapters, drawn from a seed: B is zero, so they do not change the model yet."""

from collections.abc import Mapping, Sequence

import numpy as np

from common.adapter import Adapter, AdapterSource, Pair
from common.errors import PlanError
from common.identity import seed_for
from common.tensors import Array


def kaiming_adapter(
    shapes: Mapping[str, tuple[int, int]], rank: int, scale: float, seed: int
) -> Adapter:
    """Return an adapter with A drawn as PEFT does (Kaiming uniform) and B zero.

    PEFT's Kaiming draw with a = sqrt(5) is uniform within 1 / sqrt(inputs). Every layer
    has a generator of its own, so its values do not depend on which other layers there are.
    """
    pairs: dict[str, Pair] = {}
    for name, (outputs, inputs) in shapes.items():
        bound = 1 / np.sqrt(inputs)
        drawn = _generator(seed, name).uniform(-bound, bound, (rank, inputs))
        pairs[name] = Pair(drawn.astype(np.float32), np.zeros((outputs, rank), np.float32))
    return Adapter(pairs, scale)


def orthonormal_adapter(
    shapes: Mapping[str, tuple[int, int]],
    rank: int,
    scale: float,
    seed: int,
    earlier: Sequence[AdapterSource] = (),
) -> Adapter:
    """Return an adapter with orthonormal rows of A and B zero.

    As many rows as possible are also orthogonal to the A's of `earlier`.

    Raises:
        PlanError: the rank is larger than a layer has inputs.
    """
    pairs: dict[str, Pair] = {}
    for name, (outputs, inputs) in shapes.items():
        if rank > inputs:
            raise PlanError(f"rank: found {rank}, expected at most the {inputs} inputs of {name}")
        earlier_as = [adapter.pair(name).a for adapter in earlier if name in adapter.modules]
        a = _orthonormal_rows(_generator(seed, name), (rank, inputs), earlier_as)
        pairs[name] = Pair(a.astype(np.float32), np.zeros((outputs, rank), np.float32))
    return Adapter(pairs, scale)


def _orthonormal_rows(
    generator: np.random.Generator, shape: tuple[int, int], earlier_as: Sequence[Array]
) -> Array:
    rank, inputs = shape
    drawn_IR = generator.standard_normal((inputs, rank))
    if earlier_as:
        _, values, taken_KI = np.linalg.svd(np.concatenate(earlier_as).astype(float), False)
        # Directions below rounding count as free, for this stage and later ones.
        taken_KI = taken_KI[values > values.max(initial=0.0) * 1e-6]
        room = min(rank, inputs - len(taken_KI))
        for _ in range(2):  # Gram-Schmidt twice: the second pass removes the first one's rounding
            drawn_IR[:, :room] -= taken_KI.T @ (taken_KI @ drawn_IR[:, :room])
    # QR keeps the span of the leading columns, so the free directions stay free.
    return np.ascontiguousarray(np.linalg.qr(drawn_IR)[0].T)


def _generator(seed: int, layer: str) -> np.random.Generator:
    return np.random.default_rng(seed_for(seed, layer))
