"""`fedmslora retrieval`: what it prints, and that a mistake is one sentence."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from common.errors import DataError, PlanError, StateError
from common.plan.reference_list import check_images, read_list
from fedmslora import app
from tests.unit.retrieval.some_pairs import CAPTIONS, write_jsonl
from tests.unit.small_round import document


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


def write_plan(file: Path, classes: list[str] | None) -> Path:
    one = document()["stages"][0]
    stages = [
        {**one, "name": "tissue", "modality": "pathology", "classes": classes},
        {**one, "name": "mole", "modality": "dermatology", "classes": ["melanoma", "nevus"]},
    ]
    file.write_text(json.dumps({**document(), "stages": stages}))
    return file


def test_list_writes_the_pairs_and_the_sites_folder(tmp_path: Path):
    write_jsonl(tmp_path, CAPTIONS)
    run("build", tmp_path)
    plan = write_plan(tmp_path / "plan.yaml", ["necrosis", "gland"])
    out, bundle = tmp_path / "list.json", tmp_path / "reference"
    few = ("--k", 2, "--task", 1, "--domain", 1, "--other", 1)
    done = run("list", plan, tmp_path, "--out", out, "--bundle", bundle, *map(str, few), "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    listed = read_list(out, found["digest"])
    assert read_list(bundle / "list.json", found["digest"]) == listed
    check_images(bundle, listed.pairs)
    second = listed.stages[1]
    assert {layer.layer: layer.questions for layer in second.layers}["task"] == 2
    assert "p1" in second.layers[0].pairs
    shown = run("list", plan, tmp_path, "--out", out, *map(str, few))
    assert shown.stdout.splitlines()[-1] == (
        f"{out}: {len(listed.pairs)} different pairs, sha256 {found['digest']}"
    )


def test_where_a_list_can_not_be_written_is_said_before_anything_is_read(tmp_path: Path):
    file, folder, pipe = tmp_path / "file", tmp_path / "folder", tmp_path / "pipe"
    file.write_text("mine")
    folder.mkdir()
    os.mkfifo(pipe)
    no_file = "which is no file, expected a file's name"
    said = {
        ("--out", folder): f"--out: found {folder}, {no_file}",
        ("--out", pipe): f"--out: found {pipe}, {no_file}",
        ("--out", "."): f"--out: found ., {no_file}",
        ("--out", file / "x"): f"--out: found {file}, which is no folder, expected one",
        ("--out", tmp_path / "new", "--bundle", file): (
            f"--bundle: found {file}, which is no folder, expected one"
        ),
    }
    before = sorted(tmp_path.iterdir())
    for words, sentence in said.items():
        # Neither the plan nor the database is there.
        done = run("list", tmp_path / "none.yaml", tmp_path / "none", *words)
        assert isinstance(done.exception, StateError)
        assert str(done.exception) == sentence
    assert sorted(tmp_path.iterdir()) == before and file.read_text() == "mine"


def test_a_file_of_questions_that_is_not_there_is_named_once(tmp_path: Path):
    plan, none = tmp_path / "plan.yaml", tmp_path / "none.yaml"
    write_plan(plan, ["necrosis"])
    done = run("questions", plan, "--questions", none)
    assert isinstance(done.exception, DataError)
    assert str(done.exception) == (
        f"{none}: found no questions (No such file or directory), expected YAML"
    )


def test_questions_are_printed_for_an_embedder_of_the_users(tmp_path: Path):
    write_jsonl(tmp_path, CAPTIONS)
    np.save(tmp_path / "v.npy", np.eye(8, dtype=np.float32))
    run("build", tmp_path, "--caption-vectors", tmp_path / "v.npy")
    plan = write_plan(tmp_path / "plan.yaml", ["necrosis", "gland"])
    texts = run("questions", plan).stdout.splitlines()
    assert texts[0] == "a pathology photo of necrosis"
    with pytest.raises(DataError, match="found captions that were embedded by 'given', expected"):
        CliRunner().invoke(
            app,
            ["retrieval", "list", str(plan), str(tmp_path), "--out", str(tmp_path / "l")],
            catch_exceptions=False,
        )
    vectors = np.zeros((len(texts), 8), np.float32)
    vectors[:, 3] = 1
    np.save(tmp_path / "q.npy", vectors)
    done = run(
        "list", plan, tmp_path, "--out", tmp_path / "l", "--k", "1", "--question-vectors",
        tmp_path / "q.npy", "--json",
    )  # fmt: skip
    assert json.loads(done.stdout)["pairs"] == 1


@pytest.mark.parametrize("how", ["dense", "uniform"])
def test_a_list_without_re_ranking_asks_for_no_vectors_like_images(tmp_path: Path, how: str):
    write_jsonl(tmp_path, CAPTIONS)
    np.save(tmp_path / "v.npy", np.eye(8, dtype=np.float32))
    run("build", tmp_path, "--image-vectors", tmp_path / "v.npy")
    plan = write_plan(tmp_path / "plan.yaml", ["necrosis", "gland"])
    done = run("list", plan, tmp_path, "--out", tmp_path / "l", "--how", how)
    assert done.exit_code == 0, done.exception
    refused = run("list", plan, tmp_path, "--out", tmp_path / "l")
    assert "found vectors of images and nothing that embeds" in str(refused.exception)


def test_a_list_by_bm25_needs_no_vectors_and_reads_none(tmp_path: Path):
    write_jsonl(tmp_path, CAPTIONS)
    np.save(tmp_path / "v.npy", np.eye(8, dtype=np.float32))
    vectors = tmp_path / "v.npy"
    run("build", tmp_path, "--caption-vectors", vectors, "--image-vectors", vectors)
    plan, out = write_plan(tmp_path / "plan.yaml", ["necrosis", "gland"]), tmp_path / "list.json"
    first = run("list", plan, tmp_path, "--out", out, "--how", "bm25", "--json")
    assert first.exit_code == 0, first.exception
    listed = out.read_bytes()
    shutil.rmtree(tmp_path / "index" / "captions")
    (tmp_path / "index" / "images" / "00000.faiss").write_bytes(b"cut")
    again = run("list", plan, tmp_path, "--out", out, "--how", "bm25", "--json")
    assert again.exit_code == 0, again.exception
    assert out.read_bytes() == listed
    # What BM25 does use is checked as before.
    (tmp_path / "index" / "bm25" / "vocab.index.json").write_bytes(b"cut")
    refused = run("list", plan, tmp_path, "--out", out, "--how", "bm25")
    assert "bm25/vocab.index.json: found" in str(refused.exception)


def test_a_plan_without_classes_is_refused(tmp_path: Path):
    plan = write_plan(tmp_path / "plan.yaml", None)
    with pytest.raises(PlanError, match="stage 1 'tissue', classes: found none"):
        CliRunner().invoke(app, ["retrieval", "questions", str(plan)], catch_exceptions=False)
