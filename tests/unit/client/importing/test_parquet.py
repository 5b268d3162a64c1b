"""Parquet files as Hugging Face has them, and the folders of `datasets`."""

import builtins
import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from common.errors import DataError
from tests.unit.small_source import imported, picture, questions, report

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportMissingTypeStubs=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyarrow is not typed.


def blob(grey: int, form: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.full((4, 6, 3), grey, np.uint8)).save(buffer, format=form)
    return buffer.getvalue()


def table(greys: list[int], names: bool = True) -> pa.Table:
    """Pictures with class labels, as `datasets` writes them."""
    columns = {
        "image": [{"bytes": blob(grey), "path": None} for grey in greys],
        "label": [grey % 2 for grey in greys],
    }
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["benign", "malignant"], "_type": "ClassLabel"},
    }
    found = pa.table(columns)
    if names:
        meta = json.dumps({"info": {"features": features}})
        found = found.replace_schema_metadata({"huggingface": meta})
    return found


def test_parquet_files_of_two_parts_with_pictures_inside(tmp_path: Path):
    (tmp_path / "in/data").mkdir(parents=True)
    for part, greys in (("train", [10, 21, 30, 41]), ("test", [50, 61])):
        pq.write_table(table(greys), tmp_path / f"in/data/{part}-00000-of-00001.parquet")
    found = imported(tmp_path / "in", tmp_path / "out")
    assert found.classes == ("benign", "malignant")
    assert report(tmp_path / "out")["questions"] == {"train": 4, "test": 2}
    asked = questions(tmp_path / "out")["test"]
    assert [one.answer for one in asked] == ["benign", "malignant"]
    pixels = np.asarray(Image.open(asked[1].image))
    np.testing.assert_array_equal(pixels, np.full((4, 6, 3), 61, np.uint8))
    assert not (tmp_path / "out/.staged").exists()


def test_questions_and_answers_with_bytes_alone_in_other_formats(tmp_path: Path):
    (tmp_path / "in").mkdir()
    rows = {
        "image": [blob(10, "WEBP"), blob(20, "JPEG"), blob(30, "JPEG2000"), b"no picture"],
        "question": ["Is it?"] * 4,
        "answer": ["yes", "no", "yes", "no"],
    }
    pq.write_table(pa.table(rows), tmp_path / "in/qa.parquet")
    with pytest.raises(DataError) as found:
        imported(tmp_path / "in", tmp_path / "out")
    assert str(found.value).startswith(
        "qa.parquet: row 4: column 'image': found bytes of no known format, expected a picture"
    )
    imported(tmp_path / "in", tmp_path / "out", leave_out_bad=True)
    names = sorted(path.suffix for path in (tmp_path / "out/images").iterdir())
    assert names == [".jp2", ".jpg", ".webp"]


def test_a_conversation_with_its_picture_in_a_list(tmp_path: Path):
    (tmp_path / "in").mkdir()
    turns = [{"role": "user", "content": "<image>Is it?"}, {"role": "assistant", "content": "yes"}]
    rows = {
        "messages": [turns] * 3,
        "images": [[{"bytes": blob(grey), "path": "x.png"}] for grey in (10, 20, 30)],
    }
    pq.write_table(pa.table(rows), tmp_path / "in/chat.parquet")
    imported(tmp_path / "in", tmp_path / "out")
    assert {q.question for side in questions(tmp_path / "out").values() for q in side} == {"Is it?"}


@pytest.mark.parametrize("stream", [True, False])
def test_a_folder_that_datasets_has_saved(tmp_path: Path, stream: bool):
    for part, greys in (("train", [10, 21, 30]), ("validation", [50, 61])):
        folder = tmp_path / "in" / part
        folder.mkdir(parents=True)
        one = table(greys)
        with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink:
            new = pa.ipc.new_stream if stream else pa.ipc.new_file
            with new(sink, one.schema) as writer:
                writer.write_table(one)
        (folder / "state.json").write_text("{}")
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "in/dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    imported(tmp_path / "in", tmp_path / "out")
    assert report(tmp_path / "out")["questions"] == {"train": 3, "test": 2}


def test_numbers_without_names_get_the_users(tmp_path: Path):
    (tmp_path / "in").mkdir()
    pq.write_table(table([10, 21, 30, 41], names=False), tmp_path / "in/all.parquet")
    found = imported(tmp_path / "in", tmp_path / "out", label_names={"0": "good", "1": "bad"})
    assert found.classes == ("bad", "good")


def test_a_label_without_a_name_is_a_bad_row(tmp_path: Path):
    (tmp_path / "in").mkdir()
    one = table([10, 21, 30, 41]).set_column(1, "label", pa.array([0, 1, -1, 2]))
    pq.write_table(one, tmp_path / "in/all.parquet")
    found = imported(tmp_path / "in", tmp_path / "out", leave_out_bad=True)
    reason = "column 'label': found another label, expected 0 to 1, which have names"
    assert found.left_out == [f"all.parquet: row 3: {reason}", f"all.parquet: row 4: {reason}"]
    assert found.classes == ("benign", "malignant")


@pytest.mark.parametrize("meta", ["[]", '{"info": {"features": []}}', "[" * 100_000])
def test_features_of_another_kind_are_none(tmp_path: Path, meta: str):
    (tmp_path / "in").mkdir()
    one = table([10, 21, 30, 41]).replace_schema_metadata({"huggingface": meta})
    pq.write_table(one, tmp_path / "in/all.parquet")
    assert imported(tmp_path / "in", tmp_path / "out").classes == ("0", "1")


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path):
    (tmp_path / "in").mkdir()
    one = table([10, 21]).append_column("label", pa.array([1, 0]))
    pq.write_table(one, tmp_path / "in/all.parquet")
    with pytest.raises(DataError, match=r"all\.parquet: found the column 'label' twice"):
        imported(tmp_path / "in", tmp_path / "out")


def test_a_list_in_place_of_a_picture_is_named(tmp_path: Path):
    (tmp_path / "in").mkdir()
    one = {"image": [[blob(10), blob(21)]], "label": ["a"]}
    pq.write_table(pa.table(one), tmp_path / "in/all.parquet")
    with pytest.raises(DataError, match=r"column 'image': found a list, expected a picture's file"):
        imported(tmp_path / "in", tmp_path / "out")


def test_a_damaged_file_is_refused(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.parquet").write_bytes(b"PAR1 and so on")
    with pytest.raises(DataError, match=r"a\.parquet: found a damaged parquet file \(Arrow"):
        imported(tmp_path / "in", tmp_path / "out")


def test_without_pyarrow_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def absent(name: str, *rest: Any, **more: Mapping[str, Any]) -> Any:
        if name.split(".")[0] in ("pyarrow", "nibabel"):
            raise ModuleNotFoundError(name=name.split(".")[0])
        return real(name, *rest, **more)

    (tmp_path / "in").mkdir()
    pq.write_table(table([10, 21]), tmp_path / "in/a.parquet")
    picture(tmp_path / "vol/a/x.png", 3)
    (tmp_path / "vol/b").mkdir()
    (tmp_path / "vol/b/v.nii.gz").write_bytes(b"x")
    monkeypatch.setattr(builtins, "__import__", absent)
    for source, package in (("in", "pyarrow"), ("vol", "nibabel")):
        with pytest.raises(DataError, match=f"no package '{package}', expected it: pip install"):
            imported(tmp_path / source, tmp_path / "out")
