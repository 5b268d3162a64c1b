"""What a site sends is counted while it comes."""

import tracemalloc
from pathlib import Path

import pytest
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, pull_objects

from server.message_bound import TOO_LARGE, bounded, most_reply_bytes
from server.run.folder import Blobs, RunFolder
from tests.unit.client.site.test_policy import PLAN

PART = 2**20


def test_a_message_within_the_bound_comes_whole():
    pull = bounded(pull_objects, lambda: 3 * PART)

    def part(name: str) -> bytes:
        return name.encode() * PART

    found = pull(object_ids=["a", "b", "c"], pull_object_fn=part)
    assert {name: len(content) for name, content in found.items()} == dict.fromkeys("abc", PART)


def test_of_300_mb_no_more_than_the_bound_is_taken():
    pulled: list[str] = []

    def part(name: str) -> bytes:
        pulled.append(name)
        return bytes(PART)

    tracemalloc.start()
    with pytest.raises(ObjectPullError, match=TOO_LARGE):
        bounded(pull_objects, lambda: 10 * PART)(
            object_ids=[str(number) for number in range(300)], pull_object_fn=part
        )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * PART
    assert len(pulled) < 20


def test_a_message_of_too_many_parts_is_refused_however_small_they_are():
    names = [str(number) for number in range(10_001)]
    pulled: list[str] = []

    def part(name: str) -> bytes:
        pulled.append(name)
        return b""

    with pytest.raises(ObjectPullError, match=TOO_LARGE):
        bounded(pull_objects, lambda: PART)(object_ids=names, pull_object_fn=part)
    assert len(pulled) < 20


def test_the_bound_follows_the_plans_rank_and_then_the_largest_adapter(tmp_path: Path):
    folder = RunFolder(tmp_path)
    spare = 8 * 2**20
    assert most_reply_bytes(PLAN, folder) == 4 * 5_000_000 * 2 + spare
    Blobs(folder.blobs).put(bytes(319_000))
    assert most_reply_bytes(PLAN, folder) == 3 * 319_000 + spare
    (folder.bank / "000-a").mkdir(parents=True)
    (folder.bank / "000-a" / "adapter_model.safetensors").write_bytes(bytes(400_000))
    assert most_reply_bytes(PLAN, folder) == 3 * 400_000 + spare
