"""`fedmslora retrieval`: what it prints, and that a mistake is one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from common.errors import DataError
from fedmslora import app
from tests.unit.retrieval.some_pairs import CAPTIONS, write_jsonl


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["retrieval", *map(str, arguments)])


def test_build_prints_the_database_and_says_so_again(tmp_path: Path):
    write_jsonl(tmp_path, CAPTIONS)
    done = run("build", tmp_path, "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert (found["pairs"], found["captions"], found["images"]) == (8, 8, None)
    assert found["database"] == str(tmp_path / "index")
    assert found["embedder"]["name"] == "tfidf-svd"
    again = run("build", tmp_path)
    assert again.stdout == (
        f"{tmp_path}/index: 8 pairs, 8 captions, digest {found['digest'][:16]}\n"
    )


def test_build_takes_given_vectors(tmp_path: Path):
    write_jsonl(tmp_path / "pairs", CAPTIONS)
    np.save(tmp_path / "v.npy", np.eye(8, dtype=np.float32))
    vectors = tmp_path / "v.npy"
    done = run(
        "build", tmp_path / "pairs", "--out", tmp_path / "db", "--caption-vectors", vectors,
        "--image-vectors", vectors, "--json",
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["embedder"] == found["images"]
    assert (found["embedder"]["name"], found["embedder"]["width"]) == ("given", 8)


def test_a_mistake_is_one_sentence(tmp_path: Path):
    file = write_jsonl(tmp_path, CAPTIONS)
    file.write_text(file.read_text() + '{"caption": "one"}\n')
    with pytest.raises(DataError) as caught:
        CliRunner().invoke(app, ["retrieval", "build", str(tmp_path)], catch_exceptions=False)
    assert str(caught.value) == (
        f"{file}: line 9: field 'image': found nothing, expected an image's path in the folder of "
        "pairs"
    )
