"""What a source is, and its reading: tables, JSON, parquet, published sets, folders of classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from client.importing import published
from client.importing.class_folders import read_class_folders
from client.importing.columns import table_layout
from client.importing.json_forms import (
    JSON_ENDINGS,
    conversation_questions,
    is_conversation,
    read_json,
)
from client.importing.picture_files import PictureFiles, is_left_by_a_system
from client.importing.question import (
    SPLIT_NAMES,
    DatasetPart,
    SourceContents,
    SourceItem,
    listed,
)
from client.importing.settings import Form, ImportSettings
from client.importing.stage_pictures import StagedPictures
from client.importing.table_questions import TableReader, several_findings
from client.importing.tables import TABLE_ENDINGS, Table, read_table
from common.errors import DataError

_ENDINGS: Final[Mapping[Form, tuple[str, ...]]] = {
    Form.PARQUET: (".parquet", ".arrow"),
    Form.JSON: JSON_ENDINGS,
    Form.TABLE: TABLE_ENDINGS,
}
#: Folders in which tables lie, beside those of train and test.
_TABLE_FOLDERS: Final = ("data", "annotations", "default")
#: Files beside a data set that are no table of it.
_BESIDE_TABLES: Final = frozenset(
    {
        "dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json", "import.json",
        "readme.txt", "license.txt", "requirements.txt", "import.txt", "classes.txt", "labels.txt",
    }
)  # fmt: skip
_OTHERS: Final = {
    (".xlsx", ".xls", ".ods"): "save the table as CSV (UTF-8)",
    (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"): "unpack it",
}


@dataclass(frozen=True, slots=True)
class Source:
    """A source's folder, its one file if that is given, and where its pictures are."""

    folder: Path
    file: Path | None
    pictures: PictureFiles
    settings: ImportSettings

    def name(self, file: Path) -> str:
        """Return what messages call a file."""
        return file.relative_to(self.folder).as_posix()


def open_source(path: Path, settings: ImportSettings) -> Source:
    """Return the source at `path`, a folder or a file beside its pictures.

    Raises:
        DataError: there is nothing of use.
    """
    if not (path.is_dir() or path.is_file()):
        if path.exists():
            raise DataError(f"{path}: found neither a file nor a folder, expected one of them")
        raise DataError(f"{path}: found nothing, expected a folder of data, or a table")
    folder = path if path.is_dir() else path.parent
    if settings.pictures is not None and not settings.pictures.is_dir():
        raise DataError(f"{settings.pictures}: found no folder, expected one with pictures")
    # Beside a table may be anything; a folder that is given is meant.
    roots = [] if settings.pictures is not None and path.is_file() else [folder]
    roots = roots if settings.pictures is None else [settings.pictures, *roots]
    file = None if path.is_dir() else path.absolute()
    return Source(folder.absolute(), file, PictureFiles(roots), settings)


def read_source(source: Source, staged: StagedPictures) -> SourceContents:
    """Read every question of the source.

    Raises:
        DataError: it is nothing that can be imported, in one sentence.
    """
    form = source.settings.form
    found = _published(source)
    if found is not None:
        return found
    if form is not Form.FOLDERS:
        files = _files(source)
        for wanted, endings in _ENDINGS.items():
            own = [
                file for file in files if file.suffix.lower() in endings or _is_told(source, wanted)
            ]
            if own and form in (Form.AUTO, wanted):
                chosen = _one_table(source, own)
                found = _read_files(source, wanted, chosen, staged)
                return replace(found, notes=[*found.notes, *_left_out(source, own, chosen)])
        if form is not Form.AUTO or source.file is not None:
            raise DataError(_nothing(source))
    return read_class_folders(source.folder, source.pictures)


def _is_told(source: Source, form: Form) -> bool:
    """Return whether the user named one file and its form, whatever its ending."""
    told = source.settings.form is form or (source.file and source.file.suffix.lower() == ".txt")
    return source.file is not None and bool(told) and form is not Form.PARQUET


def _published(source: Source) -> SourceContents | None:
    """Return the contents of a published set, if the source is one."""
    form = source.settings.form
    if source.file is not None or form not in (Form.AUTO, *published.READERS):
        return None
    for kind, reader in published.READERS.items():
        files = reader.files(source.folder) if form in (Form.AUTO, kind) else None
        if files is not None:
            return reader.read(source.folder, files, source.pictures, source.settings.language)
    if form is not Form.AUTO:
        expected = published.READERS[form].layout
        raise DataError(f"{source.folder}: found no layout of {form}, expected {expected}")
    return None


def _files(source: Source) -> list[Path]:
    """Return the files that may be tables: the given one, those of the folder, or of its parts."""
    if source.file is not None:
        return [source.file]
    inside = [folder for folder in sorted(source.folder.iterdir()) if _may_have_tables(folder)]
    deeper = [part for folder in inside for part in sorted(folder.iterdir())]
    folders = [source.folder, *inside, *(part for part in deeper if _may_have_tables(part))]
    return [
        file
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.is_file()
        and not is_left_by_a_system(file.name)
        and file.name.lower() not in _BESIDE_TABLES
    ]


