"""Pairs are read from every format, and every mistake is one sentence that says where it is."""

import json
import tarfile
from pathlib import Path

import pytest

from common.errors import DataError
from retrieval.pair_files import pair_files, read_pairs
from retrieval.pairs import CaptionedImage
from tests.unit.retrieval.some_pairs import png, write_csv, write_images, write_jsonl, write_tar


def pairs_in(folder: Path) -> list[CaptionedImage]:
    return list(read_pairs(folder, pair_files(folder, folder / "index")))


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        pairs_in(folder)
    return str(caught.value)


def test_jsonl_has_ids_captions_and_images(tmp_path: Path):
    write_jsonl(tmp_path, ["one  thing\n more", "another"])
    one, two = pairs_in(tmp_path)
    assert (one.id, one.caption, one.image.file) == ("p0", "one thing more", "images/0.png")
    assert two.image.read(tmp_path) == png(1)
    assert one.where == f"{tmp_path}/pairs.jsonl: line 1"


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_csv_as_open_clip_writes_it(tmp_path: Path, delimiter: str):
    write_csv(tmp_path, ['a "quoted", one', "two"], delimiter)
    found = pairs_in(tmp_path)
    assert [pair.caption for pair in found] == ['a "quoted", one', "two"]
    assert [pair.id for pair in found] == ["pairs.csv:2", "pairs.csv:3"]
    assert found[1].image.read(tmp_path) == png(1)


def test_a_folder_of_hugging_face_s_metadata(tmp_path: Path):
    write_images(tmp_path, 1)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "images/0.png", "text": "one"}')
    (pair,) = pairs_in(tmp_path)
    assert (pair.caption, pair.id) == ("one", "metadata.jsonl:1")


def test_a_webdataset_s_samples(tmp_path: Path):
    members = {
        "a/1.jpg": png(1), "a/1.txt": b"one", "a/2.json": b'{"caption": "two"}', "a/2.png": png(2),
        "a/2.cls": b"7",
    }  # fmt: skip
    write_tar(tmp_path / "shard.tar", members)
    one, two = pairs_in(tmp_path)
    assert (one.id, one.caption) == ("shard/a/1", "one")
    assert (two.id, two.caption) == ("shard/a/2", "two")
    assert [pair.image.read(tmp_path) for pair in (one, two)] == [png(1), png(2)]
    assert two.image.name == "2.png"


def test_files_are_read_in_the_order_of_their_names_and_an_index_is_left_out(tmp_path: Path):
    write_jsonl(tmp_path, ["one"], "b.jsonl")
    write_jsonl(tmp_path, ["one"], "a.jsonl")
    (tmp_path / "index").mkdir()
    write_jsonl(tmp_path / "index", ["one"])
    names = [file.name for file in pair_files(tmp_path, tmp_path / "index")]
    assert names == ["a.jsonl", "b.jsonl"]


def test_endings_in_capitals_count(tmp_path: Path):
    write_jsonl(tmp_path, ["one"], "a.JSONL")
    assert [pair.caption for pair in pairs_in(tmp_path)] == ["one"]


def test_a_caption_of_gigabytes_is_not_read(tmp_path: Path):
    member = tarfile.TarInfo("a.txt")
    member.size = 3 << 30
    with (tmp_path / "shard.tar").open("wb") as shard:
        shard.write(member.tobuf())
        shard.truncate(512 + member.size + 1024)
    assert "sample 'a', member .txt: found 3,221,225,472 bytes, expected a" in refusal(tmp_path)


