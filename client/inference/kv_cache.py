"""The keys and values of text being written, in room that is taken once.

transformers' own cache joins what it holds and what is new into fresh tensors: every token of
every answer copies all that stands before it. Here a token is written behind the others.
"""
# transformers leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from typing import Final

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from client.model.llava import LlavaModel

#: Tokens that room is taken for at least, beyond those that there are.
_FEW: Final = 16


class PreallocatedLayer(DynamicLayer):
    """One decoder layer's keys and values, (B, H, tokens so far, W): a view of the room.

    B rows, H heads of keys and values, W width of a head. There is room for `room` tokens a
    row at first; more is taken when they are full.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._all_keys: Tensor | None = None
        self._all_values: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """All keys and values so far, these ones behind the others."""
        before = self.get_seq_length()
        length = before + key_states.shape[2]
        if self._all_keys is None or self._all_values is None or length > self._room:
            self._take_room(length, key_states, value_states)
        assert self._all_keys is not None and self._all_values is not None
        self._all_keys[:, :, before:length] = key_states
        self._all_values[:, :, before:length] = value_states
        return self._show(length)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Row `indices[i]` is row i from now on, and no other goes on.

        Only rows that change their place are copied.
        """
        if self._all_keys is None or self._all_values is None:
            return
        there: list[int] = indices.tolist()
        places = [place for place, row in enumerate(there) if place != row]
        if places:
            rows = [there[place] for place in places]
            self._all_keys[places] = self._all_keys[rows]
            self._all_values[places] = self._all_values[rows]
        length = self.get_seq_length()
        self._all_keys = self._all_keys[: len(indices)]
        self._all_values = self._all_values[: len(indices)]
        self._show(length)

    def _take_room(self, length: int, keys: Tensor, values: Tensor) -> None:
        """For `length` tokens and an eighth more, so that taking it stays rare."""
        if length > self._room:
            self._room = length + max(_FEW, length // 8)
        so_far = self.keys, self.values
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._all_keys = _space_like(keys, self._room)
        self._all_values = _space_like(values, self._room)
        if so_far[0] is not None and so_far[1] is not None:
            self._all_keys[:, :, : so_far[0].shape[2]] = so_far[0]
            self._all_values[:, :, : so_far[1].shape[2]] = so_far[1]

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        assert self._all_keys is not None and self._all_values is not None
        self.keys = self._all_keys[:, :, :length]
        self.values = self._all_values[:, :, :length]
        return self.keys, self.values


def preallocated_cache(model: LlavaModel, room: int) -> Cache:
    """An empty cache for the decoder of `model`, with room for so many tokens a row at first."""
    layers = model.network.model.language_model.layers
    return Cache(layers=[PreallocatedLayer(room) for _ in layers])


def keys_and_values(layer: object) -> tuple[Tensor, Tensor]:
    """The keys and values of one layer of a cache that something was read into."""
    assert (
        isinstance(layer, PreallocatedLayer) and layer.keys is not None and layer.values is not None
    )
    return layer.keys, layer.values


def _space_like(states: Tensor, room: int) -> Tensor:
    rows, heads, _, width = states.shape
    # What is not written yet is never looked at.
    return states.new_empty(rows, heads, room, width)