def _may_have_tables(folder: Path) -> bool:
    return folder.is_dir() and folder.name.lower() in (*SPLIT_NAMES, *_TABLE_FOLDERS)


def split_of(file: Path, folder: Path) -> DatasetPart | None:
    """Return the part that a file's name or folder says: train.csv, test-0000-of-0001.parquet."""
    words = [file.stem.lower(), *(part.lower() for part in file.relative_to(folder).parts[:-1])]
    for word in words:
        first = word.replace("_", "-").replace(".", "-").split("-")
        for piece in (word, first[0], first[-1]):
            if piece in SPLIT_NAMES:
                return SPLIT_NAMES[piece]
    return None


def _one_table(source: Source, files: Sequence[Path]) -> list[tuple[Path, DatasetPart | None]]:
    """Return the source's one table, or those of its parts.

    Raises:
        DataError: there are several that are not parts.
    """
    parts = [(file, split_of(file, source.folder)) for file in files]
    named = [pair for pair in parts if pair[1] is not None]
    if len(files) == 1:
        return parts
    if named:
        return named
    if all(file.suffix.lower() in _ENDINGS[Form.PARQUET] for file in files):
        return parts
    tables = listed([source.name(file) for file in files], 5)
    raise DataError(
        f"{source.folder}: found {len(files)} tables ({tables}), "
        "expected one, or some called train and test: give the one file as SOURCE"
    )


def _left_out(
    source: Source, files: Sequence[Path], chosen: Sequence[tuple[Path, DatasetPart | None]]
) -> list[str]:
    """Return a note on the tables that are none of the parts, beside those that are."""
    taken = {file for file, _ in chosen}
    others = [source.name(file) for file in files if file not in taken]
    if not others:
        return []
    return [
        f"{listed(others, 5)} left out: called neither train nor test, beside "
        f"{listed([source.name(file) for file, _ in chosen], 5)}"
    ]


def _read_files(
    source: Source,
    form: Form,
    files: Sequence[tuple[Path, DatasetPart | None]],
    staged: StagedPictures,
) -> SourceContents:
    parts: list[SourceContents] = []
    for file, split in files:
        name = source.name(file)
        names: Mapping[str, Mapping[str, str]] = {}
        if form is Form.TABLE:
            table = read_table(file, name, split)
        elif form is Form.JSON:
            table = read_json(file, name, split)
        else:
            from client.importing.parquet import read_parquet

            table, names = read_parquet(file, name, split, staged)
        parts.append(_questions(source, table, names, staged))
    items = [item for part in parts for item in part.items]
    if not items:
        raise DataError(f"{source.name(files[0][0])}: found no rows, expected at least one")
    what = {Form.TABLE: "a table", Form.JSON: "JSON", Form.PARQUET: "parquet or arrow files"}[form]
    named = ", ".join(source.name(file) for file, _ in files[:6])
    return SourceContents(
        f"{what}: {named}",
        items,
        [note for part in parts for note in part.notes],
        tuple(dict.fromkeys(label for part in parts for label in part.classes)),
    )


def _questions(
    source: Source, table: Table, names: Mapping[str, Mapping[str, str]], staged: StagedPictures
) -> SourceContents:
    """Return the questions of a table's rows; a row may be a conversation."""
    settings = source.settings

    def find(name: str) -> tuple[Path, ...] | str:
        if name.startswith("data:"):
            return staged.decoded(name)
        return source.pictures.find(name, (source.folder / table.file).parent)

    items: list[SourceItem] = list(table.bad_rows)
    notes, classes = list(table.notes), ()
    for row in table.rows:
        if is_conversation(row):
            items += conversation_questions(row, find)
    flat = [row for row in table.rows if not is_conversation(row)]
    if flat:
        layout = table_layout(table.file, table.columns, flat, settings.columns)
        if settings.resplit:
            layout = replace(layout, split=None)
        notes.append(f"{table.file}: {layout}")
        of_label = names.get(layout.label or "", {})
        classes = layout.flags if layout.one_hot else tuple(of_label.values())
        findings = several_findings(row.cells.get(layout.label or "") for row in flat)
        reader = TableReader(layout, find, settings.uncertain, of_label, findings)
        items += [item for row in flat for item in reader.questions(row)]
    return SourceContents(table.file, items, notes, classes)


def _nothing(source: Source) -> str:
    if source.file is not None:
        for endings, remedy in _OTHERS.items():
            if source.file.suffix.lower() in endings:
                return f"{source.file}: found {source.file.suffix}, expected a table: {remedy}"
    form = source.settings.form
    wanted = "nothing that can be imported" if form is Form.AUTO else f"no source of --form {form}"
    return (
        f"{source.file or source.folder}: found {wanted}, expected CSV, TSV, JSON, JSONL, parquet, "
        "arrow, or a folder for each class"
    )
