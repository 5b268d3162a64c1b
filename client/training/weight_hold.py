"""Weights are held to those of a stage's start: l2, and elastic weight consolidation.

What is held is the change that an adapter makes to a layer's weight, s B A, and not its factors: a
rule of aggregation may release other factors of the same product, in which a term of the factors
would mean something else.

Legend of shapes: I inputs, O outputs, R rank.
"""
# pyright: reportUnknownMemberType=false

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from client.training.optimizer import backward


@dataclass(frozen=True, slots=True, eq=False)
class LayerProduct:
    """The change scale B A of a layer's weight, as its factors: a (R, I), b (O, R)."""

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class LayerImportance:
    """How important each weight of a layer is: outputs (O,) times inputs (I,), not negative."""

    outputs: Tensor
    inputs: Tensor


class WeightHold:
    """lambda sum F (dW - dW')^2 over all weights of the adapted layers.

    dW' is the change at the stage's start. F is 1 (l2), or the sum of the earlier stages'
    importances, as in online EWC: the penalty's centre is the latest weights, not each stage's own.
    """

    def __init__(
        self,
        now: Mapping[str, LayerProduct],
        start: Mapping[str, LayerProduct],
        weight: float,
        importances: Sequence[Mapping[str, LayerImportance]] | None,
    ) -> None:
        """Hold the factors `now`, parameters, to `start`.

        Args:
            now, start: by layer; those of `start` are constants.
            weight: lambda.
            importances: F of each earlier stage by layer; None for l2.
        """
        self._now, self._start, self._weight = now, start, weight
        self._importances = importances

    def value(self) -> Tensor:
        """Return the term with its graph; shape ()."""
        terms: list[Tensor] = []
        for name, now in self._now.items():
            # dW - dW' is one product of twice the rank.
            start = self._start[name]
            b_O2R = torch.cat([now.scale * now.b, -start.scale * start.b], 1)
            a_2RI = torch.cat([now.a, start.a])
            if self._importances is None:
                terms.append(_squared_norm(b_O2R, a_2RI))
                continue
            for stage in self._importances:
                outputs, inputs = stage[name].outputs.sqrt(), stage[name].inputs.sqrt()
                terms.append(_squared_norm(outputs[:, None] * b_O2R, a_2RI * inputs))
        return self._weight * torch.stack(terms).sum()

    def add_gradient(self) -> Tensor:
        """Add the term's gradient to `.grad`; return its value, shape ()."""
        value = self.value()
        backward(value)
        return value.detach()


class DeltaHold:
    """lambda sum F (d - d')^2 over changes of whole weights, of any shape, in closed form.

    d' is the change at the stage's start. F as in `WeightHold`, of the weights' own shapes.
    """

    def __init__(
        self,
        now: Mapping[str, Parameter],
        start: Mapping[str, Tensor],
        weight: float,
        importances: Sequence[Mapping[str, Tensor]] | None,
    ) -> None:
        """Hold the changes `now` to `start`; see `WeightHold`."""
        self._now, self._start, self._weight = now, start, weight
        # The centre is one for all stages, so their importances are summed once.
        self._importance = (
            None
            if importances is None
            else {name: torch.stack([stage[name] for stage in importances]).sum(0) for name in now}
        )

    def add_gradient(self) -> Tensor:
        """Add the term's gradient to `.grad`; return its value, shape ()."""
        terms: list[Tensor] = []
        for name, now in self._now.items():
            moved = now.detach() - self._start[name]
            held = moved if self._importance is None else moved * self._importance[name]
            terms.append((held * moved).sum())
            if now.grad is None:
                now.grad = torch.zeros_like(now)
            now.grad.add_(held, alpha=2 * self._weight)
        return self._weight * torch.stack(terms).sum()


def _squared_norm(b_OR: Tensor, a_RI: Tensor) -> Tensor:
    """Return |B A|^2 without the product: the sum of (B^T B) * (A A^T)."""
    return ((b_OR.T @ b_OR) * (a_RI @ a_RI.T)).sum()
