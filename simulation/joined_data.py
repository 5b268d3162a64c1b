"""One site's data made of others': the questions of several sites, or the first of one site's.

The pictures are not copied: the task's folder has a link to each folder that it is made of.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.data.task import TEST_FILE, TRAIN_FILE, Example, read_task
from common.durable import DISK, write_file
from common.identity import seed_for


@dataclass(frozen=True, slots=True)
class JoinedTask:
    """A task's folder that is made of those of one or more sites.

    Attributes:
        folder: what is made.
        parts: the task's folder at each site, in the order in which their questions are asked.
        first: how many of the training questions it has; None takes all.
        seed: of the order of the pictures out of which the first questions are taken.
    """

    folder: Path
    parts: Mapping[str, Path]
    first: int | None = None
    seed: int = 0


def write_joined(task: JoinedTask) -> None:
    """Write the task in the paper's layout; what is there already is left as it is.

    Raises:
        DataError: one of the parts can't be read as a task.
    """
    train: list[dict[str, object]] = []
    test: list[dict[str, object]] = []
    for site, part in task.parts.items():
        data = read_task(part)
        learned = data.train
        if task.first is not None:
            learned = first_questions(learned, task.first, task.seed)
        train += [_train_entry(example, site, part) for example in learned]
        test += [_test_entry(example, site, part) for example in data.test]
    link_parts(task)
    _write(task.folder / TRAIN_FILE, json.dumps(train, indent=1, ensure_ascii=False) + "\n")
    lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in test)
    _write(task.folder / TEST_FILE, "".join(lines))


def link_parts(task: JoinedTask) -> None:
    """Link each part's folder, and anew where the run's folder or the data were moved."""
    for site, part in task.parts.items():
        _link(task.folder / site, part)


def first_questions(train: Sequence[Example], count: int, seed: int) -> list[Example]:
    """Return so many questions, picture by picture in a drawn order; all if there are fewer.

    Fewer questions are always among more of the same seed, and they keep the order of the file.
    """
    pictures: dict[Path, list[int]] = {}
    for place, example in enumerate(train):
        pictures.setdefault(example.image, []).append(place)
    groups = list(pictures.values())
    generator = np.random.default_rng(seed_for(seed, "first questions"))
    order: list[int] = generator.permutation(len(groups)).tolist()
    places = [place for group in order for place in groups[group]]
    return [train[place] for place in sorted(places[:count])]


def _train_entry(example: Example, site: str, part: Path) -> dict[str, object]:
    turns = [
        {"from": "human", "value": f"<image>\n{example.question}"},
        {"from": "gpt", "value": example.answer},
    ]
    return {
        "id": f"{site}/{example.question_id}",
        "image": f"{site}/{example.image.relative_to(part).as_posix()}",
        "conversations": turns,
        "answer_type": example.kind,
    }


def _test_entry(example: Example, site: str, part: Path) -> dict[str, object]:
    return {
        "question_id": f"{site}/{example.question_id}",
        "image": f"{site}/{example.image.relative_to(part).as_posix()}",
        "text": example.question,
        "gt": example.answer,
        "answer_type": example.kind,
    }


def _link(link: Path, target: Path) -> None:
    target = target.resolve()
    if link.is_symlink() and link.readlink() != target:
        link.unlink()
    if not link.is_symlink():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target, target_is_directory=True)


def _write(file: Path, text: str) -> None:
    content = text.encode()
    if not file.exists() or file.read_bytes() != content:
        write_file(file, content, DISK)
