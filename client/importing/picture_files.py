"""The pictures below a source's folders, and which one a table means by what it calls it."""

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, TypeAlias

from client.data.pictures.dicom import HEAD_BYTES, SUFFIXES
from client.data.pictures.dicom import is_dicom as begins_as_dicom
from client.data.records import quoted
from client.importing.question import listed

#: Endings of pictures that can be imported, in small letters.
PICTURE_ENDINGS: Final = (
    ".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp", ".dib", ".webp", ".jp2", ".j2k",
    ".jpx", ".jpf", ".j2c", ".dcm", ".dicom", ".dic", ".ima", ".nii.gz", ".nii",
)  # fmt: skip
VOLUME_ENDINGS: Final = (".nii.gz", ".nii")
#: What systems and archives leave in folders.
_NO_DATA: Final = frozenset(
    {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "dicomdir", "ehthumbs.db"}
)
#: Returns the files that a name in a source means, or a text: what was found instead.
FindPicture: TypeAlias = Callable[[str], tuple[Path, ...] | str]


def picture_ending(name: str) -> str | None:
    """Return the ending of a name, in small letters, if it is a picture's."""
    low = name.lower()
    return next((ending for ending in PICTURE_ENDINGS if low.endswith(ending)), None)


def is_volume(file: Path) -> bool:
    """Return whether the name is that of a NIfTI volume."""
    return file.name.lower().endswith(VOLUME_ENDINGS)


def is_dicom(file: Path) -> bool:
    """Return whether a file's name says that it is DICOM, or if no format's its first bytes do."""
    if file.suffix.lower() in SUFFIXES:
        return True
    return file.suffix.lower() not in PICTURE_ENDINGS and _begins_as_dicom(file)


def is_left_by_a_system(name: str) -> bool:
    """Return whether a file or folder is hidden, or what a system leaves beside data."""
    return name.startswith(".") or name.lower() in _NO_DATA


