"""Changes of a model's own weights, W + delta, of any parameter: attached with gradient, or added.

Where deltas are attached a weight is computed at every use, base + delta in full precision, rounded
once to the base's type; the delta is what an optimizer sees, so a step that is smaller than the
rounding of a bf16 weight is not lost. What is added without gradient has the base beside it, whose
bits come back.
"""
# torch leaves parts of its interface untyped.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from client.model.offload import offload
from common.adapter import DELTA_PREFIX, EXTRA_PREFIX, AdapterSource, deltas_in
from common.errors import BankError
from common.tensors import Array

#: Where an adapted layer keeps its linear layer (client/model/lora.py).
_INNER: Final = ".base"


class _Delta(nn.Module):
    """Computes a weight from its base."""

    def __init__(self, delta: Tensor) -> None:
        super().__init__()
        self.delta = nn.Parameter(delta)
        self.bypassed = False

    def forward(self, base: Tensor) -> Tensor:
        """Return base + delta, of the base's type."""
        if self.bypassed:
            return base
        return (base.to(self.delta.dtype) + self.delta).to(base.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class _Slot:
    """The place of a weight in a model: a module and the name of its parameter."""

    module: nn.Module
    name: str

    @property
    def computed(self) -> bool:
        """Whether a delta is attached here."""
        return parametrize.is_parametrized(self.module, self.name)

    @property
    def base(self) -> nn.Parameter:
        """The stored weight, whatever is attached to it."""
        return cast(nn.Parameter, getattr(*self._place()))

    def set_base(self, weight: nn.Parameter) -> None:
        """Store another weight."""
        setattr(*self._place(), weight)

    def attached(self) -> _Delta:
        """Return what is attached here."""
        parametrizations: Any = self.module.parametrizations
        return parametrizations[self.name][0]

    def _place(self) -> tuple[Any, str]:
        if self.computed:
            parametrizations: Any = self.module.parametrizations
            return parametrizations[self.name], "original"
        return self.module, self.name


class WeightDeltas:
    """All weights of a model whose whole change an adapter may have, by name, in its order."""

    def __init__(self, model: nn.Module, name_of: Callable[[str], str] = str) -> None:
        """Take the parameters of `model`; `name_of` gives what adapters call the module at a path.

        A linear layer inside an adapted one counts as at the path of that. Parameters of the
        model itself, as the scale of a CLIP's similarities, are not among them.
        """
        self._slots: dict[str, _Slot] = {}
        for path, module in model.named_modules():
            for name, _ in module.named_parameters(recurse=False):
                if path:
                    known = f"{name_of(path.removesuffix(_INNER))}.{name}"
                    self._slots[known] = _Slot(module, name)
        #: Copies of the base's weights, which never change, of those that ever had something added.
        self._offloaded: dict[str, Tensor] = {}
        self._added: list[str] = []

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight."""
        return {name: tuple(slot.base.shape) for name, slot in self._slots.items()}

    def check(self, adapter: AdapterSource) -> None:
        """Check that the model has the weights that the adapter changes, in their shapes.

        Raises:
            BankError: it has not.
        """
        layout = adapter.layout()
        for name in deltas_in(adapter):
            if name not in self._slots:
                raise BankError(
                    f"adapter: found the change of a weight {name}, the base model has none of "
                    "that name"
                )
            found = layout[f"{EXTRA_PREFIX}{DELTA_PREFIX}{name}"]
            own = tuple(self._slots[name].base.shape)
            if found != own:
                raise BankError(f"adapter, {name}: found {found}, the base model has {own}")

    def add(self, adapters: Sequence[AdapterSource]) -> None:
        """Set every weight to its base plus the deltas of `adapters`, summed and rounded once."""
        self.restore()
        named = [(adapter, deltas_in(adapter)) for adapter in adapters]
        for name in dict.fromkeys(name for _, deltas in named for name in deltas):
            slot = self._slots[name]
            base = slot.base
            total = base.detach().to(_exact(base))
            for adapter, deltas in named:
                if name in deltas:
                    total = total + _tensor(adapter.extra(deltas[name]), base)
            if name not in self._offloaded:
                self._offloaded[name] = offload(base.detach())
            self._added.append(name)
            slot.set_base(nn.Parameter(total.to(base.dtype), requires_grad=False))

    def restore(self) -> None:
        """Bring back the bits of every weight to which something was added."""
        for name in self._added:
            self._set_original(name)
        self._added.clear()

    def attach(self, deltas: Mapping[str, Array]) -> None:
        """Attach deltas by weight; each becomes a parameter, in full precision."""
        for name, slot in self._slots.items():
            if name in deltas:
                delta = _Delta(_tensor(deltas[name], slot.base))
                # Otherwise torch computes each weight once more, to look at its shape.
                parametrize.register_parametrization(slot.module, slot.name, delta, unsafe=True)

    def detach(self) -> None:
        """Detach all deltas; the weights have the bits that they had."""
        for slot in self._slots.values():
            if slot.computed:
                parametrize.remove_parametrizations(
                    slot.module, slot.name, leave_parametrized=False
                )

    def attached(self) -> dict[str, nn.Parameter]:
        """Return the attached deltas by weight: the parameters themselves, no copies."""
        return {n: slot.attached().delta for n, slot in self._slots.items() if slot.computed}

    @contextmanager
    def bypassed(self) -> Generator[None]:
        """Compute with the base's weights alone; what is added or attached is back afterwards."""
        added = {name: self._slots[name].base for name in self._added}
        attached = [slot.attached() for slot in self._slots.values() if slot.computed]
        try:
            for delta in attached:
                delta.bypassed = True
            for name in added:
                self._set_original(name)
            yield
        finally:
            for name, weight in added.items():
                self._slots[name].set_base(weight)
            for delta in attached:
                delta.bypassed = False

    def _set_original(self, name: str) -> None:
        slot = self._slots[name]
        base = self._offloaded[name].to(slot.base.device)
        slot.set_base(nn.Parameter(base, requires_grad=False))


def _exact(base: Tensor) -> torch.dtype:
    return torch.promote_types(base.dtype, torch.float32)


def _tensor(array: Array, base: Tensor) -> Tensor:
    # torch.tensor copies: an adapter's arrays are never trained in place.
    return torch.tensor(array, dtype=_exact(base), device=base.device)
