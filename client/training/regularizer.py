"""MSLoRA-CR's regularizer and its gradient, computed by hand (arXiv 2508.11673).

For the adapter t that trains and its prototypes i (what was learned before), over the
layers m and, in `exp`, over the set M of all factors A and B:

    R = alpha * C + beta / (N t) * sum over adapters and layers of
        ( |A A' - I|^2 + |B' B - I|^2 )

N layers; t counts the prototypes and the adapter itself. The frozen adapters' share of
the second term is a constant. `C` is the contrast:

    exp        sim(i) = mean over M of exp(-|W - W_i|);  C = sum_i (1 - sim(i) or sim(i)),
               the first where the modality is the same. The paper's formula.
    grassmann  z(i) = |Q' Q_i|^2 / rank with Q, Q_i orthonormal bases of the rows of A, A_i;
               InfoNCE over z at a temperature, mean over layers. Any gauge, any size of A.
    attract    mean over M of |W - P|^2 with P the mean of the prototypes of the same modality
               (a proximal term: L2-SP, arXiv 1802.01483); 0 without one. It depends on the
               gauge, so it is for a stage that starts from P.

Without a prototype (the first stage) R is 0, orthogonality included, as in the paper's code.

Layers of one shape are stacked, so that the count of operations depends neither on the
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
from common.adapter import Adapter, AdapterSource, Array, Pair, name_of_a, name_of_b
from common.contrastive import Prototypes, Similarity
from common.errors import BankError
from common.plan_fields import Modality

FactorPairs: TypeAlias = Mapping[str, tuple[nn.Parameter, nn.Parameter]]


class FactorSource(Protocol):
    """What is compared with: pairs of factors, to be had layer by layer."""

    @property
    def modules(self) -> tuple[str, ...]:
        """The layers that have a pair."""
        ...

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Every factor's PEFT name and shape."""
        ...

    def pair(self, module: str) -> Pair:
        """The factors of one layer."""
        ...

    def loaded(self) -> Adapter:
        """All of them, in memory."""
        ...


@dataclass(frozen=True, slots=True)
class AdapterPrototype:
    """What was learned before, and whether its modality is that of the stage at hand."""

    adapter: FactorSource
    same: bool


@dataclass(frozen=True, slots=True)
class RegularizerWeights:
    """The paper's alpha and beta (None: no orthogonality), and InfoNCE's temperature."""

    contrast: float
    orthogonality: float | None
    temperature: float


def adapter_prototypes(
    earlier: Sequence[tuple[Modality, AdapterSource]], modality: Modality, kind: Prototypes
) -> list[AdapterPrototype]:
    """Every earlier adapter, or for each modality the mean of its adapters' factors.

    A mean of factors is no mean of updates; it is a place in the space that the distances
    are measured in. Modalities come in the order of their arrival.
    """
    if kind is Prototypes.TASK:
        return [AdapterPrototype(adapter, of is modality) for of, adapter in earlier]
    groups: dict[Modality, list[AdapterSource]] = {}
    for of, adapter in earlier:
        groups.setdefault(of, []).append(adapter)
    return [
        AdapterPrototype(group[0] if len(group) == 1 else _Mean(tuple(group)), of is modality)
        for of, group in groups.items()
    ]


class Regularizer:
    """The regularizer of one stage: built once, asked after each backward pass."""

    def __init__(
        self,
        prototypes: Sequence[AdapterPrototype],
        pairs: FactorPairs,
        similarity: Similarity,
        weights: RegularizerWeights,
    ) -> None:
        """`pairs` gives the layers, their shapes and the device; their values do not matter.

        Raises:
            BankError: a prototype lacks a layer, or has it in another shape.
        """
        self._constant = 0.0
        self._stacks: list[_Stack] = []
        if not prototypes:
            return
        _check(prototypes, pairs)
        # InfoNCE takes the prototypes of the same modality as one slice, the others as another.
        ordered = sorted(prototypes, key=lambda prototype: not prototype.same)
        share = None
        if weights.orthogonality is not None:
            share = weights.orthogonality / (len(pairs) * (len(prototypes) + 1))
            self._constant += share * sum(_orthogonality(p.adapter) for p in prototypes)
        if similarity is Similarity.EXP:
            self._constant += weights.contrast * sum(p.same for p in prototypes)
        for side, layers in _by_shape(pairs):
            stack = _Stack(
                layers, side, share, _contrast(ordered, pairs, (side, layers), similarity, weights)
            )
            if stack.share is not None or stack.contrast is not None:
                self._stacks.append(stack)

    def add_gradient(self, pairs: FactorPairs) -> torch.Tensor:
        """R of `pairs`; its gradient is added to `.grad` of the factors that learn.

        The value stays on the device (shape ()) and belongs to no graph.
        """
        like = next(iter(pairs.values()))[0]
        value = torch.full((), self._constant, dtype=_exact(like), device=like.device)
        with torch.no_grad():
            for stack in self._stacks:
                value += stack.add_gradient(pairs)
        return value