class PictureFiles:
    """The pictures below some folders; a symbolic link that leads out of all of them is none."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = tuple(root.absolute() for root in roots)
        self._inside = tuple(root.resolve() for root in roots)
        #: Links that lead out of the folders, and those whose target does not exist.
        self.leading_out: list[Path] = []
        self.leading_nowhere: list[Path] = []
        #: Files that are no pictures of a kind that is read.
        self.other_kinds: list[Path] = []
        found = [file for root in self.roots for file in self._walk(root)]
        self.files: tuple[Path, ...] = tuple(dict.fromkeys(found))

    def name(self, file: Path) -> str:
        """Return a file's path below its folder, with slashes."""
        root = next((root for root in self.roots if file.is_relative_to(root)), None)
        return file.relative_to(root).as_posix() if root else file.name

    def find(self, given: str, beside: Path | None = None) -> tuple[Path, ...] | str:
        """Return the file that a source calls so, or the files of a folder or a DICOM series.

        Case, the form of letters with accents, the kind of slash and leading folders of another
        machine don't matter; the ending may be missing. A path from the folder `beside`, the
        table's own, comes first. Where that leaves no single file, the result is a text: what was
        found.
        """
        if given.lower().startswith(("http://", "https://")):
            return f"the address {quoted(given)}, which is not fetched"
        parts = _parts(given)
        if not parts:
            return "no file's name"
        ended = picture_ending(parts[-1]) is not None
        matching = self._matching(parts, ended, beside)
        if len(matching) == 1:
            return (matching[0],)
        if matching:
            names = listed(map(self.name, matching), 3)
            return f"{quoted(given)}, which {len(matching)} files are called ({names})"
        below = self._below(parts)
        if below:
            return below
        series = () if ended else self._by_identifier.get(given.strip(), ())
        return series or f"{quoted(given)}, where there is no picture{self._near(parts)}"

    def _walk(self, root: Path) -> Iterator[Path]:
        # What can't be listed is an error: its pictures would be missed in silence.
        for folder, folders, names in os.walk(root, onerror=_raise):
            folders[:] = sorted(name for name in folders if not is_left_by_a_system(name))
            # Not followed: a link to a folder inside would only double its pictures.
            self.leading_out += [p for name in folders if self._leads_out(p := Path(folder, name))]
            for name in sorted(names):
                file = Path(folder, name)
                if is_left_by_a_system(name):
                    continue
                if not _may_be_picture(file):
                    self.other_kinds.append(file)
                elif self._is_own(file):
                    yield file

    def _is_own(self, file: Path) -> bool:
        if self._leads_out(file):
            self.leading_out.append(file)
            return False
        if file.is_symlink() and not file.exists():
            self.leading_nowhere.append(file)
        return file.is_file()

    def _leads_out(self, path: Path) -> bool:
        if not path.is_symlink():
            return False
        # Unlike the path's own method, of a loop of links this returns some path.
        target = Path(os.path.realpath(path))
        return not any(target.is_relative_to(one) for one in self._inside)

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        return _index(self.files, lambda file: _folded(file.name))

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        return _index(self.files, lambda file: _folded(_stem(file.name)))

    @cached_property
    def _by_letters(self) -> dict[str, list[Path]]:
        files = (*self.files, *self.leading_out)
        return _index(files, lambda file: _letters(_stem(file.name)))

    @cached_property
    def _by_folder(self) -> dict[Path, list[Path]]:
        """The pictures below each folder, however deep."""
        found: dict[Path, list[Path]] = {}
        for file in self.files:
            for folder in file.parents:
                found.setdefault(folder, []).append(file)
        return found

    @cached_property
    def _by_identifier(self) -> dict[str, tuple[Path, ...]]:
        """The DICOM files of each series, study and accession number."""
        from client.importing.dicom_series import identifiers

        found: dict[str, list[Path]] = {}
        for file in self.files:
            for identifier in identifiers(file) if is_dicom(file) else ():
                found.setdefault(identifier, []).append(file)
        return {identifier: tuple(files) for identifier, files in found.items()}

    def _matching(self, parts: list[str], ended: bool, beside: Path | None) -> list[Path]:
        """Return the files of which the given path is the end, or the other way round."""
        candidates = (
            self._by_name.get(_folded(parts[-1]), [])
            if ended
            else self._by_stem.get(_folded(parts[-1]), [])
            + self._by_name.get(_folded(parts[-1]), [])
        )
        wanted = [_folded(part) for part in parts]
        fitting: list[tuple[int, Path]] = []
        for file in dict.fromkeys(candidates):
            own = [_folded(part) for part in self.name(file).split("/")]
            own[-1] = wanted[-1]
            shared = min(len(own), len(wanted))
            if own[-shared:] == wanted[-shared:]:
                # The whole path below a folder is better than the end of a longer one.
                here = [*file.parents][len(wanted) - 1 : len(wanted)] == [beside]
                whole = 2 * here + (len(own) == len(wanted))
                fitting.append((3 * shared + whole, file))
        best = max((fit for fit, _ in fitting), default=0)
        chosen = [file for fit, file in fitting if fit == best]
        exact = [file for file in chosen if _clean(file.name) == parts[-1]]
        return exact if len(exact) == 1 else chosen

    def _below(self, parts: list[str]) -> tuple[Path, ...]:
        """Return all pictures of the folder of this path."""
        for root in self.roots:
            if found := self._by_folder.get(root.joinpath(*parts)):
                return tuple(found)
        return ()

    def _near(self, parts: list[str]) -> str:
        """Return what is nearly called so, for a message."""
        near = self._by_letters.get(_letters(_stem(parts[-1])), [])
        if not near:
            return ""
        if near[0] in self.leading_out:
            return f" but a link that leads out of the folder ({quoted(self.name(near[0]))})"
        return f" (but there is {quoted(self.name(near[0]))})"


def _index(files: Iterable[Path], key: Callable[[Path], str]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(key(file), []).append(file)
    return found


def _clean(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _folded(text: str) -> str:
    return _clean(text).casefold()


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", _folded(text))


def _stem(name: str) -> str:
    ending = picture_ending(name)
    return name[: -len(ending)] if ending else name


def _parts(given: str) -> list[str]:
    """Return the parts of a path that a source gives, of whatever system."""
    path = _clean(given.strip()).removeprefix("file://").replace("\\", "/")
    path = re.sub(r"^[A-Za-z]:/", "/", path)
    return [part for part in path.split("/") if part not in ("", ".", "..")]


def _may_be_picture(file: Path) -> bool:
    if picture_ending(file.name):
        return True
    # Scanners name DICOM files IM0001, or by a UID.
    return (not file.suffix or file.suffix[1:].isdigit()) and _begins_as_dicom(file)


def _raise(error: OSError) -> None:
    raise error


def _begins_as_dicom(file: Path) -> bool:
    try:
        # A pipe would wait for its other end.
        if not file.is_file():
            return False
        with file.open("rb") as opened:
            return begins_as_dicom(opened.read(HEAD_BYTES))
    except OSError:
        return False
