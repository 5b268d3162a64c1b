"""A folder for each class, as in torchvision's ImageFolder, perhaps under train, val and test."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from client.importing.dicom_series import stacks
from client.importing.picture_files import PictureFiles, is_dicom
from client.importing.question import (
    SPLIT_NAMES,
    BadRow,
    DatasetPart,
    Place,
    SourceContents,
    SourceItem,
    SourceQuestion,
)
from client.importing.values import as_text
from common.errors import DataError
from common.printable import counted

_LEADS_OUT = (
    "found a link that leads out of the folder, expected files in it (--pictures names another one)"
)
_LEADS_NOWHERE = "found a link to nothing, expected a picture"


def read_class_folders(source: Path, pictures: PictureFiles) -> SourceContents:
    """Read the pictures of each class; those of DICOM stacks as one (`stacks`).

    A picture in a folder within a class belongs to the class. Pictures beside the classes belong
    to none, which a note says.

    Raises:
        DataError: there are no folders with pictures.
    """
    found: dict[tuple[str, str], list[Path]] = {}
    without = 0
    below = [file for file in pictures.files if file.is_relative_to(source)]
    top = _top(source, below)
    split_folders = _split_folders(top, below)
    for file in below:
        parts = file.relative_to(top).parts
        part = parts[0] if split_folders else ""
        inside = parts[1:] if split_folders else parts
        if len(inside) < 2 or (split_folders and part.lower() not in SPLIT_NAMES):
            without += 1
        else:
            found.setdefault((part, inside[0]), []).append(file)
    if not found:
        raise DataError(
            f"{source}: found {len(below)} pictures and no folders of them, expected a folder for "
            "each class, or a table (CSV, JSON, parquet) that says what they show"
        )
    items: list[SourceItem] = [
        BadRow(Place(link.relative_to(source).as_posix()), reason)
        for links, reason in (
            (pictures.leading_out, _LEADS_OUT),
            (pictures.leading_nowhere, _LEADS_NOWHERE),
        )
        for link in links
        if link.is_relative_to(source)
    ]
    items += [
        item
        for (part, label), files in found.items()
        for item in _of_class(SPLIT_NAMES.get(part.lower()), label, files, pictures)
    ]
    notes = [f"{without} pictures are in no class's folder and were left out"] if without else []
    notes += _other_kinds([file for file in pictures.other_kinds if file.is_relative_to(source)])
    parts = ", under " + ", ".join(sorted({p for p, _ in found})) if split_folders else ""
    return SourceContents(f"a folder for each class{parts}", items, notes)


def _other_kinds(files: Sequence[Path]) -> list[str]:
    """Return a note on the files that are no pictures of a kind that is read."""
    if not files:
        return []
    endings = Counter(file.suffix.lower() or "without an ending" for file in files)
    each = ", ".join(f"{ending}: {number}" for ending, number in endings.most_common(6))
    return [f"{counted(len(files), 'file')} of other kinds left out ({each})"]


def _top(source: Path, files: list[Path]) -> Path:
    """Return the folder of the classes or parts: within a lone folder, as archives have it."""
    first = {file.relative_to(source).parts[:-1][:1] for file in files}
    if len(first) != 1 or first == {()}:
        return source
    inside = source.joinpath(*first.pop())
    deep = all(len(file.relative_to(inside).parts) > 1 for file in files)
    return _top(inside, files) if deep else source


def _split_folders(source: Path, files: list[Path]) -> bool:
    """Return whether the first folders are those of train and test: at least one, no class."""
    first = {parts[0] for file in files if len(parts := file.relative_to(source).parts) > 1}
    named = {name for name in first if name.lower() in SPLIT_NAMES}
    deep = any(len(file.relative_to(source).parts) > 2 for file in files)
    return bool(named) and deep


def _of_class(
    split: DatasetPart | None, label: str, files: list[Path], pictures: PictureFiles
) -> Iterator[SourceItem]:
    dicom = [file for file in files if is_dicom(file)]
    known = set(dicom)
    single = [(file,) for file in files if file not in known]
    for group in sorted([*single, *stacks(dicom)]):
        yield SourceQuestion(
            place=Place(pictures.name(group[0])),
            files=group,
            question=None,
            answer=as_text(label) or label,
            split=split,
        )