@dataclass(frozen=True, slots=True)
class _Stack:
    """One side, A (0) or B (1), of all layers of one shape; `share` is beta / (N t)."""

    layers: tuple[str, ...]
    side: int
    share: float | None
    contrast: ContrastiveTerm | None

    def add_gradient(self, pairs: FactorPairs) -> torch.Tensor:
        """This stack's part of R; its gradient is added to the factors that learn.

        Called where no graph is made.
        """
        factors = [pairs[name][self.side] for name in self.layers]
        w_LXY = torch.stack([factor.to(_exact(factor)) for factor in factors])
        gram_LRR = w_LXY @ w_LXY.mT if self.side == 0 else w_LXY.mT @ w_LXY
        value, m_LRR, d_LXY = self._parts(w_LXY, gram_LRR)
        left, right = (m_LRR, w_LXY) if self.side == 0 else (w_LXY, m_LRR)
        learning = [place for place, factor in enumerate(factors) if factor.requires_grad]
        if learning:
            gradient = left @ right if d_LXY is None else torch.baddbmm(d_LXY, left, right)
            parts = gradient.unbind()
            _add([factors[place] for place in learning], [parts[place] for place in learning])
        return value

    def _parts(
        self, w_LXY: torch.Tensor, gram_LRR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        value, m_LRR, d_LXY = w_LXY.new_zeros(()), torch.zeros_like(gram_LRR), None
        if self.contrast is not None:
            value, m_LRR, d_LXY = self.contrast.at(w_LXY, gram_LRR)
        if self.share is not None:
            # d/dA |A A' - I|^2 = 4 (A A' - I) A
            off_LRR = gram_LRR - torch.eye(
                gram_LRR.shape[-1], dtype=gram_LRR.dtype, device=gram_LRR.device
            )
            value = value + self.share * off_LRR.square().sum()
            m_LRR = m_LRR + 4 * self.share * off_LRR
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
        signs = [-1.0 if prototype.same else 1.0 for prototype in prototypes]
        weight = weights.contrast / (2 * len(pairs))
        factors_LKF = _stacked(
            prototypes, layers, like, lambda pair: (pair.a, pair.b)[side]
        ).flatten(2)
        return ExpTerm(
            factors_LKF,
            factors_LKF.square().sum(2),
            torch.tensor(signs, dtype=_exact(like), device=like.device) * weight,
        )
    same = [prototype for prototype in prototypes if prototype.same]
    if similarity is Similarity.ATTRACT and same:
        factors_LKXY = _stacked(same, layers, like, lambda pair: (pair.a, pair.b)[side])
        return AttractTerm(factors_LKXY.mean(1), weights.contrast / (2 * len(pairs)))
    if similarity is Similarity.GRASSMANN and side == 0:
        return GrassmannTerm(
            _stacked(prototypes, layers, like, lambda pair: _orthonormal(pair.a)).flatten(1, 2),
            sum(prototype.same for prototype in prototypes),
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
    """One array of each layer and prototype; shape (L, K, ...)."""
    of_layer = [np.stack([part(p.adapter.pair(name)) for p in prototypes]) for name in layers]
    return torch.tensor(np.stack(of_layer), dtype=_exact(like), device=like.device)


def _orthonormal(a: Array) -> Array:
    return np.linalg.qr(a.astype(np.float64).T)[0].T


def _orthogonality(adapter: FactorSource) -> float:
    """The sum over layers of |A A' - I|^2 + |B' B - I|^2."""
    total = 0.0
    for pair in map(adapter.pair, adapter.modules):
        for rows in (pair.a.astype(np.float64), pair.b.astype(np.float64).T):
            total += float(np.square(rows @ rows.T - np.eye(len(rows))).sum())
    return total


@dataclass(frozen=True, slots=True)
class _Mean:
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
    """The side and the layers of each stack."""
    stacks: dict[tuple[int, torch.Size], list[str]] = {}
    for name, pair in pairs.items():
        for side, factor in enumerate(pair):
            stacks.setdefault((side, factor.shape), []).append(name)
    return [(side, tuple(layers)) for (side, _), layers in stacks.items()]


def _check(prototypes: Sequence[AdapterPrototype], pairs: FactorPairs) -> None:
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


def _add(factors: Sequence[nn.Parameter], gradients: Sequence[torch.Tensor]) -> None:
    """`gradients` are added to `.grad`, in one operation where every factor has one."""
    if all(factor.grad is not None for factor in factors):
        present = [factor.grad for factor in factors]
        torch._foreach_add_(present, list(gradients))  # pyright: ignore  # no public name
        return
    for factor, gradient in zip(factors, gradients, strict=True):
        gradient = gradient.to(factor.dtype)
        factor.grad = gradient if factor.grad is None else factor.grad.add_(gradient)
