"""Reads image-caption pairs from files in the formats that others publish them in.

- JSONL: one object a line, as in open_clip's and Hugging Face's `metadata.jsonl`
- CSV or TSV with a header, as in open_clip's `filepath` and `title` and `metadata.csv`
- webdataset's tar: members `KEY.jpg` and `KEY.txt`, or `KEY.json` with a caption

A field may have any of the names in `CAPTION_FIELDS` and `IMAGE_FIELDS`; `id` may be absent.
No message quotes a caption.
"""

import csv
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, TypeAlias

from client.data.records import (
    Mistake,
    Record,
    as_record,
    describe_type,
    parse_json,
)
from common.documents.bounded import MOST_BYTES
from common.errors import DataError
from common.printable import has_broken_letter
from retrieval.pairs import CaptionedImage, ImageLocation

CAPTION_FIELDS: Final = ("caption", "text", "title")
IMAGE_FIELDS: Final = ("image", "filepath", "file_name", "image_path")
#: Endings of a tar's members that are images.
IMAGE_ENDINGS: Final = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp")
#: So many mistakes are listed before reading stops.
LISTED_MISTAKES: Final = 10
#: A caption longer than this is no caption; CLIP's text tower reads 77 tokens.
LONGEST_CAPTION: Final = 20_000
_BROKEN: Final = "text with half of a surrogate pair, which is no letter"

PairItem: TypeAlias = CaptionedImage | Mistake
_Reader: TypeAlias = Callable[[Path, Path], Iterator[PairItem]]


def pair_files(folder: Path, without: Path) -> list[Path]:
    """Return the files of pairs in `folder` and its sub-folders, by name; none in `without`.

    Raises:
        DataError: there is no such folder, or it has no file of a known format.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise DataError(f"{folder}: found {found}, expected a folder of image-caption pairs")
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in _READERS and file.is_file() and not file.is_relative_to(without)
    )
    if not files:
        raise DataError(
            f"{folder}: found no {', '.join(sorted(_READERS))} file, expected image-caption pairs "
            "in one of these formats"
        )
    return files


def read_pairs(folder: Path, files: list[Path]) -> Iterator[CaptionedImage]:
    """Yield the pairs of `files` in their order.

    Raises:
        DataError: with one line a mistake, at most `LISTED_MISTAKES` of them, after the last pair
            or once there are so many.
    """
    mistakes: list[Mistake] = []
    for file in files:
        count = 0
        for item in _READERS[file.suffix.lower()](folder, file):
            count += 1
            if isinstance(item, CaptionedImage):
                yield item
                continue
            mistakes.append(item)
            if len(mistakes) == LISTED_MISTAKES:
                raise _refusal(mistakes, "; reading stopped here")
        if count == 0:
            mistakes.append(Mistake(f"{file}: found no pairs, expected at least one"))
    if mistakes:
        raise _refusal(mistakes, "")


def _refusal(mistakes: list[Mistake], end: str) -> DataError:
    return DataError("\n".join(mistake.text for mistake in mistakes) + end)


def _jsonl_pairs(folder: Path, file: Path) -> Iterator[PairItem]:
    for number, raw in enumerate(_lines(file), start=1):
        if isinstance(raw, Mistake):
            yield raw
            return
        where = f"{file}: line {number}"
        try:
            line = raw.rstrip().decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield Mistake(f"{where}: found no UTF-8 at byte {error.start}, expected UTF-8 text")
            continue
        if line:
            value = parse_json(line, str(file), number)
            record = value if isinstance(value, Mistake) else as_record(value, where)
            yield _pair_of(record, folder, file, number)


def _lines(file: Path) -> Iterator[bytes | Mistake]:
    try:
        with file.open("rb") as opened:
            yield from opened
    except OSError as error:
        yield Mistake(f"{file}: found a file that can't be read ({error.strerror})")


def _csv_pairs(folder: Path, file: Path) -> Iterator[PairItem]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            header = opened.readline()
            opened.seek(0)
            # Which caption is too long is said of its line.
            csv.field_size_limit(max(csv.field_size_limit(), file.stat().st_size))
            rows = csv.DictReader(opened, delimiter="\t" if "\t" in header else ",", strict=True)
            names = list(rows.fieldnames or ())
            if mistake := _header_mistake(names, file):
                yield mistake
                return
            for row in rows:
                where = f"{file}: line {rows.line_num}"
                if None in row or None in row.values():
                    yield Mistake(
                        f"{where}: found more or fewer fields than the {len(names)} of the header"
                    )
                else:
                    yield _pair_of(Record(where, {**row}), folder, file, rows.line_num)
    except UnicodeDecodeError as error:
        yield Mistake(f"{file}: found no UTF-8 ({error.reason}), expected UTF-8 text")
    except csv.Error as error:
        yield Mistake(f"{file}: found a line that is not CSV ({error}), expected CSV")
    except OSError as error:
        yield Mistake(f"{file}: found a file that can't be read ({error.strerror})")


def _header_mistake(names: list[str], file: Path) -> Mistake | None:
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        return Mistake(
            f"{file}: line 1: found the column {twice[0][:40]!r} twice, expected it once"
        )
    for known in (IMAGE_FIELDS, CAPTION_FIELDS):
        if not set(known) & set(names):
            found = ", ".join(repr(name[:40]) for name in names[:8]) or "nothing"
            return Mistake(
                f"{file}: line 1: found the columns {found}, expected one of {', '.join(known)}"
            )
    return None


def _pair_of(record: Record | Mistake, folder: Path, file: Path, line: int) -> PairItem:
    """Return the pair of a line, or the first mistake in it."""
    if isinstance(record, Mistake):
        return record
    caption, image = _caption(record), _image(record, folder)
    name = _identifier(record, f"{file.relative_to(folder).as_posix()}:{line}")
    for part in (name, image, caption):
        if isinstance(part, Mistake):
            return part
    assert isinstance(name, str) and isinstance(caption, str)
    assert isinstance(image, ImageLocation)
    return CaptionedImage(name, caption, image, record.where)


def _identifier(record: Record, default: str) -> str | Mistake:
    value = record.fields.get("id", default)
    if isinstance(value, str) and has_broken_letter(value):
        return record.mistake("id", _BROKEN, "a text or a whole number, or no such field")
    if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
        return str(value)
    return record.mistake("id", describe_type(value), "a text or a whole number, or no such field")


def _caption(record: Record) -> str | Mistake:
    key = _first_of(CAPTION_FIELDS, record)
    value = record.fields.get(key)
    if not isinstance(value, str) or not value.strip():
        return record.mistake(key, describe_type(value), "a caption")
    if has_broken_letter(value):
        return record.mistake(key, _BROKEN, "a caption")
    if len(value) > LONGEST_CAPTION:
        return record.mistake(
            key, f"{len(value)} characters", f"a caption of at most {LONGEST_CAPTION}"
        )
    return " ".join(value.split())


def _image(record: Record, folder: Path) -> ImageLocation | Mistake:
    key = _first_of(IMAGE_FIELDS, record)
    value = record.fields.get(key)
    if not isinstance(value, str) or not value.strip():
        return record.mistake(key, describe_type(value), "an image's path in the folder of pairs")
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or "\0" in value:
        return record.mistake(key, repr(value[:80]), "a path inside the folder of pairs")
    # Not the path's own method, which raises for a name that is too long.
    if has_broken_letter(value) or not os.path.isfile(folder / path):
        return record.mistake(
            key, f"{value[:80]!r}, where there is no file", f"an image in {folder}"
        )
    return ImageLocation(path.as_posix(), path.name)


def _first_of(names: tuple[str, ...], record: Record) -> str:
    """Return the first of `names` that the record has; the first of all where it has none."""
    return next((name for name in names if name in record.fields), names[0])


@dataclass(slots=True)
class _Sample:
    """The members of a tar that share a key."""

    key: str
    captions: dict[str, str | Mistake] = field(default_factory=dict[str, str | Mistake])
    images: list[ImageLocation] = field(default_factory=list[ImageLocation])

    def pair(self, folder: Path, file: Path) -> PairItem:
        """Return the sample's pair, or what is wrong with it; a .txt counts before a .json."""
        where = f"{file}: sample {self.key[:80]!r}"
        caption = self.captions.get("txt", self.captions.get("json"))
        if caption is None:
            return Mistake(f"{where}: found no caption, expected a member .txt or .json")
        if isinstance(caption, Mistake):
            return caption
        if len(self.images) != 1:
            found = f"{len(self.images)} images" if self.images else "no image"
            return Mistake(f"{where}: found {found}, expected one of {', '.join(IMAGE_ENDINGS)}")
        name = f"{file.relative_to(folder).with_suffix('').as_posix()}/{self.key}"
        return CaptionedImage(name, caption, self.images[0], where)


