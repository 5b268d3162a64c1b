"""The import of a source as a task: read, ask, check, split and write, whole or not at all."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Final

from client.data.check import OnImagesDecoded, count_decoded
from client.data.file_modality import MODALITIES
from client.data.image_check import decode_images
from client.data.new_folder import atomic_folder, empty_target
from client.data.records import quoted
from client.data.task import LISTED_MISTAKES
from client.importing.ask import ask
from client.importing.dicom_series import facts
from client.importing.picture_files import is_dicom
from client.importing.question import (
    BadRow,
    SourceContents,
    SourceError,
    SourceItem,
    SourceQuestion,
    counted_notes,
    summed_up,
)
from client.importing.settings import ImportSettings
from client.importing.sources import Source, open_source, read_source
from client.importing.split import contradictions, equal_pictures, split_questions
from client.importing.stage_pictures import StagedPictures
from client.importing.values import as_patient
from client.importing.write import Import, write_import
from common.durable import DISK, remove_if_there
from common.errors import DataError
from common.plan_fields import Modality
from common.printable import counted

#: The names that a plan accepts for a task.
_TASK: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
#: The name of a patient's folder, as in CheXpert (patient00001) and BIDS (sub-01).
_PATIENT_FOLDER: Final = re.compile(r"patient[_-]?\d+|sub-[A-Za-z0-9]+", re.I)
_STAGED: Final = ".staged"
#: DICOM's codes of slides, whose pictures may be called either; without a word these are taken.
_OF_SLIDES: Final = {"SM": Modality.PATHOLOGY, "GM": Modality.MICROSCOPY}


def import_task(
    path: Path, out: Path, settings: ImportSettings, on_decoded: OnImagesDecoded
) -> Import:
    """Import the source at `path` as the task in `out`, and return what was found.

    Equal sources and settings give equal bytes. Every picture is decoded once.

    Args:
        out: a new or an empty folder; its name is the task's.

    Raises:
        DataError: with a sentence for each thing that is wrong; nothing is left of `out`.
    """
    home = empty_target(out)
    if not _TASK.fullmatch(home.name):
        raise DataError(
            f"{out}: found the name {quoted(home.name)}, expected the task's: 1 to 40 of a to z, "
            "A to Z, 0 to 9, - and _, a letter or digit first"
        )
    source = open_source(path, settings)
    if source.file is None and home.is_relative_to(source.folder.resolve()):
        raise DataError(f"{out}: found a folder inside of the source, expected one outside of it")
    with atomic_folder(home) as partial:
        staged = StagedPictures(partial / _STAGED, settings.take, settings.axis)
        try:
            found = _read(source, staged, home.name, on_decoded)
        except SourceError as error:
            raise DataError(f"{source.file or source.folder}: {error}") from None
        write_import(found, partial, staged.folder, settings.link)
        remove_if_there(staged.folder, DISK)
    return found


def _read(source: Source, staged: StagedPictures, task: str, on_decoded: OnImagesDecoded) -> Import:
    settings = source.settings
    contents = read_source(source, staged)
    asked = ask(contents.items, settings, contents.classes)
    items = [one for item in asked.questions for one in staged.pictures_of(item)]
    questions, bad = _sorted_out(items)
    questions, same = _one_patient_each([_with_patient(one, source) for one in questions])
    bad = [*asked.bad_rows, *bad, *contradictions(questions)]
    wrong = {id(row.place) for row in bad}
    questions = [one for one in questions if id(one.place) not in wrong]
    digests, damaged = _decoded(questions, source, task, on_decoded)
    bad += damaged
    _refuse(bad, settings, contents)
    questions, repeated = _without_repeated([one for one in questions if one.picture in digests])
    if not questions:
        raise DataError(f"{source.folder}: found no question that can be used, expected some")
    split = split_questions(questions, digests, settings)
    if not split.train or not split.test:
        raise DataError(
            f"{source.folder}: found {len(split.train)} training and {len(split.test)} test "
            "questions, expected some of both: --resplit splits anew"
        )
    modality, notes = _modality(questions, settings.modality)
    notes += [*contents.notes, *asked.notes, *same, *_volume_notes(staged, settings), *repeated]
    notes += equal_pictures(questions, digests)
    return Import(
        task=task,
        source=source.file or source.folder,
        form=contents.form,
        modality=modality,
        split=split,
        classes=asked.classes,
        templates=asked.templates,
        names={one.picture: _name(one, source) for one in questions},
        notes=counted_notes(notes),
        left_out=summed_up(bad),
        bad_rows=len(bad),
    )


def _sorted_out(items: Sequence[SourceItem]) -> tuple[list[SourceQuestion], list[BadRow]]:
    questions = [item for item in items if isinstance(item, SourceQuestion)]
    return questions, [item for item in items if isinstance(item, BadRow)]


def _name(one: SourceQuestion, source: Source) -> str:
    """Return what the source calls a picture: its file, the volume's, or the row that holds it."""
    if one.picture.parent.name != _STAGED:
        return source.pictures.name(one.picture)
    return str(one.place) if one.origin is None else source.pictures.name(Path(one.origin))


