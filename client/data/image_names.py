"""Finding the image that a task's file names, and what a name that is not there may mean."""

import os
import posixpath
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

from client.data.records import quoted
from common.printable import has_broken_letter

#: Returns the image of a relative name, or a pair of texts: found, expected.
FindImage: TypeAlias = Callable[[str], Path | tuple[str, str]]

#: The names of the files in a directory, and of the directories in it.
_Names: TypeAlias = tuple[frozenset[str], frozenset[str]]
#: Makes names that are easily mistaken for each other equal.
_Form: TypeAlias = Callable[[str], str]
#: Returns a directory's files and directories by their names in a form.
_Index: TypeAlias = Callable[[str, _Form], tuple[dict[str, list[str]], dict[str, list[str]]]]


def image_finder(folder: Path) -> FindImage:
    """Return a function that finds images in `folder`; it lists each directory only once.

    Symbolic links are followed, because the site's administrator made them. A name in the
    task's files can't lead out of the folder. Two Unicode forms of one name are one name: a
    file that came from macOS has letter and accent apart.
    """
    listed = cache(_names)

    @cache
    def indexed(directory: str, form: _Form) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        files, directories = listed(directory)
        return _by_form(files, form), _by_form(directories, form)

    @cache
    def find(name: str) -> Path | tuple[str, str]:
        inside = posixpath.normpath(name)
        if foreign := _foreign(name):
            return f"{quoted(name)}, {foreign}", "a relative path of an image file"
        if inside.startswith(("/", "../")) or inside == "..":
            return f"{quoted(name)}, which leads out of the folder", f"a path in {folder}"
        directory, base = posixpath.split(inside)
        files, _ = listed(os.path.join(folder, directory))
        if base in files:
            return folder / inside
        same = _walk(folder, inside, indexed, _unicode_form)
        if same is not None:
            return same
        near = _walk(folder, unquote(inside).replace("\\", "/"), indexed, _loose_form)
        hint = "" if near is None else f"; {_difference(inside, near, folder)}"
        return f"{quoted(name)}, where there is no file{hint}", f"an image in {folder}"

    return find


def _names(directory: str) -> _Names:
    try:
        with os.scandir(directory) as entries:
            found = [(entry.name, entry.is_file()) for entry in entries]
    # ValueError: a name with a zero byte in it, or a half of a surrogate pair.
    except (OSError, ValueError):
        return frozenset(), frozenset()
    files = frozenset(name for name, is_file in found if is_file)
    return files, frozenset(name for name, is_file in found if not is_file)


def _foreign(name: str) -> str:
    """Return what a name is that is no path; empty if it may be one."""
    if has_broken_letter(name):
        # Python names files that are not UTF-8 so, and no log could print it.
        return "with half of a surrogate pair"
    scheme, colon, _ = name[:16].partition(":")
    if not colon or len(scheme) < 2 or not scheme.isalnum():
        return ""
    if scheme.lower() == "data":
        return "an image inside the text"
    return "an address" if name[len(scheme) :].startswith("://") else ""


def _by_form(names: Iterable[str], form: _Form) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(form(name), []).append(name)
    return found


def _walk(folder: Path, name: str, indexed: _Index, form: _Form) -> Path | None:
    """Return the only file in `folder` whose path is `name` when both are in `form`."""
    found = [folder]
    *directories, base = name.split("/")
    for part in directories:
        found = [
            at / inside for at in found for inside in indexed(str(at), form)[1].get(form(part), ())
        ]
    files = [
        at / inside for at in found for inside in indexed(str(at), form)[0].get(form(base), ())
    ]
    return files[0] if len(files) == 1 else None


def _unicode_form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _loose_form(name: str) -> str:
    """Return a name without what is easily mistaken: case, separators, form, unseen letters."""
    letters = unicodedata.normalize("NFKC", name).casefold()
    seen = (letter for letter in letters if unicodedata.category(letter) not in ("Cc", "Cf"))
    return "".join(letter for letter in seen if letter not in " _-")


def _difference(name: str, near: Path, folder: Path) -> str:
    """Return in what `near`, a file, differs from `name`."""
    there = near.relative_to(folder).as_posix()
    if name.replace("\\", "/") == there:
        how = "in its separators"
    else:
        how = "in case" if name.casefold() == there.casefold() else "in case, spaces or signs"
    return f"{quoted(there)} differs {how}"
