import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from common.adapter import Adapter, Pair, arrays, from_arrays, from_bytes, layout, to_bytes
from common.errors import BankError


def adapter(rank: int = 2, seed: int = 0, extras: bool = False) -> Adapter:
    rng = np.random.default_rng(seed)

    def pair(inputs: int, outputs: int) -> Pair:
        return Pair(
            rng.normal(size=(rank, inputs)).astype(np.float32),
            rng.normal(size=(outputs, rank)).astype(np.float32),
        )

    return Adapter(
        {"model.layers.0.q": pair(3, 4), "model.layers.1.q": pair(5, 2)},
        0.5,
        {"prompt": np.ones(3, np.float32)} if extras else {},
    )


def equal(left: Adapter, right: Adapter) -> bool:
    mine, other = arrays(left), arrays(right)
    return (
        left.scale == right.scale
        and list(mine) == list(other)
        and all(np.array_equal(mine[name], other[name]) for name in mine)
    )


@given(rank=st.integers(1, 4), seed=st.integers(0, 9), extras=st.booleans())
def test_bytes_come_back_as_they_went(rank: int, seed: int, extras: bool):
    before = adapter(rank, seed, extras)
    assert equal(from_bytes(to_bytes(before), "here"), before)
    assert to_bytes(from_bytes(to_bytes(before), "here")) == to_bytes(before)


def test_the_names_are_those_that_peft_reads():
    assert layout(adapter()) == {
        "base_model.model.model.layers.0.q.lora_A.weight": (2, 3),
        "base_model.model.model.layers.0.q.lora_B.weight": (4, 2),
        "base_model.model.model.layers.1.q.lora_A.weight": (2, 5),
        "base_model.model.model.layers.1.q.lora_B.weight": (2, 2),
    }


def test_the_blob_is_plain_safetensors():
    named = load(to_bytes(adapter()))
    np.testing.assert_array_equal(
        named["base_model.model.model.layers.0.q.lora_A.weight"],
        adapter().pairs["model.layers.0.q"].a,
    )


def test_an_adapter_without_layers_has_rank_zero():
    assert Adapter({}, 1.0).rank == 0


@pytest.mark.parametrize("blob", [b"", b"nonsense", save({"x": np.zeros(2, np.float32)})])
def test_what_is_no_adapter_is_refused_by_its_source(blob: bytes):
    with pytest.raises(BankError, match="site a: not an adapter"):
        from_bytes(blob, "site a")


def test_a_cut_blob_is_refused():
    blob = to_bytes(adapter())
    for length in range(0, len(blob), 7):
        with pytest.raises(BankError):
            from_bytes(blob[:length], "here")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_model.model.model.layers.0.q.lora_B.weight": None}, "a factor A and no factor B"),
        ({"base_model.model.model.layers.0.q.lora_A.weight": None}, "belongs to no pair"),
        ({"other": np.zeros(1, np.float32)}, "found an array 'other'"),
        (
            {"base_model.model.model.layers.0.q.lora_B.weight": np.zeros((4, 3), np.float32)},
            r"has A \(2, 3\) and B \(4, 3\)",
        ),
        (
            {
                "base_model.model.model.layers.1.q.lora_A.weight": np.zeros((1, 5), np.float32),
                "base_model.model.model.layers.1.q.lora_B.weight": np.zeros((2, 1), np.float32),
            },
            "has rank 1, expected 2",
        ),
    ],
)
def test_factors_that_do_not_fit_are_named(change: dict[str, np.ndarray | None], said: str):
    named = {**arrays(adapter()), **change}
    with pytest.raises(BankError, match=said):
        from_arrays({name: v for name, v in named.items() if v is not None}, 1.0, "here")
