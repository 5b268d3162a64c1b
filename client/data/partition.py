"""Tasks dealt to sites: each picture, with all that is asked about it, goes to one of them.

Pictures are told apart by their pixels, as where train is checked against test: by its path,
a copy under another name could come to a second site, and no site alone can find that. The
price is that each picture is decoded once. A picture stays where it is over all tasks of a deal.
"""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Container, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias, cast

from client.data.check import OnImagesDecoded
from client.data.image_check import decode_images
from client.data.records import Mistake, as_list, read_text
from client.data.task import TEST_FILE, TRAIN_FILE, Example, read_task
from common.durable import DISK, remove_if_there, writing
from common.errors import DataError
from common.identity import seed_for

#: What a plan takes as the name of a site.
_SITE: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSettings:
    """Who gets how much.

    Attributes:
        sites: their names, as plans write them.
        weights: one for each site: its part of the questions, over the sum of all.
        seed: which site comes first and which pictures it gets depend on it.
        copy: pictures are files of their own, not symbolic links to where they were.

    Raises:
        DataError: no site, one that no plan could name, one twice, or other weights than
            one of at least 1 for each.
    """

    sites: tuple[str, ...]
    weights: tuple[int, ...]
    seed: int = 0
    copy: bool = False

    def __post_init__(self) -> None:
        for site in self.sites:
            if not _SITE.fullmatch(site):
                raise DataError(
                    f"sites: found {site!r}, expected 1 to 40 of a to z, 0 to 9, - and _, "
                    "a letter or digit first"
                )
        twice = [site for site, count in Counter(self.sites).items() if count > 1]
        if twice or not self.sites:
            found = f"{twice[0]!r} twice" if twice else "none"
            raise DataError(f"sites: found {found}, expected one or more, each once")
        if len(self.weights) != len(self.sites) or min(self.weights) < 1:
            raise DataError(
                f"weights: found {_listed(self.weights)}, expected {len(self.sites)} whole numbers "
                "of at least 1: one for each site"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteShare:
    """What a site got of a task: questions to train on, test questions, files of pictures."""

    task: str
    site: str
    train: int
    test: int
    images: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A JSON object as it stands in its file, and how many questions it has of which picture."""

    text: str
    image: Path
    questions: int


@dataclass(frozen=True, slots=True)
class _Task:
    folder: Path
    train: tuple[_Entry, ...]
    test: tuple[_Entry, ...]

    @property
    def images(self) -> list[Path]:
        """Each file once, in the order of the entries."""
        return list(dict.fromkeys(entry.image for entry in (*self.train, *self.test)))


#: Training and test questions of something.
Counts: TypeAlias = tuple[int, int]


def partition_tasks(
    folders: Sequence[Path], out: Path, deal: PartitionSettings, workers: int, told: OnImagesDecoded
) -> list[SiteShare]:
    """Fill `out`/SITE/TASK/ with what each site gets; what that is, task by task.

    Entries keep their text and their order; the same tasks and deal give the same bytes. Of
    an entry with a list of pictures the first, which alone is ever read, comes along.

    Args:
        folders: tasks in the paper's layout, absolute; all of each can be used.
        out: nothing, or an empty folder; it is filled as a whole or not at all.
        workers: processes that decode pictures.

    Raises:
        DataError: `out` holds something; a task can't be read, or has a damaged picture; or a
            site would get no training or no test question of a task.
    """
    home = _free(out)
    tasks = [_read(folder) for folder in folders]
    held: dict[str, str] = {}
    shares: list[SiteShare] = []
    with _placed(home) as partial:
        for task in tasks:
            digests = _digests(task, workers, told)
            found = assign_images(task.folder.name, _sizes(task, digests), held, deal)
            held |= found
            parts = {
                site: _part(task, {image for image, of in digests.items() if found[of] == site})
                for site in deal.sites
            }
            shares += _shares(task, parts, deal)
            for site, part in parts.items():
                _write(part, partial / site, home / site, deal.copy)
    return shares


def assign_images(
    task: str, sizes: Mapping[str, Counts], held: Mapping[str, str], deal: PartitionSettings
) -> dict[str, str]:
    """The site of each picture of a task: the one in `held`, or else the one that lacks most.

    What a site lacks is its part of the questions, by its weight, less what it was given; pictures
    with most questions come first. So each site ends within one picture's questions of its
    part, in train and in test, as long as no picture is in both or in `held`. Pictures in both
    come first of all, and go by what a site lacks of either.

    Args:
        task: its name; each task has a shuffle of its own.
        sizes: training and test questions of each picture, by its digest.
        held: sites by digest, of tasks that were dealt before.
    """
    totals = _sum(sizes.values())
    weights = dict(zip(deal.sites, deal.weights, strict=True))
    # Who comes first where two lack the same.
    sites = sorted(deal.sites, key=lambda site: seed_for(deal.seed, task, site))
    given: dict[str, Counts] = dict.fromkeys(sites, (0, 0))
    found: dict[str, str] = {}
    for digest in _order(task, sizes, held, deal.seed):
        size = sizes[digest]
        lacks = {
            site: _lack(size, totals, given[site], weights[site] / sum(deal.weights))
            for site in sites
        }
        site = held.get(digest) or max(sites, key=lacks.__getitem__)
        given[site] = _sum([given[site], size])
        found[digest] = site
    return found


def _lack(size: Counts, totals: Counts, given: Counts, part: float) -> float:
    """How far a site is behind its part, over the files in which a picture has questions."""
    return sum(
        part - given[file] / totals[file] for file, questions in enumerate(size) if questions
    )


def _order(task: str, sizes: Mapping[str, Counts], held: Mapping[str, str], seed: int) -> list[str]:
    def key(digest: str) -> tuple[bool, bool, int, int]:
        size = sizes[digest]
        return digest not in held, 0 in size, -sum(size), seed_for(seed, task, digest)

    return sorted(sizes, key=key)


def _sum(counts: Iterable[Counts]) -> Counts:
    train, test = zip(*counts, strict=True)
    return sum(train), sum(test)


def _free(out: Path) -> Path:
    """`out` without links on its way, so that links in it can be relative."""
    home = out.resolve()
    if home.is_dir() and not any(home.iterdir()):
        return home
    if home.exists():
        found = "a folder that is not empty" if home.is_dir() else "a file"
        raise DataError(f"{out}: found {found}, expected nothing or an empty folder")
    return home


@contextmanager
def _placed(home: Path) -> Generator[Path]:
    """A folder to fill, which becomes `home` at the end; after an error nothing is left of it."""
    partial = writing(home)
    home.parent.mkdir(parents=True, exist_ok=True)
    remove_if_there(partial, DISK)
    DISK.make_folder(partial)
    try:
        yield partial
        DISK.rename(partial, home)
    finally:
        remove_if_there(partial, DISK)


def _read(folder: Path) -> _Task:
    data = read_task(folder)
    train = _train_entries(_text(folder / TRAIN_FILE), data.train)
    lines = [line for line in _text(folder / TEST_FILE).split("\n") if line.strip()]
    test = (_Entry(line, example.image, 1) for line, example in zip(lines, data.test, strict=True))
    return _Task(folder, tuple(train), tuple(test))


def _text(file: Path) -> str:
    text = read_text(file)
    if isinstance(text, Mistake):
        raise DataError(text.text)
    return text


def _train_entries(text: str, examples: Sequence[Example]) -> Iterator[_Entry]:
    """A training file's entries, given the questions that were read from it."""
    at = 0
    for piece, value in json_list_elements(text):
        fields = cast(dict[str, object], value)
        # A question and its answer are two turns.
        questions = len(as_list(fields["conversations"])) // 2
        yield _Entry(piece, examples[at].image, questions)
        at += questions


def json_list_elements(text: str) -> Iterator[tuple[str, object]]:
    """The elements of the JSON list that `text` is: each as it stands there, and its value."""
    decoder = json.JSONDecoder()
    at = _behind(text, text.index("[") + 1)
    while text[at] != "]":
        value, end = decoder.raw_decode(text, at)
        yield text[at:end], value
        at = _behind(text, end)


def _behind(text: str, at: int) -> int:
    """Where the next element starts, or the list ends."""
    while text[at] in " \t\n\r,":
        at += 1
    return at


def _digests(task: _Task, workers: int, told: OnImagesDecoded) -> Mapping[Path, str]:
    """What each picture is known by."""
    name, images, done = task.folder.name, task.images, 0

    def seen() -> None:
        nonlocal done
        done += 1
        told(name, done, len(images))

    told(name, 0, len(images))
    pictures = decode_images(images, workers, seen)
    if mistakes := [*pictures.mistakes.values()]:
        more = f" ({len(mistakes) - 1} more of {name}'s are damaged)" if mistakes[1:] else ""
        raise DataError(f"{mistakes[0]}{more}")
    return pictures.digests


def _sizes(task: _Task, digests: Mapping[Path, str]) -> dict[str, Counts]:
    train, test = Counter[str](), Counter[str]()
    for counts, entries in ((train, task.train), (test, task.test)):
        for entry in entries:
            counts[digests[entry.image]] += entry.questions
    return {digest: (train[digest], test[digest]) for digest in dict.fromkeys(digests.values())}


def _part(task: _Task, images: Container[Path]) -> _Task:
    """What the task holds about these pictures."""
    train, test = (
        tuple(entry for entry in entries if entry.image in images)
        for entries in (task.train, task.test)
    )
    return _Task(task.folder, train, test)


def _shares(task: _Task, parts: Mapping[str, _Task], deal: PartitionSettings) -> list[SiteShare]:
    """What each site gets; refused if one gets none of either file."""
    for site, part in parts.items():
        for file, entries in ((TRAIN_FILE, part.train), (TEST_FILE, part.test)):
            if not entries:
                raise DataError(
                    f"{task.folder / file}: found no question left for site {site!r} (the weights "
                    f"of {_listed(deal.sites)} are {_listed(deal.weights)}, and all questions "
                    "about a picture stay together), expected at least one"
                )
    return [_share(site, part) for site, part in parts.items()]


def _share(site: str, part: _Task) -> SiteShare:
    return SiteShare(
        task=part.folder.name,
        site=site,
        train=sum(entry.questions for entry in part.train),
        test=len(part.test),
        images=len(part.images),
    )


def _write(part: _Task, partial: Path, home: Path, copy: bool) -> None:
    """One site's folder of a task, in `partial`, which is going to be `home`."""
    name = part.folder.name
    folder, source = partial / name, part.folder.resolve()
    folder.mkdir(parents=True)
    train = ",\n".join(entry.text for entry in part.train)
    test = "".join(f"{entry.text}\n" for entry in part.test)
    for file, text in ((TRAIN_FILE, f"[\n{train}\n]\n"), (TEST_FILE, test)):
        DISK.write(folder / file, text.encode())
        DISK.sync(folder / file)
    for image in part.images:
        inside = image.relative_to(part.folder)
        picture = folder / inside
        picture.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            _copy(source / inside, picture)
        else:
            beside = (home / name / inside).parent
            picture.symlink_to(os.path.relpath(source / inside, beside))


def _copy(picture: Path, to: Path) -> None:
    """A second name of the file, which costs no space; a copy where that can't be had."""
    try:
        os.link(picture.resolve(), to)
    except OSError:
        shutil.copyfile(picture, to)


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values)) or "nothing"
