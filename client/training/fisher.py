"""The Fisher information of adapted layers' weights, each layer's as a product of two vectors.

The gradient of a linear layer's weight is the sum over tokens of (output gradient) (input)^T. The
diagonal of its second moment is taken as (sum over tokens of the squared output gradients) times
(mean over tokens of the squared inputs), as K-FAC does (arXiv 1503.05671): two vectors in place of
a matrix, of the weight itself and so of no use of which factors an adapter has. Of weights that
train whole it is the diagonal itself.

Legend of shapes: N tokens, I inputs, O outputs.
"""
# pyright: reportUnknownMemberType=false

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from client.model.lora import AdaptedLayers, AdaptedLinear
from client.training.weight_hold import LayerImportance
from common.tensors import Array

#: Length of the vectors that travel: next to nothing in the norm by which updates are judged.
_LENGTH: Final = 0.01


class SquaredGradients:
    """Sums of a layer's squared inputs and output gradients over backward passes.

    A pass must be of one example: the Fisher information is the mean of squares, not the square of
    a mean.
    """

    def __init__(self, layers: Mapping[str, AdaptedLinear]) -> None:
        """Hook these layers, whose outputs must require a gradient."""
        self._inputs = {
            name: torch.zeros(
                layer.base.in_features, dtype=layer.trained_dtype, device=layer.device
            )
            for name, layer in layers.items()
        }
        self._outputs = {
            name: torch.zeros(
                layer.base.out_features, dtype=layer.trained_dtype, device=layer.device
            )
            for name, layer in layers.items()
        }
        self._tokens = dict.fromkeys(layers, 0)
        self._handles = [
            layer.register_forward_hook(partial(self._on_forward, name))
            for name, layer in layers.items()
        ]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def end_example(self) -> None:
        """Nothing: the hooks have added the example's squares."""

    def importances(self) -> dict[str, LayerImportance]:
        """Return the two factors of each layer's information, up to one number for all layers."""
        return {
            name: LayerImportance(self._outputs[name], inputs / max(1, self._tokens[name]))
            for name, inputs in self._inputs.items()
        }

    def _on_forward(self, name: str, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        sums = self._inputs[name], self._outputs[name]
        x_NI: Tensor = inputs[0].detach().flatten(0, -2).to(sums[0].dtype)

        def add(dy: Tensor) -> None:
            sums[0].add_(x_NI.square().sum(0))
            sums[1].add_(dy.flatten(0, -2).to(sums[1].dtype).square().sum(0))
            self._tokens[name] += len(x_NI)

        output.register_hook(add)


class DiagonalGradients:
    """Sums of the squared gradients of changes of whole weights, one example at a time.

    The diagonal of the Fisher information itself (Kirkpatrick et al. 2017, arXiv 1612.00796).
    """

    def __init__(self, deltas: Mapping[str, nn.Parameter]) -> None:
        """Take the gradients of these from zero."""
        self._deltas = deltas
        self._sums = {name: torch.zeros_like(delta) for name, delta in deltas.items()}
        self._drop_gradients()

    def end_example(self) -> None:
        """Add the squares of the gradients of one example's loss."""
        for name, delta in self._deltas.items():
            if delta.grad is not None:
                self._sums[name].add_(delta.grad.square())
        self._drop_gradients()

    def close(self) -> None:
        """Leave no gradient behind."""
        self._drop_gradients()

    def row(self) -> Array:
        """Return all weights' sums one after another in name order, (1, n), of `_LENGTH`."""
        parts = [self._sums[name].flatten() for name in sorted(self._sums)]
        return _of_length(torch.cat(parts).double().cpu().numpy())

    def _drop_gradients(self) -> None:
        for delta in self._deltas.values():
            delta.grad = None


def squared_gradients(adapted: AdaptedLayers) -> SquaredGradients | DiagonalGradients:
    """Return what adds up squared gradients by what is attached: pairs, or changes of weights."""
    if deltas := adapted.attached_deltas():
        return DiagonalGradients(deltas)
    return SquaredGradients({name: adapted.layers[name] for name in adapted.attached_pairs()})


def diagonal_from_row(
    row: Array, sizes: Mapping[str, tuple[int, ...]], device: torch.device
) -> dict[str, Tensor]:
    """Return the importances of `DiagonalGradients.row`, so that a weight's is 1 in the mean.

    Args:
        sizes: the shape of each weight.
    """
    names, mean = sorted(sizes), float(row.mean(dtype=np.float64))
    parts = _split(row / np.float32(mean if mean > 0 else 1.0), [prod(sizes[n]) for n in names])
    return {
        name: torch.tensor(part, dtype=torch.float32, device=device).view(sizes[name])
        for name, part in zip(names, parts, strict=True)
    }


def as_rows(importances: Mapping[str, LayerImportance]) -> tuple[Array, Array]:
    """Return all layers' outputs and inputs one after another in name order, a row each, (1, n).

    Each row has the length `_LENGTH`, or 0 if there is no information.
    """
    names = sorted(importances)
    rows = (
        torch.cat([importances[name].outputs for name in names]),
        torch.cat([importances[name].inputs for name in names]),
    )
    outputs, inputs = (row.double().cpu().numpy() for row in rows)
    return _of_length(outputs), _of_length(inputs)


def from_rows(
    outputs: Array, inputs: Array, layers: Mapping[str, tuple[int, int]], device: torch.device
) -> dict[str, LayerImportance]:
    """Return the importances that `as_rows` gave, so that a weight's is 1 in the mean over all.

    Args:
        layers: (outputs, inputs) of each layer.
    """
    names = sorted(layers)
    of_outputs = _split(outputs, [layers[name][0] for name in names])
    of_inputs = _split(inputs, [layers[name][1] for name in names])
    weights = sum(rows * columns for rows, columns in layers.values())
    total = sum(float(u.sum()) * float(v.sum()) for u, v in zip(of_outputs, of_inputs, strict=True))
    factor = weights / total if total > 0 else 0.0
    return {
        name: LayerImportance(
            torch.tensor(factor * u, dtype=torch.float32, device=device),
            torch.tensor(v, dtype=torch.float32, device=device),
        )
        for name, u, v in zip(names, of_outputs, of_inputs, strict=True)
    }


def _of_length(row: np.ndarray[Any, np.dtype[np.float64]]) -> Array:
    length = float(np.linalg.norm(row))
    return (row * (_LENGTH / length if length > 0 else 0.0)).astype(np.float32)[None]


def _split(row: Array, sizes: Sequence[int]) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    return np.split(row[0].astype(np.float64), np.cumsum(sizes)[:-1])
