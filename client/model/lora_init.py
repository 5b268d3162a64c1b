"""Adapters that change nothing yet, drawn from a seed."""

from collections.abc import Mapping, Sequence

import numpy as np

from common.adapter import Adapter, AdapterSource, Array, Pair
from common.errors import PlanError
from common.identity import seed_for


def fresh_adapter(
    shapes: Mapping[str, tuple[int, int]], rank: int, scale: float, seed: int
) -> Adapter:
    """An adapter that changes nothing yet: A uniform as PEFT draws it, B zero.

    PEFT's Kaiming draw with a = sqrt(5) is uniform within 1 / sqrt(inputs). Every layer
    has a generator of its own, so its numbers do not depend on the layers beside it.
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
    """An adapter that changes nothing yet: A's rows are orthonormal, B zero.

    As many rows as there is room for are orthogonal to the A's of `earlier`, too.

    Raises:
        PlanError: the rank is larger than a layer has inputs.
    """
    pairs: dict[str, Pair] = {}
    for name, (outputs, inputs) in shapes.items():
        if rank > inputs:
            raise PlanError(f"rank: found {rank}, expected at most the {inputs} inputs of {name}")
        before = [adapter.pair(name).a for adapter in earlier if name in adapter.modules]
        a = _orthonormal_rows(_generator(seed, name), (rank, inputs), before)
        pairs[name] = Pair(a.astype(np.float32), np.zeros((outputs, rank), np.float32))
    return Adapter(pairs, scale)


def _orthonormal_rows(
    generator: np.random.Generator, shape: tuple[int, int], before: Sequence[Array]
) -> Array:
    rank, inputs = shape
    drawn_IR = generator.standard_normal((inputs, rank))
    if before:
        _, values, taken_KI = np.linalg.svd(np.concatenate(before).astype(float), False)
        # Directions below rounding are not taken: they are there for the stages to come.
        taken_KI = taken_KI[values > values.max(initial=0.0) * 1e-6]
        room = min(rank, inputs - len(taken_KI))
        for _ in range(2):  # once more removes what rounding left of the first time
            drawn_IR[:, :room] -= taken_KI.T @ (taken_KI @ drawn_IR[:, :room])
    # QR keeps the span of the leading columns, so the free directions stay free.
    return np.ascontiguousarray(np.linalg.qr(drawn_IR)[0].T)


def _generator(seed: int, layer: str) -> np.random.Generator:
    return np.random.default_rng(seed_for(seed, layer))
