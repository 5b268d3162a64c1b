"""MSLoRA-CR's regularizer and its analytic gradient (arXiv 2508.11673).

For the trained adapter t and the prototypes i of earlier adapters, over the layers m and, in
`exp`, over the set M of all factors A and B:

    R = alpha * C + beta / (N t) * sum over adapters and layers of
        ( |A A' - I|^2 + |B' B - I|^2 )

N layers; t counts the prototypes and the adapter itself. The prototypes' part of the second
term is a constant. `C` is the contrastive term:

    exp        sim(i) = mean over M of exp(-|W - W_i|);  C = sum_i (1 - sim(i) or sim(i)),
               the first where the modality is the same. The paper's formula.
    grassmann  z(i) = |Q' Q_i|^2 / rank with Q, Q_i orthonormal bases of the rows of A, A_i;
               InfoNCE over z at a temperature, mean over layers. Any gauge, any size of A.
    attract    mean over M of |W - P|^2 with P the mean of the prototypes of the same modality
               (a proximal term: L2-SP, arXiv 1802.01483); 0 without one. It depends on the
               gauge, so it is meant for a stage that starts from P.

Without a prototype (the first stage) R is 0, orthogonality included, as in the paper's code.

Layers of one shape are stacked, so that the number of operations depends neither on the
layers nor on the prototypes, and nothing waits for the device.

Legend of shapes: L layers of one shape, K prototypes, R rank; a factor W is (X, Y), which
is (R, inputs) for A and (outputs, R) for B.
"""
# torch leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import nn

from client.training.contrastive import AttractTerm, ContrastiveTerm, ExpTerm, GrassmannTerm
from common.adapter import Adapter, AdapterSource, Pair, name_of_a, name_of_b
from common.contrastive import Prototypes, Similarity
from common.errors import BankError
from common.plan_fields import Modality
from common.tensors import Array

FactorPairs: TypeAlias = Mapping[str, tuple[nn.Parameter, nn.Parameter]]


