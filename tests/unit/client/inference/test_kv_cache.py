"""Room for keys and values that is taken ahead, against transformers' own cache."""
# pyright: reportUnknownMemberType=false

import torch
from transformers.cache_utils import DynamicLayer

from client.inference.kv_cache import PreallocatedLayer

ROWS, HEADS, WIDTH = 4, 2, 3


def some(tokens: int, seed: int, rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, HEADS, tokens, WIDTH)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_it_holds_what_transformers_cache_holds_also_when_the_room_is_full():
    ours, theirs = PreallocatedLayer(6), DynamicLayer()
    for step, tokens in enumerate([5, 1, 1, 1, 40, 1]):
        keys, values = some(tokens, step)
        found, expected = ours.update(keys, values), theirs.update(keys, values)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(3) == theirs.get_mask_sizes(3)


def test_one_prompt_longer_than_the_room_fits():
    keys, values = some(50, 0)
    found = PreallocatedLayer(6).update(keys, values)
    assert torch.equal(found[0], keys) and torch.equal(found[1], values)


def test_chosen_rows_go_on_in_the_order_given():
    for chosen in ([0, 1, 2, 3], [0, 3], [3, 1], [2, 0, 1], [3, 2, 1, 0]):
        ours, theirs = PreallocatedLayer(6), DynamicLayer()
        for layer in (ours, theirs):
            layer.update(*some(5, 0))
            layer.batch_select_indices(torch.tensor(chosen))
        for step in range(1, 4):  # the third token needs more room
            new = some(1, step, len(chosen))
            found, expected = ours.update(*new), theirs.update(*new)
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_a_row_that_stays_in_its_place_is_not_copied():
    layer = PreallocatedLayer(8)
    layer.update(*some(5, 0))
    before = layer.keys
    assert before is not None
    layer.batch_select_indices(torch.tensor([0, 3]))
    assert layer.keys is not None and layer.keys.data_ptr() == before.data_ptr()
