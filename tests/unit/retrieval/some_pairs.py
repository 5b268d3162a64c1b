"""Small folders of image-caption pairs, in every format."""

import csv
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from retrieval.build import build
from retrieval.database import Database
from retrieval.embedders import GivenVectors
from retrieval.pairs import silent
from retrieval.tfidf_svd import TfidfSvdVectors

CAPTIONS = (
    "a pathology photo of glandular epithelium in the colon",
    "a pathology photo of necrosis in the tissue",
    "a dermatology photo of melanoma in the skin",
    "a dermatology photo of psoriasis in the skin",
    "an X-ray photo of cardiomegaly in the chest",
    "an X-ray photo of pleural effusion in the chest",
    "a CT photo of a kidney stone in the abdomen",
    "an MRI photo of glioma in the brain",
)


def png(seed: int) -> bytes:
    """Bytes that differ by seed; nothing decodes them."""
    return b"\x89PNG" + seed.to_bytes(4, "big")


def write_images(folder: Path, count: int) -> list[str]:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = [f"images/{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(png(number))
    return names


def write_jsonl(folder: Path, captions: Sequence[str], name: str = "pairs.jsonl") -> Path:
    images = write_images(folder, len(captions))
    lines = [
        json.dumps({"id": f"p{number}", "image": image, "caption": caption})
        for number, (image, caption) in enumerate(zip(images, captions, strict=True))
    ]
    file = folder / name
    file.write_text("\n".join(lines) + "\n")
    return file


def write_csv(folder: Path, captions: Sequence[str], delimiter: str = ",") -> Path:
    images = write_images(folder, len(captions))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(("filepath", "title"))
    writer.writerows(zip(images, captions, strict=True))
    file = folder / "pairs.csv"
    file.write_text(text.getvalue())
    return file


def write_tar(file: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, blob in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(blob)
            tar.addfile(info, io.BytesIO(blob))
    return file


def word_database(folder: Path, captions: Sequence[str]) -> Database:
    """A database whose vectors are learned from the captions."""
    write_jsonl(folder, captions)
    return build(folder, folder / "index", TfidfSvdVectors(), None, silent)


def vector_database(
    folder: Path,
    captions: Sequence[str],
    caption_vectors: npt.NDArray[np.floating],
    image_vectors: npt.NDArray[np.floating] | None = None,
) -> Database:
    """A database of given vectors, a row for each pair."""
    write_jsonl(folder, captions)
    np.save(folder / "captions.npy", caption_vectors.astype(np.float32))
    images = None
    if image_vectors is not None:
        np.save(folder / "images.npy", image_vectors.astype(np.float32))
        images = GivenVectors(folder / "images.npy").of_images()
    given = GivenVectors(folder / "captions.npy").of_captions()
    return build(folder, folder / "index", given, images, silent)