def _with_patient(one: SourceQuestion, source: Source) -> SourceQuestion:
    """Return the question with its patient: by the pattern, the source, or a folder's name."""
    settings = source.settings
    if not settings.patients:
        return replace(one, patient=None)
    name = _name(one, source)
    if settings.patient_pattern is not None:
        match = re.search(settings.patient_pattern, name)
        return replace(one, patient=as_patient(match.group(1)) if match else None)
    if one.patient is not None:
        return replace(one, patient=as_patient(one.patient))
    folders = PurePosixPath(name).parts[:-1]
    return replace(one, patient=next((p for p in folders if _PATIENT_FOLDER.fullmatch(p)), None))


def _one_patient_each(
    questions: Sequence[SourceQuestion],
) -> tuple[list[SourceQuestion], list[str]]:
    """Return the questions with one name for patients that differ in case alone, and a note."""
    names = dict.fromkeys(one.patient for one in questions if one.patient is not None)
    first: dict[str, str] = {}
    same = {name: first.setdefault(name.casefold(), name) for name in names}
    merged = len(names) - len(first)
    if not merged:
        return [*questions], []
    taken = "is" if merged == 1 else "are"
    note = f"{counted(merged, 'patient')} differing from another in case alone {taken} taken for it"
    found = [
        one if one.patient is None else replace(one, patient=same[one.patient]) for one in questions
    ]
    return found, [note]


def _decoded(
    questions: Sequence[SourceQuestion], source: Source, task: str, on_decoded: OnImagesDecoded
) -> tuple[dict[Path, str], list[BadRow]]:
    """Return the digest of each picture's pixels, and a row for each that can't be decoded."""
    places: dict[Path, SourceQuestion] = {}
    for one in questions:
        places.setdefault(one.picture, one)
    pictures = list(places)
    on_each = count_decoded(task, len(pictures), on_decoded)
    decoded = decode_images(pictures, source.settings.workers, on_each)
    bad = [
        BadRow(places[picture].place, sentence.removeprefix(f"{picture}: "))
        for picture, sentence in decoded.mistakes.items()
    ]
    return decoded.digests, bad


def _refuse(bad: Sequence[BadRow], settings: ImportSettings, contents: SourceContents) -> None:
    """Refuse an import with rows that can't be used, unless they are to be left out."""
    if not bad or settings.leave_out_bad:
        return
    sentences = summed_up(bad)
    more = len(sentences) - LISTED_MISTAKES
    raise DataError(
        "\n".join(
            [
                *sentences[:LISTED_MISTAKES],
                *([f"and {more} more"] if more > 0 else []),
                f"{counted(len(bad), 'row')} of {len(contents.items)} can't be used: nothing was "
                "written (--leave-out-bad imports the others)",
            ]
        )
    )


def _without_repeated(
    questions: Sequence[SourceQuestion],
) -> tuple[list[SourceQuestion], list[str]]:
    """Return each question about a picture once, and a note on those that came again."""
    first: dict[tuple[Path, str, str], SourceQuestion] = {}
    for one in questions:
        first.setdefault((one.picture, one.question or "", one.answer), one)
    repeated = len(questions) - len(first)
    notes = (
        [f"{counted(repeated, 'row')} repeated another one and was left out"] if repeated else []
    )
    return [*first.values()], notes


def _modality(
    questions: Sequence[SourceQuestion], told: Modality | None
) -> tuple[Modality | None, list[str]]:
    """Return the task's modality: as told, or that of all DICOM headers if they agree."""
    files = dict.fromkeys(one.picture for one in questions if is_dicom(one.picture))
    codes = Counter(facts(file).modality for file in files)
    if told is None:
        known = {one for code in codes if (one := _modality_of(code)) is not None}
        alone = len(known) == 1 and len(files) == len({q.picture for q in questions})
        return (known.pop() if alone else None), []
    others = sum(codes[code] for code in codes if told not in MODALITIES.get(code, {told}))
    if others:
        return told, [
            f"{counted(others, 'DICOM file')} of another modality than {told}, as their headers say"
        ]
    return told, []


def _modality_of(code: str) -> Modality | None:
    """Return our modality of DICOM's code, beside the wide `radiology`; None if it says none."""
    ours = MODALITIES.get(code, frozenset()) - {Modality.RADIOLOGY}
    return _OF_SLIDES.get(code) or next(iter(ours), None)


def _volume_notes(staged: StagedPictures, settings: ImportSettings) -> list[str]:
    if not staged.volumes:
        return []
    took = {None: "all pictures", 1: "the middle picture"}.get(
        settings.take.count, f"{settings.take.count} pictures"
    )
    of = counted(staged.volumes, "series or volume", "series and volumes")
    return [f"of {of} {took} of each was taken (--take)"]
