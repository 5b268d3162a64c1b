"""A KV cache that is allocated in advance.

transformers' own cache concatenates old and new keys and values into new tensors: every token
of every answer copies all before it. Here a token is written in place, after the others.
"""
# transformers leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from typing import Final

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from client.model.llava import LlavaModel

#: The least number of tokens that a full cache grows by.
_MIN_GROWTH: Final = 16


class PreallocatedLayer(DynamicLayer):
    """One decoder layer's keys and values (B, H, tokens so far, W), views of larger tensors.

    B rows, H key-value heads, W width of a head. The tensors are allocated for `capacity`
    tokens per row at first, and grow when full.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._all_keys: Tensor | None = None
        self._all_values: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values, and return all so far."""
        before = self.get_seq_length()
        length = before + key_states.shape[2]
        if self._all_keys is None or self._all_values is None or length > self._capacity:
            self._grow(length, key_states, value_states)
        assert self._all_keys is not None and self._all_values is not None
        self._all_keys[:, :, before:length] = key_states
        self._all_values[:, :, before:length] = value_states
        return self._view(length)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows `indices`, in this order; copy only those that move."""
        if self._all_keys is None or self._all_values is None:
            return
        kept: list[int] = indices.tolist()
        moved = [place for place, row in enumerate(kept) if place != row]
        if moved:
            rows = [kept[place] for place in moved]
            self._all_keys[moved] = self._all_keys[rows]
            self._all_values[moved] = self._all_values[rows]
        length = self.get_seq_length()
        self._all_keys = self._all_keys[: len(indices)]
        self._all_values = self._all_values[: len(indices)]
        self._view(length)

    def _grow(self, length: int, keys: Tensor, values: Tensor) -> None:
        """Allocate for `length` tokens and an eighth more, so that this stays rare."""
        if length > self._capacity:
            self._capacity = length + max(_MIN_GROWTH, length // 8)
        previous = self.keys, self.values
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._all_keys = _empty_like(keys, self._capacity)
        self._all_values = _empty_like(values, self._capacity)
        if previous[0] is not None and previous[1] is not None:
            self._all_keys[:, :, : previous[0].shape[2]] = previous[0]
            self._all_values[:, :, : previous[1].shape[2]] = previous[1]

    def _view(self, length: int) -> tuple[Tensor, Tensor]:
        assert self._all_keys is not None and self._all_values is not None
        self.keys = self._all_keys[:, :, :length]
        self.values = self._all_values[:, :, :length]
        return self.keys, self.values


def preallocated_cache(model: LlavaModel, capacity: int) -> Cache:
    """Return an empty KV cache for the decoder, allocated for `capacity` tokens per row."""
    layers = model.network.model.language_model.layers
    return Cache(layers=[PreallocatedLayer(capacity) for _ in layers])


def keys_and_values(layer: object) -> tuple[Tensor, Tensor]:
    """Return the keys and values of one layer of a cache that is not empty."""
    assert (
        isinstance(layer, PreallocatedLayer) and layer.keys is not None and layer.values is not None
    )
    return layer.keys, layer.values


def _empty_like(states: Tensor, capacity: int) -> Tensor:
    rows, heads, _, width = states.shape
    # Uninitialized: only the view of what has been written is read.
    return states.new_empty(rows, heads, capacity, width)
