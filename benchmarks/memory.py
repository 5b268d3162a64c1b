"""What a piece of work asks of torch: the bytes of tensors it holds at a time, its operations.

Of bytes, counted is every storage in memory that an operation returns, until torch lets go of it;
what an operation takes for itself and gives back before it returns is not seen. The same
work gives the same count on every machine, which the resident size of a process does not.
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


class Held(TorchDispatchMode):
    """While it is entered, bytes of new storages: those `held` now, and the `peak` of them."""

    def __init__(self) -> None:
        super().__init__()
        self.held = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """torch's hook: called in place of every operation, in the backward pass, too."""
        # An array that becomes a tensor is new; it comes to `lift_fresh` before anything else.
        if func is not torch.ops.aten.lift_fresh.default:
            self._know((args, kwargs), counted=False)
        found = func(*args, **(kwargs or {}))
        # A view, and what is written in place, returns a storage that is known already; and
        # what is in a file is in no memory.
        self._know(found, counted=func is not torch.ops.aten.from_file.default)
        self.peak = max(self.peak, self.held)
        return found

    def _know(self, tree: object, counted: bool) -> None:
        for leaf in tree_leaves(tree):
            if not isinstance(leaf, torch.Tensor):
                continue
            storage = leaf.untyped_storage()
            key = storage._cdata  # pyright: ignore[reportPrivateUsage]  # its address; no public name
            if key not in self._known:
                size = storage.nbytes() if counted else 0
                self._known.add(key)
                self.held += size
                # torch keeps a storage's Python object for as long as the storage itself lives.
                weakref.finalize(storage, self._let_go, key, size).atexit = False

    def _let_go(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size


class Operations(TorchDispatchMode):
    """While it is entered: `names` of the operations that compute something, and how many `views`.

    A view costs the processor's time alone; no kernel runs for it.
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
        """torch's hook: called in place of every operation, in the backward pass, too."""
        if func.is_view:
            self.views += 1
        else:
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes of new tensors that `work` holds at a time."""
    # What earlier work left in cycles would be let go of in this one's time.
    gc.collect()
    with Held() as counted:
        work()
    return counted.peak
