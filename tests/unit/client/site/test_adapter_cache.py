"""Adapters that stay in memory from one order to the next."""

from pathlib import Path

import numpy as np
import pytest

from client.site import blob_store
from client.site.adapter_cache import AdapterCache
from common.adapter import Adapter, Pair, to_bytes
from common.errors import BankError, SiteFailed
from common.plan_fields import Precision


def stored(folder: Path, number: float) -> str:
    pair = Pair(np.full((1, 3), number, np.float32), np.full((2, 1), number, np.float32))
    return blob_store.put(folder, to_bytes(Adapter({"layer": pair}, 1.0), Precision.FP32))


def test_an_adapter_asked_twice_is_the_same_object_with_what_was_stored(tmp_path: Path):
    cache, digest = AdapterCache(), stored(tmp_path, 3.0)
    first = cache.get(tmp_path, digest, "release 1")
    np.testing.assert_array_equal(first.pair("layer").a, np.full((1, 3), 3.0, np.float32))
    assert cache.get(tmp_path, digest, "release 1") is first


def test_what_an_order_does_not_name_is_let_go(tmp_path: Path):
    cache, digests = AdapterCache(), [stored(tmp_path, number) for number in (1.0, 2.0)]
    first, second = (cache.get(tmp_path, digest, "release") for digest in digests)
    cache.keep_only(tmp_path, digests[1:])
    assert cache.get(tmp_path, digests[1], "release") is second
    assert cache.get(tmp_path, digests[0], "release") is not first


def test_another_sites_store_is_another_adapter(tmp_path: Path):
    cache, digest = AdapterCache(), stored(tmp_path / "north", 1.0)
    cache.get(tmp_path / "north", digest, "release")
    with pytest.raises(SiteFailed, match="found no blob"):
        cache.get(tmp_path / "south", digest, "release")


def test_an_adapter_that_is_removed_from_the_store_is_not_had_from_memory(tmp_path: Path):
    cache, digest = AdapterCache(), stored(tmp_path, 1.0)
    cache.get(tmp_path, digest, "release")
    blob_store.keep_only(tmp_path, [], grace_s=-1.0)
    for _ in range(2):
        with pytest.raises(SiteFailed, match="found no blob"):
            cache.get(tmp_path, digest, "release")


def test_a_blob_that_is_no_adapter_is_refused_by_its_name(tmp_path: Path):
    digest = blob_store.put(tmp_path, b"no adapter")
    with pytest.raises(BankError, match=f"release 2 {digest[:12]}"):
        AdapterCache().get(tmp_path, digest, "release 2")


def test_an_adapter_whose_blob_was_written_again_is_not_had_from_memory(tmp_path: Path):
    cache, digest = AdapterCache(), stored(tmp_path, 1.0)
    cache.get(tmp_path, digest, "release")
    file = tmp_path / "blobs" / digest
    file.write_bytes(file.read_bytes()[:-1] + b"?!")
    with pytest.raises(SiteFailed, match="the damaged blob is removed"):
        cache.get(tmp_path, digest, "release")
    stored(tmp_path, 1.0)
    assert cache.get(tmp_path, digest, "release").pair("layer").a[0, 0] == 1.0
