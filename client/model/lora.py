"""Low-rank layers on a frozen model: earlier adapters are held, one pair trains on top.

The model that answers is W + sum over frozen adapters of s B A + the pair that trains.
The frozen sum is held in one of two ways, both exact:

- fold: one weight per layer, rounded once. A step costs the same after any number of adapters,
  in time and in memory: the bare weights wait where memory is cheaper (client/model/offload.py).
- stack: all frozen A's in one matrix, all B's in another. The weight is not touched, so it
  may be a quantized one; the price is a wide low-rank product in each step.

Legend of shapes: I inputs, O outputs, R rank, K ranks of all frozen adapters together.
"""
# torch leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from weakref import ref

import torch
from torch import nn
from torch.nn import functional

from client.model.offload import aside
from common.adapter import Adapter, AdapterSource, Array, Pair, name_of_a, name_of_b
from common.errors import BankError, ModelError
from common.plan_fields import Composition

#: The linear layers of the language model (7 a layer); tower, projector and head stay out.
TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


class Factor(StrEnum):
    """Which factors of the pair on top are trained."""

    A = "a"
    B = "b"
    BOTH = "both"


class _Held:
    """What a frozen sum is of: these very adapters, which are values.

    They are not kept alive; one that is gone is like no other, and one that is made anew is
    summed anew, equal as it may be.
    """

    def __init__(self, adapters: Sequence[AdapterSource], hold: Composition) -> None:
        self._hold = hold
        self._adapters = [ref(adapter) for adapter in adapters]

    def is_still(self, other: "_Held") -> bool:
        """Whether both are of the same adapters, held in the same way."""
        return (
            self._hold is other._hold
            and len(self._adapters) == len(other._adapters)
            and all(
                mine() is not None and mine() is theirs()
                for mine, theirs in zip(self._adapters, other._adapters, strict=True)
            )
        )


class AdaptedLinear(nn.Module):
    """A frozen linear layer under a sum of frozen pairs and one pair that trains.

    `base` is the layer as it was found; nothing here ever writes to its weight, and only
    `fold_for_good` puts another in its place. While another weight is folded it waits aside,
    so that a step takes no more memory than without adapters.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = 1.0
        self._holds: _Held | None = None
        self._aside: torch.Tensor | None = None
        #: Where this layer computes, while its weight waits.
        self._waited_for: torch.device | None = None
        self.a: nn.Parameter | None
        self.b: nn.Parameter | None
        self.register_parameter("a", None)
        self.register_parameter("b", None)
        self.folded: torch.Tensor | None
        self.frozen_a: torch.Tensor | None
        self.frozen_b: torch.Tensor | None
        # Not persistent: a saved model is the base model, and adapters are saved apart.
        for name in ("folded", "frozen_a", "frozen_b"):
            self.register_buffer(name, None, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs (..., O) of inputs (..., I)."""
        x_NI = x.reshape(-1, x.shape[-1])
        if self.folded is None:
            y_NO = self.base(x_NI)
        else:
            y_NO = functional.linear(x_NI, self.folded, self.base.bias)
        if self.frozen_a is not None and self.frozen_b is not None:
            y_NO = _plus(y_NO, functional.linear(x_NI, self.frozen_a), self.frozen_b, 1.0)
        if self.a is not None and self.b is not None:
            h_NR = functional.linear(x_NI, self.a.to(x.dtype))
            y_NO = _plus(y_NO, h_NR, self.b, self.scale)
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

    def hold(self, name: str, adapters: Sequence[AdapterSource], hold: Composition) -> None:
        """The frozen sum is now exactly that of the adapters' pairs for the layer `name`.

        Where it is that already, of the very same adapters, nothing is read or computed.
        """
        wanted = _Held(adapters, hold)
        if self._holds is not None and self._holds.is_still(wanted):
            return
        device = self.device
        self.folded = self.frozen_a = self.frozen_b = self._holds = None
        self._place(self.base.weight.detach().to(device))
        self._waited_for = None
        if adapters:
            pairs = [adapter.pair(name) for adapter in adapters]
            self._sum(pairs, [adapter.scale for adapter in adapters], hold)
        # Only now: without the memory for a sum nothing is held.
        self._holds = wanted

    def _sum(self, pairs: Sequence[Pair], scales: Sequence[float], hold: Composition) -> None:
        exact = self.trained_dtype
        a_KI = torch.cat([self._tensor(pair.a, exact) for pair in pairs])
        b_OK = torch.cat(
            [self._tensor(p.b, exact) * scale for p, scale in zip(pairs, scales, strict=True)], 1
        )
        weight_OI = self.base.weight.detach()
        if hold is Composition.FOLD:
            # All at once and rounded once: adding adapter by adapter in bf16 doubles the
            # error, and taking one off again would not restore the weight.
            self.folded = torch.addmm(weight_OI.to(exact), b_OK, a_KI).to(weight_OI.dtype)
            self._set_aside()
        else:
            # A quantized weight has an integer type; its factors stay in full precision.
            kept = weight_OI.dtype if weight_OI.is_floating_point() else exact
            self.frozen_a, self.frozen_b = a_KI.to(kept), b_OK.to(kept)

    def begin(self, pair: Pair, scale: float, train: Factor) -> None:
        """`pair` is on top of the frozen sum, and `train` says which factors learn."""
        self.a = nn.Parameter(self._tensor(pair.a, self.trained_dtype), train is not Factor.B)
        self.b = nn.Parameter(self._tensor(pair.b, self.trained_dtype), train is not Factor.A)
        self.scale = scale

    def fold_for_good(self) -> None:
        """The folded weight is the base weight from now on; the one it was is let go."""
        if self.folded is not None:
            self._place(self.folded)
            self.folded = self._holds = self._aside = self._waited_for = None

    def silence(self) -> None:
        """No pair is on top any more."""
        self.a = self.b = None

    @property
    def device(self) -> torch.device:
        """Where this layer computes."""
        if self.folded is not None:
            return self.folded.device
        # Also where memory has run out for the weight's way back: the next one can take it.
        return self._waited_for or self.base.weight.device

    @property
    def trained_dtype(self) -> torch.dtype:
        """fp32 master factors for every base but an fp64 one (which is for checks)."""
        exact = self.base.weight.dtype == torch.float64
        return torch.float64 if exact else torch.float32

    def _set_aside(self) -> None:
        # Nothing writes to it, so one copy serves for every fold.
        if self._aside is None:
            self._aside = aside(self.base.weight.detach())
        self._waited_for = self.device
        self._place(self._aside)

    def _place(self, weight_OI: torch.Tensor) -> None:
        if weight_OI.data_ptr() != self.base.weight.data_ptr():
            self.base.weight = nn.Parameter(weight_OI, requires_grad=False)

    def _tensor(self, array: Array, dtype: torch.dtype) -> torch.Tensor:
        # torch.tensor copies: an adapter's arrays are never trained in place.
        return torch.tensor(array, dtype=dtype, device=self.device)


