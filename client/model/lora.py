"""LoRA layers on a frozen model: a sum of frozen adapters, and one attached adapter that trains.

The effective weight is W + (sum over frozen adapters of s B A) + s B A of the attached adapter.
The frozen sum is composed in one of two ways, both exact:

- fold: merged into one weight per layer, rounded once. A step costs the same after any number
  of adapters, in time and in memory: the base weights are offloaded (client/model/offload.py).
- stack: all frozen A's in one matrix, all B's in another. The weight is not changed, so it
  may be a quantized one; the price is a wide low-rank product in each step.

Legend of shapes: I inputs, O outputs, R rank, K ranks of all frozen adapters together.
"""
# torch leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from weakref import ref

import torch
from torch import nn
from torch.nn import functional

from client.model.offload import offload
from client.model.weight_deltas import WeightDeltas
from common.adapter import (
    DELTA_PREFIX,
    Adapter,
    AdapterSource,
    Pair,
    deltas_in,
    name_of_a,
    name_of_b,
)
from common.errors import BankError, ModelError
from common.methods.lora_adapters import LORA_TARGETS
from common.partial_adapter import AdapterPart
from common.plan_fields import Composition
from common.rules.interface import Factor
from common.tensors import Array


class _FrozenSum:
    """The identity of a frozen sum: its adapters, by object identity, and their composition.

    Weak references: an adapter that has been freed, or an equal one that was made anew, counts
    as another adapter.
    """

    def __init__(self, adapters: Sequence[AdapterSource], composition: Composition) -> None:
        self._composition = composition
        self._adapters = [ref(adapter) for adapter in adapters]

    def equals(self, other: "_FrozenSum") -> bool:
        """Return whether both are of the same adapters, composed in the same way."""
        return (
            self._composition is other._composition
            and len(self._adapters) == len(other._adapters)
            and all(
                mine() is not None and mine() is theirs()
                for mine, theirs in zip(self._adapters, other._adapters, strict=True)
            )
        )


