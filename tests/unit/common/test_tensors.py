"""Blobs against the safetensors library, bfloat16 against torch's."""

import json
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.errors import BankError
from common.plan_fields import Precision
from common.tensors import (
    Array,
    ReadBytes,
    TensorWriter,
    read_array,
    read_header,
    round_into,
    widen,
)

names = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=12
).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
#: Any float32 whatever: bits drawn, not numbers.
bits = st.integers(0, 2**32 - 1)


def single(*numbers: int) -> Array:
    return np.array(numbers, np.uint32).view(np.float32)


def filled(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    return {
        name: np.asarray(draw.standard_normal(shape), np.float32) for name, shape in shapes.items()
    }


def written(named: Mapping[str, Array], precision: Precision = Precision.FP32) -> bytes:
    writer = TensorWriter({k: v.shape for k, v in named.items()}, precision, {"who": "us"})
    for name in reversed(list(named)):
        writer.put(name, named[name])
    return writer.blob()


def reader(blob: bytes) -> ReadBytes:
    return lambda offset, count: blob[offset : offset + count]


def read(blob: bytes) -> dict[str, Array]:
    header = read_header(reader(blob), len(blob), "here")
    return {
        name: read_array(reader(blob), tensor, "here") for name, tensor in header.tensors.items()
    }


def with_header(entries: object, data: bytes = bytes(8)) -> bytes:
    text = entries if isinstance(entries, str) else json.dumps(entries)
    return len(text.encode()).to_bytes(8, "little") + text.encode() + data


def entry(shape: object = (2,), offsets: object = (0, 8), kind: object = "F32") -> object:
    return {"dtype": kind, "shape": shape, "data_offsets": offsets}


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(names, shapes, max_size=4))
def test_a_blob_is_byte_for_byte_the_librarys(shapes: dict[str, tuple[int, ...]]):
    named = filled(shapes)
    assert written(named) == save(named, metadata={"who": "us"})
    halves = {name: torch.from_numpy(value).bfloat16() for name, value in named.items()}  # pyright: ignore[reportUnknownMemberType]
    assert written(named, Precision.BF16) == safetensors.torch.save(halves, {"who": "us"})


@given(st.dictionaries(names, shapes, max_size=4))
def test_32_bits_come_back_as_they_went(shapes: dict[str, tuple[int, ...]]):
    named = filled(shapes)
    found = read(written(named))
    assert found.keys() == named.keys()
    for name, value in named.items():
        np.testing.assert_array_equal(found[name], value, strict=True)
        assert found[name].flags.writeable


def test_half_precision_of_others_is_read_exactly():
    halves = np.array([[1.5, -0.0], [65504, 6e-8]], np.float16)
    found = read(save({"x": halves}))["x"]
    np.testing.assert_array_equal(found, halves.astype(np.float32), strict=True)


def rounded(value: Array) -> npt.NDArray[np.uint16]:
    found = np.empty(value.shape, np.uint16)
    round_into(value, found)
    return found


def widened(half: npt.NDArray[np.uint16]) -> Array:
    found = np.empty(half.shape, np.float32)
    widen(half, found)
    return found


@settings(max_examples=300, deadline=None)
@given(st.lists(bits, min_size=1, max_size=30))
@example([0x7F7F8000, 0xFF7FFFFF, 0x7F800001, 0xFFFFFFFF, 0x7FC00000, 0x7F800000, 0x80000001])
def test_rounding_is_torchs_but_for_what_it_makes_infinite(numbers: list[int]):
    before = single(*numbers)
    found = widened(rounded(before))
    theirs = torch.from_numpy(before.copy()).bfloat16().float().numpy()  # pyright: ignore[reportUnknownMemberType]
    same = np.isfinite(theirs) | ~np.isfinite(before)
    np.testing.assert_array_equal(found[same], theirs[same])
    np.testing.assert_array_equal(np.signbit(found[same]), np.signbit(before[same]))
    largest = float.fromhex("0x1.fep127")
    np.testing.assert_array_equal(found[~same], np.copysign(largest, before[~same]))


@given(st.lists(bits, min_size=1, max_size=30))
def test_rounding_twice_changes_nothing(numbers: list[int]):
    once = rounded(single(*numbers))
    np.testing.assert_array_equal(rounded(widened(once)), once)


