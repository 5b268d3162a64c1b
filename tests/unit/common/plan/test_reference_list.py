"""A list of reference pairs: its bytes, its digest, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import DataError
from common.identity import sha256
from common.plan.reference_list import ListedPair, ReferenceList, check_images, read_list


def document(**changes: Any) -> dict[str, Any]:
    pair = {"id": "p1", "caption": "one", "image": f"{sha256(b'one')}.png"}
    layers: list[dict[str, object]] = [
        {"layer": "task", "questions": 2, "pairs": ["p1"]},
        {"layer": "domain", "questions": 0, "pairs": []},
    ]
    return {
        "format": 1, "plan": "p", "inputs": "0" * 64, "database": "1" * 64, "settings": {"k": 3},
        "pairs": [pair], "stages": [{"stage": "one", "layers": layers}], **changes,
    }  # fmt: skip


def written(folder: Path, fields: object) -> Path:
    file = folder / "list.json"
    file.write_text(json.dumps(fields))
    return file


def test_a_list_comes_back_with_the_same_bytes(tmp_path: Path):
    listed = ReferenceList.model_validate_json(json.dumps(document()))
    file = tmp_path / "list.json"
    file.write_bytes(listed.to_bytes())
    assert read_list(file, listed.digest) == listed
    assert listed.digest == sha256(file.read_bytes())
    assert [pair.id for pair in listed.pairs_of_stage(0)] == ["p1"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ([], "the file: found no list of reference pairs"),
        (document(format=2), "format: found no list"),
        (document(pairs=[{"id": "p1", "caption": "one", "image": "../x"}]), r"pairs\.0\.image: "),
        (document(pairs=[]), "pairs: found no 'p1', expected every pair named"),
        (document(stages=[]), "stages: found no list"),
        (document(more=1), "more: found no list"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, fields: object, sentence: str):
    with pytest.raises(DataError, match=sentence):
        read_list(written(tmp_path, fields))


def test_another_list_than_the_pinned_one_is_refused(tmp_path: Path):
    file = written(tmp_path, document())
    with pytest.raises(DataError, match=f"found the digest {sha256(file.read_bytes())[:16]}, exp"):
        read_list(file, "0" * 64)
    with pytest.raises(DataError, match="found no list of reference pairs"):
        read_list(tmp_path / "gone.json")


def test_a_changed_or_missing_image_is_refused(tmp_path: Path):
    (tmp_path / "images").mkdir()
    pair = ListedPair(id="p", caption="one", image=f"{sha256(b'one')}.png")
    file = tmp_path / "images" / pair.image
    with pytest.raises(DataError, match="found no image that can be read"):
        check_images(tmp_path, [pair])
    file.write_bytes(b"one")
    check_images(tmp_path, [pair])
    file.write_bytes(b"other")
    with pytest.raises(DataError, match="expected that of its name"):
        check_images(tmp_path, [pair])
