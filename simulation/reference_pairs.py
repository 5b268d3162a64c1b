"""The embedded public reference pairs: phantoms and crops of the packaged pictures, with captions.

They stand in for the millions of pairs from publications that PRIMED retrieves from. A crop is
from the training regions alone, so that no pixel of a test picture is in a pair, and the phantoms'
seed is no hospital's. Nothing is kept in the repository: `fedmslora retrieval embedded` and a
simulation make them, some thousand in a few seconds.
"""

import json
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from common.durable import DISK, writing
from common.errors import DataError
from common.identity import seed_for
from common.plan.plan import Plan
from common.plan.simulation import SimulatedReference
from retrieval.build import build
from retrieval.pairs import silent
from retrieval.questions import general_questions
from retrieval.search import QuestionVectors
from retrieval.stage_lists import ListOrigin, ListSettings, stage_lists
from retrieval.tfidf_svd import TfidfSvdVectors
from retrieval.write_list import reference_list, write_reference_folder
from simulation.pretraining.make_album import make_album
from simulation.pretraining.make_captions import draw_caption

FILE: Final = "pairs.jsonl"
IMAGES: Final = "images"
#: What is made beside a simulation's folder of reference pairs: all pairs, and their index.
PARTS: Final = ("pairs", "index")
#: The share of the pairs that are crops of the packaged pictures.
CROP_SHARE: Final = 0.25


def write_reference_pairs(folder: Path, count: int, seed: int) -> None:
    """Write `count` pairs to `folder`, whole or not at all; equal arguments give equal bytes.

    Raises:
        DataError: the folder is there already.
    """
    if folder.exists():
        raise DataError(f"{folder}: found something there, expected a folder that does not exist")
    crops = round(CROP_SHARE * count)
    album = make_album(count - crops, crops, seed_for(seed, "reference pairs"))
    rng = np.random.default_rng(seed_for(seed, "reference captions"))
    temporary = writing(folder)
    if temporary.exists():
        DISK.remove(temporary)
    (temporary / IMAGES).mkdir(parents=True)
    lines: list[str] = []
    for index in range(count):
        name = f"{IMAGES}/{index:06d}.png"
        blob = BytesIO()
        Image.fromarray(album.pixels[index]).save(blob, format="PNG")
        (temporary / name).write_bytes(blob.getvalue())
        text = draw_caption(album, index, rng).text
        lines.append(json.dumps({"id": f"{index:06d}", "image": name, "caption": text}))
    (temporary / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    DISK.rename(temporary, folder)
    DISK.sync(folder.parent)


def make_reference(plan: Plan, wanted: SimulatedReference, folder: Path, base_model: Path) -> None:
    """Make what each simulated site has of reference pairs, unless it is there.

    The base model's image tower re-ranks, as for real pairs.

    Raises:
        PlanError: a stage names no classes.
        ModelError: the base model is no CLIP.
    """
    if folder.exists():
        return
    # torch, which not everything that makes hospitals needs.
    import torch

    from retrieval.clip_vectors import ClipVectors

    pairs, database = (folder.with_name(f"{folder.name}-{part}") for part in PARTS)
    if not pairs.exists():
        write_reference_pairs(pairs, wanted.pairs, plan.seed)
    clip = ClipVectors(base_model, torch.device("cpu"))
    found = build(pairs, database, TfidfSvdVectors(), clip.of_images(), silent)
    captions = found.text_embedder()
    assert captions is not None
    settings = ListSettings(
        how=wanted.how,
        k=max(wanted.task, wanted.domain, wanted.other),
        task=wanted.task,
        domain=wanted.domain,
        other=wanted.other,
        size=wanted.pairs // 4,
    )
    origin = ListOrigin(plan, general_questions(), found, settings)
    stages = stage_lists(origin, QuestionVectors(captions, clip), silent)
    write_reference_folder(folder, reference_list(origin, stages, silent), found)