def test_a_tie_goes_to_the_even_neighbour_by_hand():
    # bfloat16 keeps 7 bits behind the point: 1 + 1/256 lies between 1 and 1 + 1/128.
    values = np.array([1 + 1 / 256, 1 + 3 / 256, 1 + 1 / 256 + 1 / 65536], np.float32)
    np.testing.assert_array_equal(widened(rounded(values)), [1, 1 + 2 / 128, 1 + 1 / 128])


@pytest.mark.parametrize(
    ("blob", "said"),
    [
        (b"", "found a header of 0 bytes in 0"),
        (b"nonsense", "found a header of"),
        (with_header({})[:-5], "found 13 bytes, expected 10"),
        (with_header("[]"), "not a JSON object"),
        (with_header('{"a": 1'), "Expecting"),
        (with_header("{" + '"a":[' * 100_000), ""),
        (with_header({"x": 3}), "'x' has no type, shape or place"),
        (with_header({"x": entry(offsets=[0])}), "'x' has no type, shape or place"),
        (with_header({"x": entry(kind="I64")}), "'x' has type 'I64', expected one of F32, F16,"),
        (with_header({"x": entry(shape=[True, 2])}), "not made of whole numbers"),
        (with_header({"x": entry(shape=[2.0])}), "not made of whole numbers"),
        (with_header({"x": entry(offsets=[-8, 0])}), "not made of whole numbers"),
        (with_header({"x": entry(shape=[2**70])}), "not made of whole numbers"),
        (with_header({"x": entry(shape=[0, 2**60], offsets=[0, 0])}), "a shape that no adapter"),
        (with_header({"x": entry(shape=[1] * 9)}), "a shape that no adapter"),
        (with_header({"x": entry(shape=[3])}), "'x' has 8 bytes, which do not fit its shape"),
        (
            with_header({"x": entry(shape=[2**40], offsets=[0, 2**42])}),
            "found 101 bytes, expected 4398",
        ),
        (with_header({"x": entry(), "y": entry()}), "'y' begins at byte"),
        (with_header({"x": entry(), "y": entry([1], [12, 16])}, bytes(16)), "'y' begins at byte"),
        (with_header({"x": entry()}, bytes(9)), "bytes, expected"),
        (with_header({"x": entry()}, bytes(7)), "bytes, expected"),
        (with_header({"x" * 600: entry()}), "a name of 600 letters"),
        (with_header('{"\\ud800": 1}'), "a name of 1 letters, expected at most 200, of ASCII"),
        (with_header('{"x": 1, "x": 2}'), "found a name twice"),
        (with_header({"__metadata__": {"a": 1}}), "metadata that is not text"),
        (with_header({"__metadata__": []}), ""),
        ((2**62).to_bytes(8, "little") + b"{}", "a header of 4611686018427387904 bytes in 10"),
    ],
)
def test_what_is_no_blob_is_refused_from_its_header_alone(blob: bytes, said: str):
    with pytest.raises(BankError) as refusal:
        read_header(reader(blob), len(blob), "site a")
    assert str(refusal.value).startswith("site a: not an adapter in safetensors: ")
    assert said in str(refusal.value)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_what_the_library_refuses_we_refuse(place: int, change: int):
    blob = written(filled({"a": (2, 3), "b": (4,)}))
    place %= len(blob)
    spoilt = blob[:place] + bytes([blob[place] ^ change]) + blob[place + 1 :]
    try:
        theirs = load(spoilt)
    except SafetensorError:
        with pytest.raises(BankError):
            read(spoilt)
        return
    try:
        ours = read(spoilt)
    except BankError:
        return
    assert ours.keys() == theirs.keys()


def test_a_blob_cut_off_anywhere_is_refused():
    blob = written(filled({"a": (2, 3), "b": (4,)}), Precision.BF16)
    for length in range(len(blob)):
        with pytest.raises(BankError):
            read(blob[:length])


def test_a_blob_that_shrinks_while_it_is_read_is_said_to_be_cut_off():
    blob = written(filled({"a": (2, 3)}))
    tensor = read_header(reader(blob), len(blob), "here").tensors["a"]
    with pytest.raises(BankError, match="site a: cut off while it was read"):
        read_array(reader(blob[:-1]), tensor, "site a")