class Adapted:
    """The adapted layers of a model, by their paths in it, in the model's order."""

    def __init__(self, layers: Mapping[str, AdaptedLinear]) -> None:
        self.layers = dict(layers)

    def freeze(self, adapters: Sequence[AdapterSource], hold: Composition) -> None:
        """Under the pair on top lies the sum of `adapters` alone; none restores the base.

        They are read layer by layer: no more than one layer of all of them is in memory.

        Raises:
            BankError: an adapter has a layer or a shape that the model has not, or can't be
                read any more.
        """
        for adapter in adapters:
            self._check(adapter)
        having = [(adapter, frozenset(adapter.modules)) for adapter in adapters]
        for name, layer in self.layers.items():
            layer.hold(name, [adapter for adapter, modules in having if name in modules], hold)

    def begin(self, adapter: Adapter, train: Factor) -> None:
        """`adapter` is on top of the frozen ones, and its `train` factors learn.

        The parameters are new ones: an optimizer is made afterwards.

        Raises:
            BankError: the adapter has a layer or a shape that the model has not.
        """
        self._check(adapter)
        self.silence()
        for name, pair in adapter.pairs.items():
            self.layers[name].begin(pair, adapter.scale, train)

    def silence(self) -> None:
        """The model is the base and its frozen adapters; the pairs on top are dropped."""
        for layer in self.layers.values():
            layer.silence()

    def pairs(self) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """The factors (A, B) on top, by layer: the very parameters, not copies."""
        return {
            name: (layer.a, layer.b)
            for name, layer in self.layers.items()
            if layer.a is not None and layer.b is not None
        }

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that learn, in the model's order."""
        return [p for pair in self.pairs().values() for p in pair if p.requires_grad]

    def current(self) -> Adapter:
        """The adapter on top as float32 arrays, copied."""
        pairs = {name: Pair(_array(a), _array(b)) for name, (a, b) in self.pairs().items()}
        scale = next((self.layers[name].scale for name in pairs), 1.0)
        return Adapter(pairs, scale)

    def shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of every adapted layer."""
        return {
            name: (layer.base.out_features, layer.base.in_features)
            for name, layer in self.layers.items()
        }

    def _check(self, adapter: AdapterSource) -> None:
        shapes, layout = self.shapes(), adapter.layout()
        for name in adapter.modules:
            if name not in shapes:
                raise BankError(f"adapter: found a layer {name}, the base model has none so named")
            found = (layout[name_of_b(name)][0], layout[name_of_a(name)][1])
            if found != shapes[name]:
                raise BankError(
                    f"adapter, {name}: found {found}, the base model has {shapes[name]}"
                )


def adapt(model: nn.Module, targets: str = TARGETS) -> Adapted:
    """Every linear layer whose whole path matches `targets` is adapted, in place.

    No parameter of the model learns afterwards, in an adapted layer or elsewhere.

    Raises:
        ModelError: nothing matches.
    """
    model.requires_grad_(False)
    chosen = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(targets, name)
    ]
    if not chosen:
        raise ModelError(f"base model: found no linear layer that matches {targets}")
    layers: dict[str, AdaptedLinear] = {}
    for name, module in chosen:
        parent, _, last = name.rpartition(".")
        layers[name] = AdaptedLinear(module)
        setattr(model.get_submodule(parent), last, layers[name])
    return Adapted(layers)


def fold_for_good(model: nn.Module) -> None:
    """Every folded weight of `model` is the base weight from now on, so that there is one copy.

    For a process that does one job: the base model can't be had back without loading it.
    """
    for module in model.modules():
        if isinstance(module, AdaptedLinear):
            module.fold_for_good()


def _plus(y_NO: torch.Tensor, h_NR: torch.Tensor, b_OR: torch.Tensor, scale: float) -> torch.Tensor:
    # One product that adds as it goes: no tensor of outputs is made beside y.
    return torch.addmm(y_NO, h_NR.to(y_NO.dtype), b_OR.to(y_NO.dtype).t(), alpha=scale)


def _array(parameter: torch.Tensor) -> Array:
    return parameter.detach().to("cpu", torch.float32, copy=True).numpy()