class AdaptedLinear(nn.Module):
    """A frozen linear layer with a sum of frozen adapters and one attached pair of factors.

    `base` is the original layer; nothing here writes to its weight, and only
    `merge_permanently` replaces it. While a folded weight is in use the base weight is
    offloaded, so that a step takes no more memory than without adapters.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = 1.0
        #: Whether the base layer computes alone, whatever is frozen or attached.
        self.bypassed = False
        self._frozen: _FrozenSum | None = None
        self._offloaded: torch.Tensor | None = None
        #: The device to compute on while the base weight is offloaded.
        self._compute_device: torch.device | None = None
        self.a: nn.Parameter | None
        self.b: nn.Parameter | None
        #: R (R, R) of B R A, where the rule trains it between two fixed factors.
        self.core: nn.Parameter | None
        for name in ("a", "b", "core"):
            self.register_parameter(name, None)
        self.folded: torch.Tensor | None
        self.frozen_a: torch.Tensor | None
        self.frozen_b: torch.Tensor | None
        # Not persistent: a saved model is the base model, and adapters are saved separately.
        for name in ("folded", "frozen_a", "frozen_b"):
            self.register_buffer(name, None, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs (..., O) of inputs (..., I)."""
        if self.bypassed:
            return functional.linear(x, self.base.weight.to(x.device), self.base.bias)
        x_NI = x.reshape(-1, x.shape[-1])
        if self.folded is None:
            y_NO = self.base(x_NI)
        else:
            y_NO = functional.linear(x_NI, self.folded, self.base.bias)
        if self.frozen_a is not None and self.frozen_b is not None:
            y_NO = _plus(y_NO, functional.linear(x_NI, self.frozen_a), self.frozen_b, 1.0)
        if self.a is not None and self.b is not None:
            h_NR = functional.linear(x_NI, self.a.to(x.dtype))
            if self.core is not None:
                h_NR = functional.linear(h_NR, self.core.to(x.dtype))
            y_NO = _plus(y_NO, h_NR, self.b, self.scale)
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

    def freeze(
        self, name: str, adapters: Sequence[AdapterSource], composition: Composition
    ) -> None:
        """Set the frozen sum to that of the adapters' factors for the layer `name`.

        Nothing is read or computed if it is that already, of the very same adapters.
        """
        wanted = _FrozenSum(adapters, composition)
        if self._frozen is not None and self._frozen.equals(wanted):
            return
        device = self.device
        self.folded = self.frozen_a = self.frozen_b = self._frozen = None
        self._set_base_weight(self.base.weight.detach().to(device))
        self._compute_device = None
        if adapters:
            pairs = [adapter.pair(name) for adapter in adapters]
            self._compose(pairs, [adapter.scale for adapter in adapters], composition)
        # Only now: if memory runs out above, there is no frozen sum.
        self._frozen = wanted

    def _compose(
        self, pairs: Sequence[Pair], scales: Sequence[float], composition: Composition
    ) -> None:
        exact = self.trained_dtype
        a_KI = torch.cat([self._tensor(pair.a, exact) for pair in pairs])
        b_OK = torch.cat(
            [self._tensor(p.b, exact) * scale for p, scale in zip(pairs, scales, strict=True)], 1
        )
        weight_OI = self.base.weight.detach()
        if composition is Composition.FOLD:
            # All at once and rounded once: adding adapter by adapter in bf16 doubles the
            # error, and subtracting one again would not restore the weight.
            self.folded = torch.addmm(weight_OI.to(exact), b_OK, a_KI).to(weight_OI.dtype)
            self._offload_base()
        else:
            # A quantized weight has an integer type; its factors stay in full precision.
            kept = weight_OI.dtype if weight_OI.is_floating_point() else exact
            self.frozen_a, self.frozen_b = a_KI.to(kept), b_OK.to(kept)

    def attach(self, pair: Pair, core: Array | None, scale: float, train: Factor) -> None:
        """Attach `pair` on top of the frozen sum; `train` says which factors are trained."""
        trains_a, trains_b = train in (Factor.A, Factor.BOTH), train in (Factor.B, Factor.BOTH)
        self.a = nn.Parameter(self._tensor(pair.a, self.trained_dtype), trains_a)
        self.b = nn.Parameter(self._tensor(pair.b, self.trained_dtype), trains_b)
        if core is not None:
            self.core = nn.Parameter(self._tensor(core, self.trained_dtype))
        self.scale = scale

    def merge_permanently(self) -> None:
        """Make the folded weight the base weight, and free the original one."""
        if self.folded is not None:
            self._set_base_weight(self.folded)
            self.folded = self._frozen = self._offloaded = self._compute_device = None

    def detach(self) -> None:
        """Detach the pair on top of the frozen sum."""
        self.a = self.b = self.core = None

    @property
    def device(self) -> torch.device:
        """The device that this layer computes on."""
        if self.folded is not None:
            return self.folded.device
        # Kept also when memory ran out on the way back: the next `freeze` can try again.
        return self._compute_device or self.base.weight.device

    @property
    def trained_dtype(self) -> torch.dtype:
        """The dtype of master factors: fp32, or fp64 for an fp64 base (for checks)."""
        exact = self.base.weight.dtype == torch.float64
        return torch.float64 if exact else torch.float32

    def _offload_base(self) -> None:
        # The base weight never changes, so one copy serves for every fold.
        if self._offloaded is None:
            self._offloaded = offload(self.base.weight.detach())
        self._compute_device = self.device
        self._set_base_weight(self._offloaded)

    def _set_base_weight(self, weight_OI: torch.Tensor) -> None:
        if weight_OI.data_ptr() != self.base.weight.data_ptr():
            self.base.weight = nn.Parameter(weight_OI, requires_grad=False)

    def _tensor(self, array: Array, dtype: torch.dtype) -> torch.Tensor:
        # torch.tensor copies: an adapter's arrays are never trained in place.
        return torch.tensor(array, dtype=dtype, device=self.device)