IMAGE = '"image": "images/0.png"'
BAD_LINES = {
    "no JSON": ("{", "line 1, column 2: found text that is not JSON"),
    "no object": ("[1]", "line 1: found a list, expected an object"),
    "no caption": (f"{{{IMAGE}}}", "line 1: field 'caption': found nothing, expected a caption"),
    "blank": (f'{{{IMAGE}, "text": " "}}', "line 1: field 'text': found blank text"),
    "a number": (f'{{{IMAGE}, "caption": 3}}', "line 1: field 'caption': found a number"),
    "too long": (f'{{{IMAGE}, "caption": "{"x" * 20001}"}}', "found 20001 characters"),
    "no image": ('{"caption": "one"}', "line 1: field 'image': found nothing, expected an image's"),
    "missing": (
        '{"caption": "one", "filepath": "gone.png"}',
        "line 1: field 'filepath': found 'gone.png', where there is no file, expected an image in",
    ),
    "outside": ('{"caption": "one", "image": "../a.png"}', "expected a path inside the folder"),
    "absolute": ('{"caption": "one", "image": "/etc/passwd"}', "expected a path inside the folder"),
    "an id": (f'{{{IMAGE}, "caption": "one", "id": []}}', "field 'id': found an empty list"),
    "half a letter": (
        f'{{{IMAGE}, "caption": "one \\ud83d"}}',
        "found text with half of a surrogate",
    ),
    "half an id": (
        f'{{{IMAGE}, "caption": "a", "id": "\\ud83d"}}',
        "field 'id': found text with half",
    ),
    "half a name": ('{"caption": "one", "image": "\\ud83d.png"}', "where there is no file"),
    "a long name": (f'{{"caption": "one", "image": "{"x" * 5000}.png"}}', "where there is no file"),
    "nesting": ("[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize(("line", "sentence"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_of_jsonl(tmp_path: Path, line: str, sentence: str):
    write_images(tmp_path, 1)
    (tmp_path / "pairs.jsonl").write_text(line + "\n")
    found = refusal(tmp_path)
    assert found.startswith(f"{tmp_path}/pairs.jsonl: ")
    assert sentence in found
    assert "\n" not in found


def test_a_line_that_is_not_utf_8(tmp_path: Path):
    (tmp_path / "pairs.jsonl").write_bytes(b"\n\xff\n")
    assert refusal(tmp_path) == (
        f"{tmp_path}/pairs.jsonl: line 2: found no UTF-8 at byte 0, expected UTF-8 text"
    )


BAD_TABLES = {
    "twice": (b"image,title,title\n", "line 1: found the column 'title' twice, expected it once"),
    "a long cell": (
        b"image,title\nimages/0.png," + b"x" * 200_000,
        "line 2: field 'title': found 200000 characters, expected a caption of at most 20000",
    ),
    "header": (b"a,title\n1,2\n", "line 1: found the columns 'a', 'title', expected one of image"),
    "empty": (b"", "line 1: found the columns nothing"),
    "short row": (
        b"image,caption\nimages/0.png\n",
        "line 2: found more or fewer fields than the 2",
    ),
    "long row": (b"image,caption\nimages/0.png,one,two\n", "line 2: found more or fewer fields"),
    "quotes": (b'image,caption\nimages/0.png,"one\n', "found a line that is not CSV"),
    "latin": (b"image,caption\nimages/0.png,\xe4\n", "found no UTF-8"),
    "no rows": (b"image,caption\n", "found no pairs, expected at least one"),
}


@pytest.mark.parametrize(("blob", "sentence"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_bad_csv(tmp_path: Path, blob: bytes, sentence: str):
    write_images(tmp_path, 1)
    (tmp_path / "pairs.csv").write_bytes(blob)
    found = refusal(tmp_path)
    assert found.startswith(f"{tmp_path}/pairs.csv: ")
    assert sentence in found


BAD_SAMPLES = {
    "no caption": ({"1.jpg": b"x"}, "sample '1': found no caption, expected a member .txt or"),
    "no image": ({"1.txt": b"one"}, "sample '1': found no image, expected one of jpg"),
    "two images": ({"1.jpg": b"x", "1.png": b"x", "1.txt": b"one"}, "sample '1': found 2 images"),
    "blank": ({"1.txt": b" ", "1.jpg": b"x"}, "sample '1', member .txt: field 'caption': found"),
    "latin": ({"1.txt": b"\xe4", "1.jpg": b"x"}, "sample '1', member .txt: found no UTF-8"),
    "json": ({"1.json": b"{", "1.jpg": b"x"}, "sample '1', member .json: line 1, column 2"),
}


@pytest.mark.parametrize(("members", "sentence"), BAD_SAMPLES.values(), ids=BAD_SAMPLES)
def test_a_bad_sample(tmp_path: Path, members: dict[str, bytes], sentence: str):
    write_tar(tmp_path / "shard.tar", members)
    assert sentence in refusal(tmp_path)


def test_a_tar_that_is_cut_off(tmp_path: Path):
    members = {"1.txt": b"one", "1.jpg": b"x" * 5000}
    file = write_tar(tmp_path / "shard.tar", members)
    file.write_bytes(file.read_bytes()[:4000])
    assert refusal(tmp_path).startswith(f"{file}: found no whole, uncompressed tar (")


def test_no_folder_and_no_files(tmp_path: Path):
    with pytest.raises(DataError, match="found nothing, expected a folder of image-caption pairs"):
        pair_files(tmp_path / "gone", tmp_path)
    with pytest.raises(DataError, match=r"found no \.csv, \.jsonl, \.tar, \.tsv file"):
        pair_files(tmp_path, tmp_path / "index")


def test_ten_mistakes_are_listed_and_then_reading_stops(tmp_path: Path):
    (tmp_path / "pairs.jsonl").write_text("{}\n" * 12)
    lines = refusal(tmp_path).splitlines()
    assert len(lines) == 10
    assert lines[9].endswith("; reading stopped here")


def test_an_image_that_changed_is_refused(tmp_path: Path):
    write_tar(tmp_path / "shard.tar", {"1.txt": b"one", "1.jpg": b"x" * 600})
    (pair,) = pairs_in(tmp_path)
    (tmp_path / "shard.tar").write_bytes(b"x" * 1600)
    with pytest.raises(DataError, match=r"found 64 bytes of the image '1\.jpg', expected 600"):
        pair.image.read(tmp_path)
    (tmp_path / "shard.tar").unlink()
    with pytest.raises(DataError, match="found a file that can't be read"):
        pair.image.read(tmp_path)


def test_captions_are_not_quoted(tmp_path: Path):
    secret = {"caption": "secret words", "image": "gone.png"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(secret))
    assert "secret" not in refusal(tmp_path)
