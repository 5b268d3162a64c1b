"""Which picture a table means by what it calls it."""

import os
import unicodedata
from pathlib import Path

import pytest

from client.importing.picture_files import PictureFiles


def files(root: Path, *names: str) -> PictureFiles:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return PictureFiles([root])


def found(pictures: PictureFiles, name: str) -> list[str] | str:
    result = pictures.find(name)
    return result if isinstance(result, str) else [pictures.name(file) for file in result]


@pytest.mark.parametrize(
    "name",
    [
        "in/Röntgen 1.PNG",
        "in/röntgen 1.png",
        r"in\Röntgen 1.PNG",
        "./in/Röntgen 1.PNG",
        r"C:\Users\Müller\set\in\Röntgen 1.PNG",
        "/home/x/set/in/Röntgen 1.PNG",
        "Röntgen 1",
        " Röntgen 1.png ",
        unicodedata.normalize("NFD", "Röntgen 1.PNG"),
    ],
)
def test_a_picture_is_found_by_what_people_and_machines_write(tmp_path: Path, name: str):
    pictures = files(tmp_path / "set", "in/Röntgen 1.PNG", "in/other.png")
    assert found(pictures, name) == ["in/Röntgen 1.PNG"]


def test_a_file_is_found_whose_own_name_has_another_form_of_letters(tmp_path: Path):
    name = unicodedata.normalize("NFD", "Röntgen.png")
    assert found(files(tmp_path, name), "Röntgen.png") == [name]


def test_the_path_tells_files_of_one_name_apart_and_without_it_none_is_chosen(tmp_path: Path):
    pictures = files(tmp_path, "a/1.png", "b/1.png")
    assert found(pictures, "b/1.png") == ["b/1.png"]
    assert found(pictures, "1.png") == "'1.png', which 2 files are called ('a/1.png', 'b/1.png')"


def test_a_folder_is_found_in_the_second_place_where_the_first_has_no_picture_of_it(tmp_path: Path):
    (tmp_path / "one/series/deep").mkdir(parents=True)
    files(tmp_path / "two", "series/deep/1.png", "series/2.png", "other/3.png")
    both = PictureFiles([tmp_path / "one", tmp_path / "two"])
    assert found(both, "series") == ["series/2.png", "series/deep/1.png"]
    assert found(both, "series/deep") == ["series/deep/1.png"]


def test_a_file_of_another_folder_is_never_taken(tmp_path: Path):
    pictures = files(tmp_path, "test/cat/1.png")
    assert found(pictures, "train/cat/1.png") == (
        "'train/cat/1.png', where there is no picture (but there is 'test/cat/1.png')"
    )


def test_names_that_differ_in_case_alone_are_told_apart(tmp_path: Path):
    pictures = files(tmp_path, "a.PNG", "a.png")
    assert (found(pictures, "a.png"), found(pictures, "a.PNG")) == (["a.png"], ["a.PNG"])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("film-1.png", "'film-1.png', where there is no picture (but there is 'film_1.png')"),
        ("film_1.jpg", "'film_1.jpg', where there is no picture (but there is 'film_1.png')"),
        ("gone.png", "'gone.png', where there is no picture"),
        ("../../etc/passwd", "'../../etc/passwd', where there is no picture"),
        ("", "no file's name"),
        ("https://x.org/a.png", "the address 'https://x.org/a.png', which is not fetched"),
    ],
)
def test_what_is_not_there_is_said_with_its_near_miss(tmp_path: Path, name: str, sentence: str):
    assert found(files(tmp_path, "film_1.png"), name) == sentence


def test_at_most_sixty_letters_are_quoted(tmp_path: Path):
    sentence = found(files(tmp_path, "a.png"), "x" * 5000)
    assert isinstance(sentence, str) and len(sentence) < 110


def test_what_systems_leave_behind_is_no_picture(tmp_path: Path):
    pictures = files(
        tmp_path, "a.png", ".hidden.png", "Thumbs.db", ".DS_Store", "__MACOSX/._a.png", "DICOMDIR",
        "@eaDir/a.png/thumb.jpg", ".git/x.png", "notes.txt",
    )  # fmt: skip
    assert [pictures.name(file) for file in pictures.files] == ["a.png"]


def test_a_link_that_leads_out_is_no_picture_and_one_inside_is(tmp_path: Path):
    files(tmp_path / "else", "secret.png", "deep/b.png")
    files(tmp_path / "set", "a.png")
    (tmp_path / "set/inside.png").symlink_to(tmp_path / "set/a.png")
    (tmp_path / "set/out.png").symlink_to(tmp_path / "else/secret.png")
    (tmp_path / "set/folder").symlink_to(tmp_path / "else/deep")
    pictures = PictureFiles([tmp_path / "set"])
    assert [pictures.name(file) for file in pictures.files] == ["a.png", "inside.png"]
    assert [link.name for link in pictures.leading_out] == ["folder", "out.png"]
    assert found(pictures, "out.png") == (
        "'out.png', where there is no picture but a link that leads out of the folder ('out.png')"
    )
    # Who means it names the other folder, too.
    both = PictureFiles([tmp_path / "else", tmp_path / "set"])
    assert found(both, "secret.png") == ["secret.png"]


def test_pipes_and_links_that_lead_nowhere_are_no_pictures(tmp_path: Path):
    os.mkfifo(tmp_path / "IM0001")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.png").symlink_to("nothing.png")
    pictures = files(tmp_path, "1.png")
    assert [file.name for file in pictures.files] == ["1.png"]
    assert sorted(file.name for file in pictures.leading_nowhere) == ["gone.png", "loop.png"]


def test_a_folder_that_cant_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scandir = os.scandir

    def refusing(path: str):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError):
        files(tmp_path, "closed/1.png")
