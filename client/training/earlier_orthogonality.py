"""O-LoRA's regularizer and its analytic gradient (arXiv 2310.14152).

For the trained adapter (A, B) and all earlier adapters i, over the layers m:

    R = lambda_1 * sum_m sum_i sum_jk |(A_i A')_jk|  +  lambda_2 * sum_m (|A|_F + |B|_F)

The first term is that of the authors' code (github.com/cmnfriend/O-LoRA, `uie_trainer_lora.py`),
with absolute values; the paper writes their squares. The second is in the code alone.

Legend of shapes: R rank, K ranks of all earlier adapters together, I inputs.
"""
# torch leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from client.training.regularizer import FactorPairs
from common.adapter import AdapterSource


class EarlierOrthogonality:
    """The regularizer of one stage; without earlier adapters its first term is 0."""

    def __init__(
        self,
        earlier: Sequence[AdapterSource],
        pairs: FactorPairs,
        orthogonality: float,
        norm: float,
    ) -> None:
        """Stack the earlier A's of each layer of `pairs`, on its device.

        Args:
            orthogonality: lambda_1.
            norm: lambda_2.

        Raises:
            BankError: an adapter can no longer be read.
        """
        self._orthogonality, self._norm = orthogonality, norm
        self._rows: dict[str, torch.Tensor] = {}
        for name, (a, _) in pairs.items() if earlier and orthogonality else ():
            rows = np.concatenate([adapter.pair(name).a for adapter in earlier])
            self._rows[name] = torch.tensor(rows, dtype=a.dtype, device=a.device)

    @torch.no_grad()
    def add_gradient(self, pairs: FactorPairs) -> torch.Tensor:
        """Return R of `pairs`, and add its gradient to `.grad` of the trained factors.

        The value stays on the device (shape ()), without a graph. The gradient of |x| at 0 is 0.
        """
        like = next(iter(pairs.values()))[0]
        value = torch.zeros((), dtype=like.dtype, device=like.device)
        for name, (a, b) in pairs.items():
            if name in self._rows:
                overlap_RK = a @ self._rows[name].T
                value += self._orthogonality * overlap_RK.abs().sum()
                _add(a, self._orthogonality * overlap_RK.sign() @ self._rows[name])
            for factor in (a, b) if self._norm else ():
                length = torch.linalg.vector_norm(factor)
                value += self._norm * length
                _add(factor, self._norm * torch.where(length > 0, factor / length, 0.0))
        return value


def _add(factor: nn.Parameter, gradient: torch.Tensor) -> None:
    if factor.requires_grad:
        factor.grad = gradient if factor.grad is None else factor.grad.add_(gradient)
