"""An array's numbers, had part by part: those of the whole, from memory, a blob or a file."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.adapter import Adapter, Pair, StoredAdapter, name_of_a, name_of_b, to_bytes
from common.array_reader import ArrayReader, in_memory, read_all
from common.errors import BankError
from common.plan_fields import Precision

A = np.arange(21, dtype=np.float32).reshape(3, 7)
#: As torch keeps it transposed: its rows don't lie one behind the other.
B = np.arange(100, 115, dtype=np.float32).reshape(3, 5).T
ONE = Adapter({"q": Pair(A, B)}, 1.0, {"prompt": np.arange(6, dtype=np.float32).reshape(1, 2, 3)})
EXPECTED = {name_of_a("q"): A, name_of_b("q"): B, "extras.prompt": ONE.extras["prompt"]}

Kind = Callable[[Path], Adapter | StoredAdapter]


def _in_memory(_: Path) -> Adapter:
    return ONE


def _in_bytes(_: Path) -> StoredAdapter:
    return StoredAdapter.in_bytes(to_bytes(ONE), "here")


def _in_file(folder: Path, wire: Precision = Precision.FP32) -> StoredAdapter:
    file = folder / f"adapter-{wire}"
    file.write_bytes(to_bytes(ONE, wire))
    return StoredAdapter.in_file(file, "site a")


def _in_16_bits(folder: Path) -> StoredAdapter:
    return _in_file(folder, Precision.BF16)


@pytest.mark.parametrize("kind", [_in_memory, _in_bytes, _in_file, _in_16_bits])
@given(begin=st.integers(0, 20), count=st.integers(1, 20))
def test_parts_and_columns_are_those_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, kind: Kind, begin: int, count: int
):
    source = kind(tmp_path_factory.mktemp("numbers"))
    for name, array in EXPECTED.items():
        numbers = source.reader(name)
        assert numbers.shape == array.shape
        np.testing.assert_array_equal(read_all(numbers), array)
        size = math.prod(array.shape)
        part = min(begin, size - 1), min(begin + count, size)
        np.testing.assert_array_equal(numbers.flat(*part), array.reshape(-1)[slice(*part)])
        out = np.empty(part[1] - part[0], np.float32)
        numbers.read_into(*part, out)
        np.testing.assert_array_equal(out, array.reshape(-1)[slice(*part)])
        if array.ndim == 2:
            across = array.shape[1]
            columns = begin % across, min(begin % across + count, across)
            np.testing.assert_array_equal(numbers.columns(*columns), array[:, slice(*columns)])


def test_a_single_number_has_no_shape_and_is_still_had():
    assert read_all(in_memory(np.array(4, np.float32))).shape == ()


def _flat(numbers: ArrayReader) -> object:
    return numbers.flat(10, 21)


def _columns(numbers: ArrayReader) -> object:
    return numbers.columns(2, 6)


@pytest.mark.parametrize("reading", [_flat, _columns])
def test_a_file_that_is_cut_off_or_gone_later_is_refused_by_its_source(
    tmp_path: Path, reading: Callable[[ArrayReader], object]
):
    numbers = _in_file(tmp_path).reader(name_of_a("q"))
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[: numbers.tensor.end - 8])  # pyright: ignore
    with pytest.raises(BankError, match="site a: cut off while it was read"):
        reading(numbers)
    file.unlink()
    with pytest.raises(BankError, match=r"site a: can't be read \(No such file or directory\)"):
        reading(numbers)