def _tar_pairs(folder: Path, file: Path) -> Iterator[PairItem]:
    """Yield the samples of a webdataset: neighbouring members with the same name up to a dot."""
    sample: _Sample | None = None
    try:
        # Uncompressed: an image is read later by its place in the file.
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                head, _, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                key = f"{head}/{stem}" if head else stem
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample.pair(folder, file)
                    sample = _Sample(key)
                _add_member(sample, tar, member, ending.lower(), (folder, file))
    except (tarfile.TarError, EOFError) as error:
        yield Mistake(f"{file}: found no whole, uncompressed tar ({error}), expected one")
        return
    except OSError as error:
        yield Mistake(f"{file}: found a file that can't be read ({error.strerror or error})")
        return
    if sample is not None:
        yield sample.pair(folder, file)


def _add_member(
    sample: _Sample,
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    ending: str,
    place: tuple[Path, Path],
) -> None:
    folder, file = place
    where = f"{file}: sample {sample.key[:80]!r}"
    if ending in IMAGE_ENDINGS:
        relative = file.relative_to(folder).as_posix()
        base = member.name.rpartition("/")[2]
        sample.images.append(ImageLocation(relative, base, member.offset_data, member.size))
    elif ending in ("txt", "json"):
        if member.size > MOST_BYTES:
            found = f"{member.size:,} bytes, expected a caption of at most {MOST_BYTES:,}"
            sample.captions[ending] = Mistake(f"{where}, member .{ending}: found {found}")
            return
        opened = tar.extractfile(member)
        blob = b"" if opened is None else opened.read()
        sample.captions[ending] = _caption_of_member(blob, ending, f"{where}, member .{ending}")


def _caption_of_member(blob: bytes, ending: str, where: str) -> str | Mistake:
    try:
        text = blob.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Mistake(f"{where}: found no UTF-8 at byte {error.start}, expected UTF-8 text")
    if ending == "txt":
        return _caption(Record(where, {CAPTION_FIELDS[0]: text}))
    value = parse_json(text, where)
    record = value if isinstance(value, Mistake) else as_record(value, where)
    return record if isinstance(record, Mistake) else _caption(record)


_READERS: Final[Mapping[str, _Reader]] = {
    ".jsonl": _jsonl_pairs,
    ".csv": _csv_pairs,
    ".tsv": _csv_pairs,
    ".tar": _tar_pairs,
}
