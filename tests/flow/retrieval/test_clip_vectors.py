"""A database whose images, and captions, a CLIP has embedded: the re-ranking is the model's own."""
# pyright: reportUnknownMemberType=false

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import DataError, ModelError
from retrieval.build import build
from retrieval.clip_vectors import ClipVectors
from retrieval.pairs import silent
from retrieval.search import Cut, QuestionVectors, Searcher
from retrieval.tfidf_svd import TfidfSvdVectors
from tests.flow.tiny_clip import write_clip, write_open_clip
from tests.unit.retrieval.some_pairs import write_tar

CPU = torch.device("cpu")
COLOURS = ("red", "green", "blue")
QUESTIONS = ["a photo of red skin", "a blue lung"]


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    blob = io.BytesIO()
    Image.fromarray(pixels).save(blob, format="PNG")
    return blob.getvalue()


def write_pairs(folder: Path) -> list[Path]:
    """Six pairs of three captions: four as files, two in a tar; returns their pictures as files."""
    folder.mkdir()
    files = [folder / f"{number}.png" for number in range(6)]
    for number, file in enumerate(files):
        file.write_bytes(picture(number))
    rows = [
        {"id": str(n), "image": f"{n}.png", "caption": f"a photo of {COLOURS[n % 3]} skin"}
        for n in range(4)
    ]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    members = {
        f"{n}.{ending}": blob
        for n in (4, 5)
        for ending, blob in (
            ("png", picture(n)), ("txt", f"a photo of {COLOURS[n % 3]} skin".encode()),
        )
    }  # fmt: skip
    write_tar(folder / "b.tar", members)
    return files


@pytest.mark.parametrize("write", [write_clip, write_open_clip])
def test_the_models_own_score_ranks(tmp_path: Path, write: Callable[[Path], Path]):
    clip = ClipVectors(write(tmp_path / "clip"), CPU)
    files = write_pairs(tmp_path / "pairs")
    database = build(
        tmp_path / "pairs", tmp_path / "db", clip.of_captions(), clip.of_images(), silent
    )
    assert database.facts.images == database.facts.embedder == clip.identity
    with torch.inference_mode():
        images = clip.model.image_embeddings(clip.model.pixel_values(files))
        texts = clip.model.text_embeddings(QUESTIONS)
        captions = clip.model.text_embeddings([f"a photo of {one} skin" for one in COLOURS])
    found = Searcher(database, QuestionVectors(clip, clip), Cut(2, 1)).hierarchical(QUESTIONS)
    for row, numbers in enumerate(found):
        best = [int(n) for n in (captions @ texts[row]).argsort(descending=True)[:2]]
        scores = [float(score) for score in images @ texts[row]]
        # Pairs n and n + 3 share a caption: the better of the two is kept.
        kept = [max(caption, caption + 3, key=lambda pair: scores[pair]) for caption in best]
        assert numbers == sorted(kept, key=lambda pair: -scores[pair])


def test_another_model_than_the_databases_is_refused(tmp_path: Path):
    clip = ClipVectors(write_clip(tmp_path / "clip"), CPU)
    other = ClipVectors(write_clip(tmp_path / "other", seed=1), CPU)
    write_pairs(tmp_path / "pairs")
    database = build(
        tmp_path / "pairs", tmp_path / "db", TfidfSvdVectors(), clip.of_images(), silent
    )
    clip.check_made(database.facts.images, database.folder)
    with pytest.raises(DataError, match="found vectors that were made by"):
        other.check_made(database.facts.images, database.folder)
    with pytest.raises(DataError, match="made by no model"):
        other.check_made(None, database.folder)


def test_a_model_that_is_no_clip_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="found 'bert', expected one of"):
        ClipVectors(tmp_path, CPU)