class FactorSource(Protocol):
    """Factors of a prototype, read layer by layer."""

    @property
    def modules(self) -> tuple[str, ...]:
        """The layers that have factors."""
        ...

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every factor by its PEFT name."""
        ...

    def pair(self, module: str) -> Pair:
        """Return the factors of one layer."""
        ...

    def loaded(self) -> Adapter:
        """Return all factors in memory."""
        ...


@dataclass(frozen=True, slots=True)
class AdapterPrototype:
    """The factors of one or several earlier adapters, to be attracted to or repelled from.

    Attributes:
        same_modality: whether they are of the modality of the trained adapter.
    """

    adapter: FactorSource
    same_modality: bool


@dataclass(frozen=True, slots=True)
class RegularizerWeights:
    """The paper's alpha and beta (None for no orthogonality), and InfoNCE's temperature."""

    contrast: float
    orthogonality: float | None
    temperature: float


def adapter_prototypes(
    earlier: Sequence[tuple[Modality, AdapterSource]], modality: Modality, kind: Prototypes
) -> list[AdapterPrototype]:
    """Return every earlier adapter, or for each modality the mean of its adapters' factors.

    A mean of factors is not the mean of the updates B A, but a point in the space that the
    distances are measured in. Modalities keep the order of their first stage.
    """
    if kind is Prototypes.TASK:
        return [AdapterPrototype(adapter, other is modality) for other, adapter in earlier]
    groups: dict[Modality, list[AdapterSource]] = {}
    for other, adapter in earlier:
        groups.setdefault(other, []).append(adapter)
    return [
        AdapterPrototype(
            group[0] if len(group) == 1 else _MeanAdapter(tuple(group)), of is modality
        )
        for of, group in groups.items()
    ]


class Regularizer:
    """The regularizer of one stage, evaluated after each backward pass."""

    def __init__(
        self,
        prototypes: Sequence[AdapterPrototype],
        pairs: FactorPairs,
        similarity: Similarity,
        weights: RegularizerWeights,
    ) -> None:
        """Prepare the stacks; `pairs` gives the layers, their shapes and the device.

        Raises:
            BankError: a prototype lacks a layer, or has another shape there.
        """
        self._constant = 0.0
        self._stacks: list[_Stack] = []
        if not prototypes:
            return
        _check_shapes(prototypes, pairs)
        # InfoNCE expects the prototypes of the same modality first.
        ordered = sorted(prototypes, key=lambda prototype: not prototype.same_modality)
        orthogonality = None
        if weights.orthogonality is not None:
            orthogonality = weights.orthogonality / (len(pairs) * (len(prototypes) + 1))
            self._constant += orthogonality * sum(_orthogonality(p.adapter) for p in prototypes)
        if similarity is Similarity.EXP:
            self._constant += weights.contrast * sum(p.same_modality for p in prototypes)
        for side, layers in _by_shape(pairs):
            contrast = _contrast(ordered, pairs, (side, layers), similarity, weights)
            stack = _Stack(layers, side, orthogonality, contrast)
            if stack.orthogonality is not None or stack.contrast is not None:
                self._stacks.append(stack)

    def add_gradient(self, pairs: FactorPairs) -> torch.Tensor:
        """Return R of `pairs`, and add its gradient to `.grad` of the trained factors.

        The value stays on the device (shape ()), without a graph.
        """
        like = next(iter(pairs.values()))[0]
        value = torch.full((), self._constant, dtype=_exact(like), device=like.device)
        with torch.no_grad():
            for stack in self._stacks:
                value += stack.add_gradient(pairs)
        return value


@dataclass(frozen=True, slots=True)
class _Stack:
    """The A factors (side 0) or B factors (side 1) of all layers of one shape.

    Attributes:
        orthogonality: beta / (N t); None for no orthogonality.
    """

    layers: tuple[str, ...]
    side: int
    orthogonality: float | None
    contrast: ContrastiveTerm | None

    def add_gradient(self, pairs: FactorPairs) -> torch.Tensor:
        """Return this stack's part of R, and add its gradient; call it under `no_grad`."""
        factors = [pairs[name][self.side] for name in self.layers]
        w_LXY = torch.stack([factor.to(_exact(factor)) for factor in factors])
        gram_LRR = w_LXY @ w_LXY.mT if self.side == 0 else w_LXY.mT @ w_LXY
        value, m_LRR, d_LXY = self._value_and_gradient(w_LXY, gram_LRR)
        left, right = (m_LRR, w_LXY) if self.side == 0 else (w_LXY, m_LRR)
        trained = [index for index, factor in enumerate(factors) if factor.requires_grad]
        if trained:
            gradient = left @ right if d_LXY is None else torch.baddbmm(d_LXY, left, right)
            parts = gradient.unbind()
            _add_to_grad([factors[i] for i in trained], [parts[i] for i in trained])
        return value

    def _value_and_gradient(
        self, w_LXY: torch.Tensor, gram_LRR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        value, m_LRR, d_LXY = w_LXY.new_zeros(()), torch.zeros_like(gram_LRR), None
        if self.contrast is not None:
            value, m_LRR, d_LXY = self.contrast.value_and_gradient(w_LXY, gram_LRR)
        if self.orthogonality is not None:
            # d/dA |A A' - I|^2 = 4 (A A' - I) A
            off_LRR = gram_LRR - torch.eye(
                gram_LRR.shape[-1], dtype=gram_LRR.dtype, device=gram_LRR.device
            )
            value = value + self.orthogonality * off_LRR.square().sum()
            m_LRR = m_LRR + 4 * self.orthogonality * off_LRR
        return value, m_LRR, d_LXY


def _contrast(
    prototypes: Sequence[AdapterPrototype],
    pairs: FactorPairs,
    stack: tuple[int, tuple[str, ...]],
    similarity: Similarity,
    weights: RegularizerWeights,
) -> ContrastiveTerm | None:
    side, layers = stack
    like = pairs[layers[0]][side]
    if similarity is Similarity.EXP:
        signs = [-1.0 if prototype.same_modality else 1.0 for prototype in prototypes]
        weight = weights.contrast / (2 * len(pairs))
        factors_LKF = _stacked(
            prototypes, layers, like, lambda pair: (pair.a, pair.b)[side]
        ).flatten(2)
        return ExpTerm(
            factors_LKF,
            factors_LKF.square().sum(2),
            torch.tensor(signs, dtype=_exact(like), device=like.device) * weight,
        )
    same = [prototype for prototype in prototypes if prototype.same_modality]
    if similarity is Similarity.ATTRACT and same:
        factors_LKXY = _stacked(same, layers, like, lambda pair: (pair.a, pair.b)[side])
        return AttractTerm(factors_LKXY.mean(1), weights.contrast / (2 * len(pairs)))
    if similarity is Similarity.GRASSMANN and side == 0:
        return GrassmannTerm(
            _stacked(prototypes, layers, like, lambda pair: _orthonormal(pair.a)).flatten(1, 2),
            sum(prototype.same_modality for prototype in prototypes),
            weights.temperature,
            weights.contrast / len(pairs),
        )
    return None


def _stacked(
    prototypes: Sequence[AdapterPrototype],
    layers: Sequence[str],
    like: torch.Tensor,
    part: Callable[[Pair], Array],
) -> torch.Tensor:
    """Return `part` of each layer and prototype as one tensor; shape (L, K, ...)."""
    of_layer = [np.stack([part(p.adapter.pair(name)) for p in prototypes]) for name in layers]
    return torch.tensor(np.stack(of_layer), dtype=_exact(like), device=like.device)


def _orthonormal(a: Array) -> Array:
    return np.linalg.qr(a.astype(np.float64).T)[0].T


def _orthogonality(adapter: FactorSource) -> float:
    """Return the sum over layers of |A A' - I|^2 + |B' B - I|^2."""
    total = 0.0
    for pair in map(adapter.pair, adapter.modules):
        for rows in (pair.a.astype(np.float64), pair.b.astype(np.float64).T):
            total += float(np.square(rows @ rows.T - np.eye(len(rows))).sum())
    return total


@dataclass(frozen=True, slots=True)
class _MeanAdapter:
    """The mean of several adapters' factors, in float64; see `FactorSource`."""

    adapters: tuple[AdapterSource, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        return self.adapters[0].modules

    def layout(self) -> dict[str, tuple[int, ...]]:
        return self.adapters[0].layout()

    def pair(self, module: str) -> Pair:
        pairs = [adapter.pair(module) for adapter in self.adapters]
        return Pair(
            np.stack([pair.a for pair in pairs]).mean(0, np.float64),
            np.stack([pair.b for pair in pairs]).mean(0, np.float64),
        )

    def loaded(self) -> Adapter:
        pairs = {module: self.pair(module) for module in self.modules}
        return Adapter(pairs, self.adapters[0].scale)


def _by_shape(pairs: FactorPairs) -> list[tuple[int, tuple[str, ...]]]:
    """Return the side and the layers of each stack."""
    stacks: dict[tuple[int, torch.Size], list[str]] = {}
    for name, pair in pairs.items():
        for side, factor in enumerate(pair):
            stacks.setdefault((side, factor.shape), []).append(name)
    return [(side, tuple(layers)) for (side, _), layers in stacks.items()]


def _check_shapes(prototypes: Sequence[AdapterPrototype], pairs: FactorPairs) -> None:
    for number, prototype in enumerate(prototypes, 1):
        layout = prototype.adapter.layout()
        for name, (a, b) in pairs.items():
            expected = (tuple(a.shape), tuple(b.shape))
            shapes = [layout.get(name_of_a(name)), layout.get(name_of_b(name))]
            found = None if None in shapes else tuple(shapes)
            if found != expected:
                raise BankError(
                    f"prototype {number}, {name}: found factors {found}, expected {expected}"
                )


def _exact(factor: torch.Tensor) -> torch.dtype:
    return torch.float64 if factor.dtype == torch.float64 else torch.float32


def _add_to_grad(factors: Sequence[nn.Parameter], gradients: Sequence[torch.Tensor]) -> None:
    """Add `gradients` to `.grad`, in one operation if every factor has one."""
    if all(factor.grad is not None for factor in factors):
        present = [factor.grad for factor in factors]
        torch._foreach_add_(present, list(gradients))  # pyright: ignore  # no public name
        return
    for factor, gradient in zip(factors, gradients, strict=True):
        gradient = gradient.to(factor.dtype)
        factor.grad = gradient if factor.grad is None else factor.grad.add_(gradient)
