"""Partitioning of tasks among sites: each image, with all its questions, goes to one site.

Images are identified by their pixels, as in the check of train against test: a copy under
another name could otherwise go to a second site, which no site alone can detect. The price is
that each image is decoded once. An image of several tasks goes to one site in all of them, and so
do images that share a `group` in their task's records, as an import writes it for each patient.
"""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias, cast

from client.data.check import OnImagesDecoded, count_decoded
from client.data.image_check import decode_images
from client.data.joined_names import JoinedNames
from client.data.new_folder import atomic_folder, empty_target
from client.data.records import Mistake, as_list, read_text
from client.data.task import TEST_FILE, TRAIN_FILE, Example, read_task
from common.durable import DISK
from common.errors import DataError
from common.identity import seed_for

#: The site names that a plan accepts.
_SITE: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_MOST_WEIGHT: Final = 10**9
#: Most values in a sentence.
_MOST_SHOWN: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSettings:
    """The sites of a partition, and each site's part of the questions.

    Attributes:
        sites: their names, as in plans.
        weights: one per site: its part of the questions is its weight over the sum of all.
        seed: decides which site is served first, and which images it gets.
        copy: make copies of the images instead of symbolic links to the originals.

    Raises:
        DataError: no site, one that no plan could name, one twice, or not one weight of at
            least 1 for each.
    """

    sites: tuple[str, ...]
    weights: tuple[int, ...]
    seed: int = 0
    copy: bool = False

    def __post_init__(self) -> None:
        for site in self.sites:
            if not _SITE.fullmatch(site):
                raise DataError(
                    f"--sites: found {site[:60]!r}, expected 1 to 40 of a to z, 0 to 9, - and _, "
                    "a letter or digit first"
                )
        twice = [site for site, count in Counter(self.sites).items() if count > 1]
        if twice or not self.sites:
            found = f"{twice[0]!r} twice" if twice else "none"
            raise DataError(f"--sites: found {found}, expected one or more, each once")
        known = all(1 <= weight <= _MOST_WEIGHT for weight in self.weights)
        if len(self.weights) != len(self.sites) or not known:
            raise DataError(
                f"--weights: found {_listed(self.weights)}, expected {len(self.sites)} whole "
                f"numbers from 1 to {_MOST_WEIGHT:,}: one for each site"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteShare:
    """The number of training questions, test questions and image files of a task at a site."""

    task: str
    site: str
    train: int
    test: int
    images: int


@dataclass(frozen=True, slots=True)
class _RawRecord:
    """The text of a JSON object in its file, its image, its number of questions, and its group."""

    text: str
    image: Path
    questions: int
    group: str | None


@dataclass(frozen=True, slots=True)
class _TaskRecords:
    folder: Path
    train: tuple[_RawRecord, ...]
    test: tuple[_RawRecord, ...]

    @property
    def images(self) -> list[Path]:
        """Each image file once, in the order of the records."""
        return list(dict.fromkeys(record.image for record in (*self.train, *self.test)))


#: The number of training and of test questions.
QuestionCounts: TypeAlias = tuple[int, int]


def partition_tasks(
    folders: Sequence[Path],
    out: Path,
    settings: PartitionSettings,
    workers: int,
    on_decoded: OnImagesDecoded,
) -> list[SiteShare]:
    """Write each site's part of the tasks to `out`/SITE/TASK/, and return the shares by task.

    Records keep their text and their order; equal tasks and settings give equal bytes.

    Args:
        folders: tasks in the paper's layout, absolute paths; all of each must be usable.
        out: a new or an empty folder; it is filled completely or not at all.
        workers: processes that decode images.

    Raises:
        DataError: `out` is not empty, or lies in a task's folder; a task can't be read, or has a
            damaged image; or a site would get no training or no test question of a task.
    """
    home = empty_target(out)
    for folder in folders:
        if home.is_relative_to(folder.resolve()):
            raise DataError(f"{out}: found a folder inside of {folder}, expected one outside of it")
    tasks = [_read(folder) for folder in folders]
    assigned: dict[str, str] = {}
    shares: list[SiteShare] = []
    with atomic_folder(home) as partial:
        decoded = [_digests(task, workers, on_decoded) for task in tasks]
        for task, digests in zip(tasks, _grouped(tasks, decoded), strict=True):
            found = assign_images(task.folder.name, _counts(task, digests), assigned, settings)
            assigned |= found
            parts = {
                site: _select(task, {image for image, of in digests.items() if found[of] == site})
                for site in settings.sites
            }
            _check_parts(task, parts, settings)
            for site, part in parts.items():
                shares.append(_share(site, part))
                _write(part, partial / site, home / site, settings.copy)
    return shares


def assign_images(
    task: str,
    counts: Mapping[str, QuestionCounts],
    assigned: Mapping[str, str],
    settings: PartitionSettings,
) -> dict[str, str]:
    """Return the site of each image of a task: as in `assigned`, or with the largest deficit.

    A site's deficit is its part of the questions, by its weight, minus what it was given;
    images with most questions are assigned first. So each site ends within one image's
    questions of its part, in train and in test, as long as no image is in both or in
    `assigned`. Images in both are assigned before the others, by the deficit in both.

    Args:
        task: its name; each task is shuffled differently.
        counts: training and test questions of each image, by its digest.
        assigned: sites by digest, from tasks that were partitioned before.
    """
    totals = _sum(counts.values())
    weights = dict(zip(settings.sites, settings.weights, strict=True))
    # Of sites with equal deficits the first one is chosen.
    sites = sorted(settings.sites, key=lambda site: seed_for(settings.seed, task, site))
    given: dict[str, QuestionCounts] = dict.fromkeys(sites, (0, 0))

    def order(digest: str) -> tuple[bool, bool, int, int]:
        questions = counts[digest]
        seed = seed_for(settings.seed, task, digest)
        return digest not in assigned, 0 in questions, -sum(questions), seed

    found: dict[str, str] = {}
    for digest in sorted(counts, key=order):
        questions = counts[digest]
        deficits = {
            site: _deficit(questions, totals, given[site], weights[site] / sum(settings.weights))
            for site in sites
        }
        site = assigned.get(digest) or max(sites, key=deficits.__getitem__)
        given[site] = _sum([given[site], questions])
        found[digest] = site
    return found


def _deficit(
    questions: QuestionCounts, totals: QuestionCounts, given: QuestionCounts, part: float
) -> float:
    """Return what a site lacks of its part, summed over the files that an image occurs in."""
    return sum(part - given[file] / totals[file] for file, number in enumerate(questions) if number)


def _sum(counts: Iterable[QuestionCounts]) -> QuestionCounts:
    train, test = zip(*counts, strict=True)
    return sum(train), sum(test)


def _read(folder: Path) -> _TaskRecords:
    data = read_task(folder)
    train = _train_records(_text(folder / TRAIN_FILE), data.train)
    lines = [line for line in _text(folder / TEST_FILE).split("\n") if line.strip()]
    test = (
        _RawRecord(line, example.image, 1, _group(json.loads(line)))
        for line, example in zip(lines, data.test, strict=True)
    )
    return _TaskRecords(folder, tuple(train), tuple(test))


def _text(file: Path) -> str:
    text = read_text(file)
    if isinstance(text, Mistake):
        raise DataError(text.text)
    return text


def _train_records(text: str, examples: Sequence[Example]) -> Iterator[_RawRecord]:
    """Yield a training file's records, given the questions that were read from it."""
    at = 0
    for piece, value in json_list_elements(text):
        fields = cast(dict[str, object], value)
        # A question and its answer are two turns.
        questions = len(as_list(fields["conversations"])) // 2
        yield _RawRecord(piece, examples[at].image, questions, _group(fields))
        at += questions


def json_list_elements(text: str) -> Iterator[tuple[str, object]]:
    """Yield the elements of a JSON list: the text of each, and its value."""
    decoder = json.JSONDecoder()
    at = _next_element(text, text.index("[") + 1)
    while text[at] != "]":
        value, end = decoder.raw_decode(text, at)
        yield text[at:end], value
        at = _next_element(text, end)


def _next_element(text: str, at: int) -> int:
    """Return where the next element starts, or the list ends."""
    while text[at] in " \t\n\r,":
        at += 1
    return at


def _digests(task: _TaskRecords, workers: int, on_decoded: OnImagesDecoded) -> Mapping[Path, str]:
    """Return the digest of each image's pixels."""
    name, images = task.folder.name, task.images
    decoded = decode_images(images, workers, count_decoded(name, len(images), on_decoded))
    if mistakes := [*decoded.mistakes.values()]:
        more = f" ({len(mistakes) - 1} more of {name}'s are damaged)" if mistakes[1:] else ""
        raise DataError(f"{mistakes[0]}{more}")
    return decoded.digests


def _group(fields: Mapping[str, object]) -> str | None:
    """Return the group of a record: a text or a whole number that others of its task share."""
    value = fields.get("group")
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _grouped(
    tasks: Sequence[_TaskRecords], decoded: Sequence[Mapping[Path, str]]
) -> list[Mapping[Path, str]]:
    """Return the digests with those of images that must stay together replaced by their first."""
    joined = JoinedNames()
    for task, digests in zip(tasks, decoded, strict=True):
        for record in (*task.train, *task.test):
            if record.group is not None:
                joined.join(f"{task.folder} {record.group}", digests[record.image])
    firsts: dict[str, str] = {}
    for digest in sorted({digest for digests in decoded for digest in digests.values()}):
        firsts.setdefault(joined.root(digest), digest)
    return [
        {image: firsts[joined.root(digest)] for image, digest in digests.items()}
        for digests in decoded
    ]


def _counts(task: _TaskRecords, digests: Mapping[Path, str]) -> dict[str, QuestionCounts]:
    train, test = Counter[str](), Counter[str]()
    for counts, records in ((train, task.train), (test, task.test)):
        for record in records:
            counts[digests[record.image]] += record.questions
    return {digest: (train[digest], test[digest]) for digest in dict.fromkeys(digests.values())}


def _select(task: _TaskRecords, images: Container[Path]) -> _TaskRecords:
    """Return the task's records of these images."""
    train, test = (
        tuple(record for record in records if record.image in images)
        for records in (task.train, task.test)
    )
    return _TaskRecords(task.folder, train, test)


def _check_parts(
    task: _TaskRecords, parts: Mapping[str, _TaskRecords], settings: PartitionSettings
) -> None:
    """Check that each site gets training and test questions."""
    for site, part in parts.items():
        for file, records in ((TRAIN_FILE, part.train), (TEST_FILE, part.test)):
            if not records:
                raise DataError(
                    f"{task.folder / file}: found no question left for site {site!r} (the weights "
                    f"of {_listed(settings.sites)} are {_listed(settings.weights)}, and all "
                    "questions about an image stay together), expected at least one"
                )


def _share(site: str, part: _TaskRecords) -> SiteShare:
    return SiteShare(
        task=part.folder.name,
        site=site,
        train=sum(record.questions for record in part.train),
        test=len(part.test),
        images=len(part.images),
    )


def _write(part: _TaskRecords, partial: Path, home: Path, copy: bool) -> None:
    """Write one site's folder of a task in `partial`, which will be renamed to `home`."""
    name = part.folder.name
    folder, source = partial / name, part.folder.resolve()
    folder.mkdir(parents=True)
    train = ",\n".join(record.text for record in part.train)
    test = "".join(f"{record.text}\n" for record in part.test)
    for file, text in ((TRAIN_FILE, f"[\n{train}\n]\n"), (TEST_FILE, test)):
        DISK.write(folder / file, text.encode())
        DISK.sync(folder / file)
    for image in part.images:
        inside = image.relative_to(part.folder)
        target = folder / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            _copy(source / inside, target)
        else:
            beside = (home / name / inside).parent
            target.symlink_to(os.path.relpath(source / inside, beside))


def _copy(image: Path, target: Path) -> None:
    """Link the file, which takes no space, or copy it if that is not possible."""
    try:
        os.link(image.resolve(), target)
    except OSError:
        shutil.copyfile(image, target)


def _listed(values: Iterable[object]) -> str:
    shown = [str(value)[:40] for value in values]
    return ", ".join([*shown[:_MOST_SHOWN], *(["..."] if shown[_MOST_SHOWN:] else [])]) or "nothing"
