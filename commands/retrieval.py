"""`fedmslora retrieval`: reference pairs for a plan, before the federation and without patients."""
# typer leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.options import Json, refuse_no_file, refuse_no_folder
from common.plan.simulation import How
from common.printable import counted

if TYPE_CHECKING:
    from common.plan.reference_list import ReferenceList
    from retrieval.clip_vectors import ClipVectors
    from retrieval.database import Database
    from retrieval.embedders import CaptionVectors, ImageVectors
    from retrieval.pairs import OnProgress
    from retrieval.search import QuestionVectors

app = typer.Typer(no_args_is_help=True, help="Retrieve public reference pairs for a plan's stages.")

_Questions = Annotated[
    Path | None,
    typer.Option(help="General questions in YAML, in place of the project's own."),
]


class _Embedder(StrEnum):
    """What embeds captions and questions."""

    TFIDF_SVD = "tfidf-svd"
    CLIP = "clip"


@app.callback()
def group() -> None:
    """Retrieve public reference pairs for a plan's stages."""


@app.command("build")
def build(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of image-caption pairs.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The database's folder; by default DIR/index.", show_default=False),
    ] = None,
    caption_vectors: Annotated[
        Path | None,
        typer.Option(help="A .npy file with a vector for each pair's caption, in file order."),
    ] = None,
    image_vectors: Annotated[
        Path | None,
        typer.Option(help="A .npy file with a vector for each pair's image, in file order."),
    ] = None,
    base_model: Annotated[
        Path | None,
        typer.Option(help="A CLIP's folder: it embeds the images, for the re-ranking."),
    ] = None,
    embedder: Annotated[
        _Embedder,
        typer.Option(help="What embeds the captions: learned from them, or the base model."),
    ] = _Embedder.TFIDF_SVD,
    json_out: Json = False,
) -> None:
    """Build an index of image-caption pairs: dense vectors and BM25, memory-mapped.

    DIR has any of: .jsonl (one object a line), .csv or .tsv (with a header), webdataset's .tar.
    The same command continues a build that was cut off.

    Example: fedmslora retrieval build data/pairs
    """
    from retrieval.build import build as build_database
    from retrieval.database import DEFAULT_NAME
    from retrieval.embedders import GivenVectors
    from retrieval.tfidf_svd import TfidfSvdVectors

    _check_sources(embedder, base_model, caption_vectors, image_vectors)
    captions: CaptionVectors = TfidfSvdVectors()
    images: ImageVectors | None = None
    if base_model is not None:
        clip = _clip(base_model)
        images = clip.of_images()
        captions = clip.of_captions() if embedder is _Embedder.CLIP else captions
    if caption_vectors is not None:
        captions = GivenVectors(caption_vectors).of_captions()
    if image_vectors is not None:
        images = GivenVectors(image_vectors).of_images()
    place = folder / DEFAULT_NAME if out is None else out
    with _progress() as on_progress:
        database = build_database(folder, place, captions, images, on_progress)
    _show_database(database, json_out)


@app.command("list")
def list_(
    plan: Annotated[Path, typer.Argument(help="A plan whose stages name their classes.")],
    db: Annotated[Path, typer.Argument(metavar="DB", help="What `retrieval build` made.")],
    out: Annotated[Path, typer.Option(help="The list, as JSON.")],
    bundle: Annotated[
        Path | None,
        typer.Option(help="A folder for the sites: the list, and the images that it names."),
    ] = None,
    how: Annotated[How, typer.Option(help="How pairs are retrieved.")] = How.HIERARCHICAL,
    k: Annotated[int, typer.Option(min=1, help="Pairs that a question keeps.")] = 100,
    images_per_caption: Annotated[int, typer.Option(min=1, help="Images of one caption.")] = 1,
    task: Annotated[int, typer.Option(min=0, help="Pairs a question on an earlier class.")] = 100,
    domain: Annotated[int, typer.Option(min=0, help="Pairs a question on a seen domain.")] = 30,
    other: Annotated[int, typer.Option(min=0, help="Pairs another question.")] = 80,
    size: Annotated[int, typer.Option(min=1, help="Pairs in all, of --how uniform.")] = 100_000,
    questions: _Questions = None,
    question_vectors: Annotated[
        Path | None,
        typer.Option(
            help="With given caption vectors: a .npy file with a vector for each line of "
            "`retrieval questions`."
        ),
    ] = None,
    question_image_vectors: Annotated[
        Path | None,
        typer.Option(help="With given image vectors: the same in the images' space."),
    ] = None,
    base_model: Annotated[
        Path | None,
        typer.Option(help="The CLIP that embedded the images, to embed the questions."),
    ] = None,
    json_out: Json = False,
) -> None:
    """Write the reference pairs of each stage of a plan, with a digest that the plan can pin.

    Asked is what the plan says alone: class names of earlier stages, modalities and the seed.

    Example: fedmslora retrieval list plan.yaml data/pairs/index --out list.json
    """
    from common.plan.file import load_plan
    from retrieval.database import Database
    from retrieval.questions import GENERAL, all_questions, general_questions
    from retrieval.stage_lists import ListOrigin, ListSettings, stage_lists
    from retrieval.write_list import reference_list, write_list, write_reference_folder

    refuse_no_file("--out", out)
    if bundle is not None:
        refuse_no_folder("--bundle", bundle)
    loaded, general = load_plan(plan), general_questions(questions or GENERAL)
    settings = ListSettings(
        how=how, k=k, images_per_caption=images_per_caption, task=task, domain=domain,
        other=other, size=size,
    )  # fmt: skip
    given = _GivenFiles(question_vectors, question_image_vectors, base_model)
    with _progress() as on_progress:
        dense = how is not How.BM25
        database = Database(db, on_progress, vectors=dense)
        texts = all_questions(loaded, general)
        vectors = _question_vectors(database, texts, given) if dense else None
        origin = ListOrigin(loaded, general, database, settings)
        stages = stage_lists(origin, vectors, on_progress)
        listed = reference_list(origin, stages, on_progress)
        write_list(out, listed)
        if bundle is not None:
            write_reference_folder(bundle, listed, database)
    _show_list(listed, out, json_out)


