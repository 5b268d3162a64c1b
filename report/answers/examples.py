"""A few right and wrong answers with their pictures, in a file of their own beside the report.

They exist where the pictures are: in a simulation, or at the site itself. report.json, which a
coordinator has, never holds one.
"""

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from common.documents.bounded import read_bytes
from common.durable import DISK, write_file
from common.errors import DataError
from common.metrics import AnsweredQuestion, judge

EXAMPLES_FILE = "examples.json"
#: Right answers of a task, and as many wrong ones.
SHOWN = 3
_MOST_BYTES = 2**26


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredPicture:
    """One answered question with its picture.

    Attributes:
        task: its stage's name.
        right: by exact match after normalization.
        jpeg: the picture as base64.
    """

    task: str
    site: str
    question: str
    truth: str
    answer: str
    right: bool
    jpeg: str


def chosen_examples(
    task: str,
    answers: Sequence[tuple[str, AnsweredQuestion, Path]],
    thumbnail: Callable[[Path], bytes],
) -> list[AnsweredPicture]:
    """Return a few right answers, then a few wrong ones: of different pictures, spread evenly.

    A picture that can't be read any more is left out.

    Args:
        answers: site, answer and image of each question.
        thumbnail: makes a small JPEG of an image.
    """
    by_right: dict[bool, list[tuple[str, AnsweredQuestion, Path]]] = {True: [], False: []}
    for site, answer, image in answers:
        by_right[judge(answer).exact].append((site, answer, image))
    found: list[AnsweredPicture] = []
    for right, own in by_right.items():
        for site, answer, image in _spread_out(own):
            with suppress(DataError):
                found.append(
                    AnsweredPicture(
                        task=task,
                        site=site,
                        question=answer.question,
                        truth=answer.truth,
                        answer=answer.answer,
                        right=right,
                        jpeg=base64.b64encode(thumbnail(image)).decode(),
                    )
                )
    return found


def _spread_out(
    answers: Sequence[tuple[str, AnsweredQuestion, Path]],
) -> Iterator[tuple[str, AnsweredQuestion, Path]]:
    """Yield answers about different pictures, as far apart in the file as they can be."""
    first: dict[Path, tuple[str, AnsweredQuestion, Path]] = {}
    for one in answers:
        first.setdefault(one[2], one)
    own = list(first.values())
    for place in range(min(SHOWN, len(own))):
        yield own[place * len(own) // min(SHOWN, len(own))]


def write_examples(folder: Path, examples: Sequence[AnsweredPicture]) -> None:
    """Write the examples of a run beside its report."""
    text = json.dumps([asdict(one) for one in examples], indent=1, ensure_ascii=False)
    write_file(folder / EXAMPLES_FILE, f"{text}\n".encode(), DISK)


def read_examples(folder: Path) -> list[AnsweredPicture]:
    """Read the examples of a run; none where there is no such file.

    Raises:
        DataError: the file is not one of ours.
    """
    file = folder / EXAMPLES_FILE
    if not file.exists():
        return []
    try:
        return _EXAMPLES.validate_json(read_bytes(file, _MOST_BYTES))
    except (OSError, ValueError) as error:
        found = type(error).__name__
        raise DataError(f"{file}: can't be read as examples of answers ({found})") from None


_EXAMPLES: TypeAdapter[list[AnsweredPicture]] = TypeAdapter(list[AnsweredPicture])