class AdaptedLayers:
    """The layers of a model that adapters attach to, by their paths in it, in its order.

    Attributes:
        weights: the weights that an adapter may change whole; None where it may change none.
    """

    def __init__(
        self, layers: Mapping[str, AdaptedLinear], weights: WeightDeltas | None = None
    ) -> None:
        self.layers, self.weights = dict(layers), weights
        self._added: _FrozenSum | None = None
        self._scale = 1.0

    def freeze_adapters(self, adapters: Sequence[AdapterSource], composition: Composition) -> None:
        """Set the frozen sum to that of `adapters`; none of them restores the base model.

        They are read layer by layer: at most one layer of all of them is in memory.

        Raises:
            BankError: an adapter has a layer or a shape that the model does not have, or can
                no longer be read.
        """
        for adapter in adapters:
            self._check(adapter)
        added = _FrozenSum(adapters, composition)
        changed = self.weights is not None and not (self._added and self._added.equals(added))
        if self.weights is not None and changed:
            # Pairs are folded into weights that have nothing else added.
            self._added = None
            self.weights.restore()
        modules = [(adapter, frozenset(adapter.modules)) for adapter in adapters]
        for name, layer in self.layers.items():
            layer.freeze(name, [adapter for adapter, has in modules if name in has], composition)
        if self.weights is not None and changed:
            self.weights.add(adapters)
            self._added = added

    def attach(self, adapter: Adapter, train: Factor) -> None:
        """Attach `adapter` on top of the frozen sum; its `train` factors are trained.

        One of three factors has them as `three_factors` gives them. Changes of whole weights are
        all trained. The parameters are new ones: make the optimizer afterwards.

        Raises:
            BankError: the adapter has a layer or a shape that the model does not have.
        """
        self._check(adapter)
        self.detach()
        for name, pair in adapter.pairs.items():
            core = adapter.extras.get(AdapterPart.CORE.name_of(name))
            self.layers[name].attach(pair, core, adapter.scale, train)
        self._scale = adapter.scale
        if self.weights is not None:
            deltas = deltas_in(adapter)
            self.weights.attach({name: adapter.extras[extra] for name, extra in deltas.items()})

    def detach(self) -> None:
        """Detach the attached adapter: the base model and its frozen adapters remain."""
        for layer in self.layers.values():
            layer.detach()
        if self.weights is not None:
            self.weights.detach()

    @contextmanager
    def bypassed(self) -> Generator[None]:
        """Compute with the base model alone; frozen and attached adapters are back afterwards."""
        for layer in self.layers.values():
            layer.bypassed = True
        try:
            with nullcontext() if self.weights is None else self.weights.bypassed():
                yield
        finally:
            for layer in self.layers.values():
                layer.bypassed = False

    def attached_pairs(self) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """Return the attached factors (A, B) by layer: the parameters themselves, no copies."""
        return {
            name: (layer.a, layer.b)
            for name, layer in self.layers.items()
            if layer.a is not None and layer.b is not None
        }

    def attached_deltas(self) -> dict[str, nn.Parameter]:
        """Return the attached changes of whole weights by name: the parameters themselves."""
        return {} if self.weights is None else self.weights.attached()

    def attached_factors(self) -> list[nn.Parameter]:
        """Return all attached parameters, in the model's order.

        Of a layer A and B, and R where there is one; then the changes of whole weights.
        """
        layers = self.layers.values()
        factors = [p for layer in layers for p in (layer.a, layer.b, layer.core) if p is not None]
        return [*factors, *self.attached_deltas().values()]

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the attached factors that are trained, in the model's order."""
        return [factor for factor in self.attached_factors() if factor.requires_grad]

    def attached_adapter(self) -> Adapter:
        """Return the attached adapter as float32 arrays, copied."""
        pairs = {name: Pair(_array(a), _array(b)) for name, (a, b) in self.attached_pairs().items()}
        extras = {
            AdapterPart.CORE.name_of(name): _array(layer.core)
            for name, layer in self.layers.items()
            if layer.core is not None
        }
        deltas = self.attached_deltas().items()
        extras |= {f"{DELTA_PREFIX}{name}": _array(delta) for name, delta in deltas}
        return Adapter(pairs, self._scale, extras)

    def layer_shapes(self) -> dict[str, tuple[int, int]]:
        """Return (outputs, inputs) of every layer that adapters attach to."""
        return {
            name: (layer.base.out_features, layer.base.in_features)
            for name, layer in self.layers.items()
        }

    def _check(self, adapter: AdapterSource) -> None:
        if self.weights is not None:
            self.weights.check(adapter)
        elif deltas := deltas_in(adapter):
            raise BankError(
                f"adapter: found the change of a whole weight {next(iter(deltas))}, expected none: "
                "on this base model adapters have low-rank factors"
            )
        shapes, layout = self.layer_shapes(), adapter.layout()
        for name in adapter.modules:
            if name not in shapes:
                raise BankError(
                    f"adapter: found a layer {name}, the base model has none of that name"
                )
            found = (layout[name_of_b(name)][0], layout[name_of_a(name)][1])
            if found != shapes[name]:
                raise BankError(
                    f"adapter, {name}: found {found}, the base model has {shapes[name]}"
                )


def inject_adapter_layers(
    model: nn.Module, targets: str = LORA_TARGETS, name_of: Callable[[str], str] = str
) -> AdaptedLayers:
    """Replace every linear layer whose whole name matches `targets` by an `AdaptedLinear`.

    In place; afterwards no parameter of the model is trained. `name_of` gives what adapters call
    the layer at a path; by default that is its path.

    Raises:
        ModelError: nothing matches.
    """
    model.requires_grad_(False)
    chosen = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(targets, name_of(path))
    ]
    if not chosen:
        raise ModelError(f"base model: found no linear layer that matches {targets}")
    layers: dict[str, AdaptedLinear] = {}
    for path, module in chosen:
        parent, _, last = path.rpartition(".")
        name = name_of(path)
        layers[name] = AdaptedLinear(module)
        setattr(model.get_submodule(parent), last, layers[name])
    return AdaptedLayers(layers)


def merge_permanently(model: nn.Module) -> None:
    """Merge the folded weights into the base model, so that there is one copy of each.

    For a process that does one job: to get the base model back it has to be loaded again.
    """
    for module in model.modules():
        if isinstance(module, AdaptedLinear):
            module.merge_permanently()


def _plus(y_NO: torch.Tensor, h_NR: torch.Tensor, b_OR: torch.Tensor, scale: float) -> torch.Tensor:
    # Fused: no second tensor of outputs is made beside y.
    return torch.addmm(y_NO, h_NR.to(y_NO.dtype), b_OR.to(y_NO.dtype).t(), alpha=scale)


def _array(parameter: torch.Tensor) -> Array:
    return parameter.detach().to("cpu", torch.float32, copy=True).numpy()
