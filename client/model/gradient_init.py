"""The gradient of a loss by every adapted layer's whole weight, and the rows that it spans.

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

from client.model.lora import Adapted
from common.adapter import Adapter, Pair
from common.errors import PlanError
from common.identity import seed_for

#: The mean squared norm of a row of a fresh A: I entries, uniform within 1 / sqrt(I).
_ROW_SQUARED: Final = 1 / 3
#: Columns beside the rank, and passes, of the range finder (Halko et al., arXiv 0909.4061).
_SPARE, _PASSES = 16, 6


class WeightGradients:
    """Listens to the adapted layers and sums dL/dW (O, I) over every backward pass.

    The weights themselves need no gradient: it is the product of what goes into a layer
    and what comes back to its output. The layers' pairs have to learn.
    """

    def __init__(self, adapted: Adapted) -> None:
        self._sums: dict[str, Tensor] = {}
        self._handles = [
            layer.register_forward_hook(partial(self._heard, name))
            for name, layer in adapted.layers.items()
        ]

    def close(self) -> None:
        """The layers are not listened to any more."""
        for handle in self._handles:
            handle.remove()

    def spanned(self, adapter: Adapter, seed: int) -> Adapter:
        """`adapter` with the gradients' leading right singular vectors as rows of its A's."""
        pairs = dict(adapter.pairs)
        for name, gradient in self._sums.items():
            rank = len(pairs[name].a)
            rows = leading_rows(gradient, rank, seed_for(seed, name))
            scaled = rows.cpu().double().numpy() * np.sqrt(_ROW_SQUARED)
            pairs[name] = Pair(scaled.astype(np.float32), pairs[name].b)
        return Adapter(pairs, adapter.scale)

    def _heard(self, name: str, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        x_NI = inputs[0].detach().flatten(0, -2)

        def add(dy: Tensor) -> None:
            gradient = dy.flatten(0, -2).float().T @ x_NI.float()
            self._sums[name] = self._sums[name] + gradient if name in self._sums else gradient

        output.register_hook(add)


def leading_rows(matrix_OI: Tensor, rank: int, seed: int) -> Tensor:
    """The first `rank` right singular vectors as rows (R, I), by a seeded range finder.

    Where the matrix has fewer directions, the others are orthonormal to them all the same.

    Raises:
        PlanError: there is no room for so many: the rank is larger than the inputs are.
    """
    outputs, inputs = matrix_OI.shape
    if rank > inputs:
        raise PlanError(f"rank: found {rank}, expected at most the {inputs} inputs of a layer")
    generator = torch.Generator().manual_seed(seed)
    width = min(rank + _SPARE, max(rank, outputs), inputs)
    matrix = matrix_OI.double()
    probe = torch.randn(matrix.shape[1], width, generator=generator, dtype=torch.float64)
    basis_IW = torch.linalg.qr(probe.to(matrix.device)).Q
    for _ in range(_PASSES):
        basis_IW = torch.linalg.qr(matrix.T @ (matrix @ basis_IW)).Q
    inner = torch.linalg.svd(matrix @ basis_IW, full_matrices=outputs < width).Vh
    rows: Tensor = (inner @ basis_IW.T)[:rank]
    return rows
