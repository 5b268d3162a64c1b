"""Gradient-based initialization: full weight gradients and their leading singular vectors.

Legend of shapes: N tokens, I inputs, O outputs, R rank.
"""
# torch leaves parts of its interface untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from client.model.lora import AdaptedLayers
from common.adapter import Adapter, Pair
from common.errors import PlanError
from common.identity import seed_for

#: The mean squared norm of a row of an initial A: I entries, uniform within 1 / sqrt(I).
_ROW_SQUARED: Final = 1 / 3
#: Oversampling and power iterations of the range finder (Halko et al., arXiv 0909.4061).
_OVERSAMPLING, _ITERATIONS = 16, 6


class WeightGradients:
    """Sums of the gradients dL/dW (O, I) of the adapted layers over backward passes.

    Hooks compute them from a layer's inputs and its output gradients, so the weights
    themselves need no gradient. An adapter must be attached and trained, so that there is a
    backward pass.
    """

    def __init__(self, adapted: AdaptedLayers) -> None:
        self._sums: dict[str, Tensor] = {}
        self._handles = [
            layer.register_forward_hook(partial(self._on_forward, name))
            for name, layer in adapted.layers.items()
        ]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def init_from_gradients(self, adapter: Adapter, seed: int) -> Adapter:
        """Return `adapter` with A's rows set to the gradients' leading right singular vectors."""
        pairs = dict(adapter.pairs)
        for name, gradient in self._sums.items():
            rank = len(pairs[name].a)
            rows = leading_right_singular_vectors(gradient, rank, seed_for(seed, name))
            scaled = rows.cpu().double().numpy() * np.sqrt(_ROW_SQUARED)
            pairs[name] = Pair(scaled.astype(np.float32), pairs[name].b)
        return Adapter(pairs, adapter.scale)

    def _on_forward(self, name: str, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        x_NI = inputs[0].detach().flatten(0, -2)

        def add(dy: Tensor) -> None:
            gradient = dy.flatten(0, -2).float().T @ x_NI.float()
            self._sums[name] = self._sums[name] + gradient if name in self._sums else gradient

        output.register_hook(add)


def leading_right_singular_vectors(matrix_OI: Tensor, rank: int, seed: int) -> Tensor:
    """Return the first `rank` right singular vectors as rows (R, I), by a seeded range finder.

    If the matrix has a lower rank, the remaining rows are orthonormal to the others all the
    same.

    Raises:
        PlanError: the rank is larger than the number of inputs.
    """
    outputs, inputs = matrix_OI.shape
    if rank > inputs:
        raise PlanError(f"rank: found {rank}, expected at most the {inputs} inputs of a layer")
    generator = torch.Generator().manual_seed(seed)
    width = min(rank + _OVERSAMPLING, max(rank, outputs), inputs)
    matrix = matrix_OI.double()
    probe = torch.randn(matrix.shape[1], width, generator=generator, dtype=torch.float64)
    basis_IW = torch.linalg.qr(probe.to(matrix.device)).Q
    for _ in range(_ITERATIONS):
        basis_IW = torch.linalg.qr(matrix.T @ (matrix @ basis_IW)).Q
    inner = torch.linalg.svd(matrix @ basis_IW, full_matrices=outputs < width).Vh
    rows: Tensor = (inner @ basis_IW.T)[:rank]
    return rows