@app.command("embedded")
def embedded(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is not there yet.")],
    pairs: Annotated[int, typer.Option(min=4, help="Number of pairs.")] = 4000,
    seed: Annotated[int, typer.Option(min=0, help="The seed that they are drawn by.")] = 0,
) -> None:
    """Make the embedded pairs: drawn phantoms and crops of packaged pictures, with captions.

    For trying retrieval out: they have no medical meaning.

    Example: fedmslora retrieval embedded data/pairs
    """
    from simulation.reference_pairs import write_reference_pairs

    folder.parent.mkdir(parents=True, exist_ok=True)
    write_reference_pairs(folder, pairs, seed)
    typer.echo(f"{folder}: {counted(pairs, 'pair')}")


@app.command("questions")
def questions_(
    plan: Annotated[Path, typer.Argument(help="A plan whose stages name their classes.")],
    questions: _Questions = None,
) -> None:
    """Print every question that `retrieval list` may ask, one a line, for your own embedder.

    Example: fedmslora retrieval questions plan.yaml > questions.txt
    """
    from common.plan.file import load_plan
    from retrieval.questions import GENERAL, all_questions, general_questions

    for text in all_questions(load_plan(plan), general_questions(questions or GENERAL)):
        typer.echo(text)


@dataclass(frozen=True, slots=True)
class _GivenFiles:
    """What embeds the questions: vectors like captions and like images, and a base model."""

    like_captions: Path | None
    like_images: Path | None
    base_model: Path | None


def _question_vectors(
    database: "Database", texts: list[str], given: _GivenFiles
) -> "QuestionVectors":
    """Return what embeds the questions.

    Raises:
        DataError: what embedded captions or images is not at hand.
    """
    from common.errors import DataError
    from retrieval.embedders import GivenQuestionVectors, TextEmbedder
    from retrieval.search import QuestionVectors

    facts = database.facts
    captions: TextEmbedder | None = database.text_embedder()
    images: TextEmbedder | None = None
    if given.base_model is not None:
        clip = _clip(given.base_model)
        clip.check_made(facts.images, database.folder)
        images = clip
        captions = clip if facts.embedder == clip.identity else captions
    if given.like_captions is not None:
        captions = GivenQuestionVectors(given.like_captions, texts)
    if given.like_images is not None:
        images = GivenQuestionVectors(given.like_images, texts)
    if captions is None:
        raise DataError(
            f"{database.folder}: found captions that were embedded by {facts.embedder['name']!r}, "
            "expected --question-vectors made by the same model, or --base-model"
        )
    return QuestionVectors(captions, images)


def _check_sources(
    embedder: _Embedder,
    base_model: Path | None,
    caption_vectors: Path | None,
    image_vectors: Path | None,
) -> None:
    """Refuse vectors of one kind from two sources.

    Raises:
        DataError: there are.
    """
    from common.errors import DataError

    if base_model is not None and image_vectors is not None:
        raise DataError("--image-vectors: found --base-model, too, expected one of them")
    if embedder is _Embedder.CLIP and (base_model is None or caption_vectors is not None):
        raise DataError(
            "--embedder clip: found no --base-model, or --caption-vectors, too, expected the base "
            "model alone"
        )


def _clip(folder: Path) -> "ClipVectors":
    import torch

    from retrieval.clip_vectors import ClipVectors

    return ClipVectors(folder, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _show_database(database: "Database", json_out: bool) -> None:
    facts = database.facts
    document: dict[str, Any] = {
        "database": str(database.folder),
        "digest": facts.digest,
        "pairs": facts.pairs,
        "captions": facts.captions,
        "embedder": dict(facts.embedder),
        "images": None if facts.images is None else dict(facts.images),
    }
    if json_out:
        typer.echo(json.dumps(document, indent=1))
        return
    typer.echo(
        f"{database.folder}: {counted(facts.pairs, 'pair')}, "
        f"{counted(facts.captions, 'caption')}, "
        f"digest {facts.digest[:16]}"
    )


def _show_list(listed: "ReferenceList", out: Path, json_out: bool) -> None:
    stages = [
        {
            "stage": stage.stage,
            "questions": {layer.layer: layer.questions for layer in stage.layers},
            "pairs": {layer.layer: len(layer.pairs) for layer in stage.layers},
        }
        for stage in listed.stages
    ]
    if json_out:
        document = {
            "list": str(out), "digest": listed.digest, "pairs": len(listed.pairs),
            "settings": dict(listed.settings), "stages": stages,
        }  # fmt: skip
        typer.echo(json.dumps(document, indent=1))
        return
    for stage in listed.stages:
        counts = ", ".join(f"{layer.layer} {len(layer.pairs)}" for layer in stage.layers)
        typer.echo(f"{stage.stage}: {counted(len(stage.ids), 'pair')} ({counts})")
    typer.echo(f"{out}: {len(listed.pairs)} different pairs, sha256 {listed.digest}")


@contextmanager
def _progress() -> Generator["OnProgress"]:
    """Show on stderr what is done and how far it is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    console = Console(stderr=True)
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def on_progress(step: str, done: int, total: int) -> None:
            if step not in bars:
                bars[step] = progress.add_task(step, total=total or None)
                if not console.is_terminal:
                    typer.echo(f"{step} ...", err=True)
            progress.update(bars[step], completed=done)

        yield on_progress
