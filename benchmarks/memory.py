"""Counts what a piece of work does in torch: the bytes of tensors alive at a time, its operations.

Bytes are those of every storage that an operation returns, until torch frees it; workspace that
an operation allocates and frees before it returns is not counted. The same work gives the same
count on every machine, unlike the resident size of a process.
"""
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

import gc
import weakref
from collections.abc import Callable, Mapping

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorBytes(TorchDispatchMode):
    """While it is entered, counts the bytes of new storages: alive now, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Handle one operation: torch calls this for each, in the backward pass, too."""
        # An array that becomes a tensor is new; `lift_fresh` is the first operation on it.
        if func is not torch.ops.aten.lift_fresh.default:
            self._add((args, kwargs), counted=False)
        found = func(*args, **(kwargs or {}))
        # A view or an in-place operation returns a storage that is known already, and a storage
        # that maps a file takes no memory.
        self._add(found, counted=func is not torch.ops.aten.from_file.default)
        self.peak = max(self.peak, self.alive)
        return found

    def _add(self, tree: object, counted: bool) -> None:
        for leaf in tree_leaves(tree):
            if not isinstance(leaf, torch.Tensor):
                continue
            storage = leaf.untyped_storage()
            key = storage._cdata  # pyright: ignore[reportPrivateUsage]  # its address; no public name
            if key not in self._known:
                size = storage.nbytes() if counted else 0
                self._known.add(key)
                self.alive += size
                # torch keeps a storage's Python object for as long as the storage itself lives.
                weakref.finalize(storage, self._freed, key, size).atexit = False

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


class OperationCounter(TorchDispatchMode):
    """While it is entered, collects the `names` of operations, and counts the `views`.

    A view costs only CPU time; no kernel runs for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.views = 0

    def __torch_dispatch__(
        self,
        func: OpOverload[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Handle one operation: torch calls this for each, in the backward pass, too."""
        if func.is_view:
            self.views += 1
        else:
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most bytes of new tensors that are alive at a time during `work`."""
    # What earlier work left in reference cycles would be freed during this one.
    gc.collect()
    with TensorBytes() as counted:
        work()
    return counted.peak
