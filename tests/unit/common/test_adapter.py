import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from common.adapter import (
    Adapter,
    AdapterSource,
    Pair,
    StoredAdapter,
    arrays,
    finite_fault,
    from_bytes,
    to_bytes,
)
from common.errors import BankError
from common.plan_fields import Precision


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
    assert adapter().layout() == {
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
    changed = {name: v for name, v in named.items() if v is not None}
    blob = save(changed, metadata={"fedmslora": json.dumps({"scale": 1.0})})
    with pytest.raises(BankError, match=f"here: .*{said}"):
        StoredAdapter.in_bytes(blob, "here")


@given(rank=st.integers(1, 4), seed=st.integers(0, 9), extras=st.booleans())
def test_a_blob_in_16_bits_is_read_in_32_and_written_again_as_it_was(
    rank: int, seed: int, extras: bool
):
    before = adapter(rank, seed, extras)
    blob = to_bytes(before, Precision.BF16)
    assert len(blob) < len(to_bytes(before))
    after = from_bytes(blob, "here")
    assert after.layout() == before.layout() and after.scale == before.scale
    assert to_bytes(after, Precision.BF16) == blob
    for name, value in arrays(after).items():
        assert value.dtype == np.float32
        # bfloat16 has 8 significant bits, so a number moves by at most 2^-8 of itself.
        np.testing.assert_allclose(value, arrays(before)[name], rtol=2**-8)


def test_finite_numbers_stay_finite_in_16_bits_and_others_show():
    largest = np.finfo(np.float32).max
    values = np.array([largest, -largest, np.inf, np.nan], np.float32)
    found = from_bytes(to_bytes(Adapter({}, 1.0, {"x": values}), Precision.BF16), "here")
    assert np.isfinite(found.extras["x"]).tolist() == [True, True, False, False]
    assert np.isnan(found.extras["x"]).tolist() == [False, False, False, True]


def test_numbers_of_another_type_are_written_in_32_bits():
    wide = Adapter({"q": Pair(np.full((1, 2), 0.1), np.ones((3, 1), np.float16))}, 1.0)
    found = from_bytes(to_bytes(wide), "here").pairs["q"]
    np.testing.assert_array_equal(found.a, np.full((1, 2), 0.1, np.float32), strict=True)
    np.testing.assert_array_equal(found.b, np.ones((3, 1), np.float32), strict=True)


def test_factors_that_lie_in_memory_in_another_order_are_written_row_by_row():
    before = adapter()
    turned = {
        name: Pair(np.asfortranarray(pair.a), np.ascontiguousarray(pair.b.T).T)
        for name, pair in before.pairs.items()
    }
    assert to_bytes(Adapter(turned, 0.5)) == to_bytes(before)


@pytest.mark.parametrize("wire", Precision)
@given(rank=st.integers(1, 4), seed=st.integers(0, 9), extras=st.booleans())
def test_a_stored_adapter_is_the_one_that_was_stored(
    tmp_path_factory: pytest.TempPathFactory, wire: Precision, rank: int, seed: int, extras: bool
):
    blob = to_bytes(adapter(rank, seed, extras), wire)
    file = tmp_path_factory.mktemp("stored") / "adapter.safetensors"
    file.write_bytes(blob)
    whole = from_bytes(blob, "here")
    for stored in (
        StoredAdapter.in_file(file, "here"), StoredAdapter.in_bytes(blob, "here")
    ):  # fmt: skip
        assert (stored.scale, stored.rank) == (whole.scale, whole.rank)
        assert stored.modules == whole.modules == tuple(whole.pairs)
        assert stored.extra_names == whole.extra_names == tuple(whole.extras)
        assert stored.layout() == whole.layout()
        for module in stored.modules:
            np.testing.assert_array_equal(stored.pair(module).a, whole.pair(module).a, strict=True)
            np.testing.assert_array_equal(stored.pair(module).b, whole.pair(module).b, strict=True)
        for name in stored.extra_names:
            np.testing.assert_array_equal(stored.extra(name), whole.extra(name), strict=True)
        assert equal(stored.loaded(), whole)
        assert to_bytes(stored, wire) == blob


def test_modules_stand_in_one_order_however_the_adapter_was_made():
    """That of the blob's names, where a.b stands before a: 'b' is less than 'lora_A'."""
    one = Pair(np.ones((1, 2), np.float32), np.ones((3, 1), np.float32))
    made = Adapter({"b": one, "a": one, "a.b": one}, 1.0)
    assert made.modules == ("a.b", "a", "b")
    assert StoredAdapter.in_bytes(to_bytes(made), "here").modules == made.modules


def test_of_a_file_no_more_is_held_than_what_was_asked_for(tmp_path: Path):
    count, square = 40, np.ones((64, 4096), np.float32)
    big = Adapter({f"q{i}": Pair(square, square.T) for i in range(count)}, 1.0)
    file = tmp_path / "adapter.safetensors"
    file.write_bytes(to_bytes(big, Precision.BF16))
    tracemalloc.start()
    try:
        stored = StoredAdapter.in_file(file, "here")
        assert tracemalloc.get_traced_memory()[1] < 200_000
        for module in stored.modules:
            assert stored.pair(module).a[0, 0] == 1.0
        # A layer in 32 bits has 2 MB; 40 of them would have 80.
        assert tracemalloc.get_traced_memory()[1] < 4 * 2 * square.nbytes
    finally:
        tracemalloc.stop()


def test_a_file_that_is_cut_off_or_gone_is_refused_by_its_source(tmp_path: Path):
    file = tmp_path / "adapter.safetensors"
    with pytest.raises(BankError, match=r"site a: can't be read \(No such file or directory\)"):
        StoredAdapter.in_file(file, "site a")
    blob = to_bytes(adapter(), Precision.BF16)
    for length in range(0, len(blob), 7):
        file.write_bytes(blob[:length])
        with pytest.raises(BankError, match="site a: not an adapter"):
            StoredAdapter.in_file(file, "site a")
    file.write_bytes(blob)
    stored = StoredAdapter.in_file(file, "site a")
    os.truncate(file, len(blob) - 1)
    with pytest.raises(BankError, match="site a: cut off while it was read"):
        stored.loaded()
    file.unlink()
    with pytest.raises(BankError, match="site a: can't be read"):
        stored.pair("model.layers.0.q")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (None, "its scale is missing"),
        ({"fedmslora": "{}"}, "its scale is missing"),
        ({"fedmslora": "[1]"}, "its scale is missing"),
        ({"fedmslora": '{"scale": "1_6"}'}, "found the scale 1_6, expected a finite number"),
        ({"fedmslora": '{"scale": true}'}, "found the scale True, expected a finite number"),
        ({"fedmslora": f'{{"scale": {10**400}}}'}, f"found the scale {10**39}, expected a finite"),
        ({"fedmslora": "[" * 100_000}, "its scale is missing"),
        ({"fedmslora": '{"scale": NaN}'}, "found the scale nan, expected a finite number"),
        ({"fedmslora": '{"scale": 1e999}'}, "found the scale inf, expected a finite number"),
    ],
)
def test_a_blob_without_a_scale_is_refused(metadata: dict[str, str] | None, said: str):
    with pytest.raises(BankError, match=f"site a: .*{said}"):
        from_bytes(save(arrays(adapter()), metadata=metadata), "site a")


A_NAME = "base_model.model.model.layers.1.q.lora_A.weight"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("name", [A_NAME, A_NAME.replace("_A", "_B"), "extras.prompt"])
def test_the_first_array_that_is_not_finite_is_named(value: float, stored: bool, name: str):
    whole = adapter(extras=True)
    assert finite_fault(whole) is None
    arrays(whole)[name].flat[-1] = value
    source: AdapterSource = whole
    if stored:
        source = StoredAdapter.in_bytes(to_bytes(whole, Precision.BF16), "here")
    assert finite_fault(source) == f"{name} has a value that is not finite"


def test_a_scale_that_is_not_finite_is_named():
    assert finite_fault(Adapter({}, np.nan)) == "its scale is nan, expected a finite number"
