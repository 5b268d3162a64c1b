"""JSON and JSONL: LLaVA's conversations, OpenAI's messages, flat records, the paper's layout."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.errors import DataError
from tests.unit.small_source import imported, picture, questions, report


def source(folder: Path, records: list[Any], name: str = "data.jsonl", pictures: int = 4) -> Path:
    for at in range(pictures):
        picture(folder / f"{at}.png", 30 * at)
    folder.mkdir(exist_ok=True)
    text = "\n".join(json.dumps(one) for one in records)
    (folder / name).write_text(json.dumps(records) if name.endswith(".json") else text)
    return folder


def answers(out: Path) -> set[tuple[str, str]]:
    return {(one.question, one.answer) for side in questions(out).values() for one in side}


def llava(at: int) -> dict[str, Any]:
    turns = [
        {"from": "human", "value": "<image>\nWhich side?"},
        {"from": "gpt", "value": f"side {at}"},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "yes"},
    ]
    return {"id": at, "image": f"{at}.png", "conversations": turns}


def openai(at: int, url: str | None = None) -> dict[str, Any]:
    image = {"type": "image_url", "image_url": {"url": url or f"{at}.png"}}
    return {
        "messages": [
            {"role": "system", "content": "You are a radiologist."},
            {"role": "user", "content": [{"type": "text", "text": "Which side?"}, image]},
            {"role": "assistant", "content": f"side {at}"},
        ]
    }


def sharegpt(at: int) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": "<image>Which side?"},
        {"role": "assistant", "content": f"side {at}"},
    ]
    return {"messages": turns, "images": [f"{at}.png"]}


def renamed(at: int) -> dict[str, Any]:
    """LLaVA's conversations with the speakers of the messages."""
    turns = [
        {"from": "user", "value": "<image>\nWhich side?"},
        {"from": "assistant", "value": f"side {at}"},
    ]
    return {"id": at, "image": f"{at}.png", "conversations": turns}


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
@pytest.mark.parametrize("record", [llava, openai, sharegpt, renamed])
def test_a_conversation_is_a_question_and_an_answer_for_each_two_turns(
    tmp_path: Path, name: str, record: Any
):
    imported(source(tmp_path / "in", [record(at) for at in range(4)], name), tmp_path / "out")
    found = {pair for pair in answers(tmp_path / "out") if pair[0] == "Which side?"}
    assert found == {("Which side?", f"side {at}") for at in range(4)}
    # Each with the picture that it is about: its grey is 30 for each number.
    for one in (one for side in questions(tmp_path / "out").values() for one in side):
        if one.question == "Which side?":
            grey = int(np.asarray(Image.open(one.image))[3, 5, 0])
            assert one.answer == f"side {grey // 30}"


def test_a_picture_in_a_data_address_is_taken_out_of_it(tmp_path: Path):
    own = source(tmp_path / "pictures", [])
    urls = [
        "data:image/png;base64," + base64.b64encode((own / f"{at}.png").read_bytes()).decode()
        for at in range(4)
    ]
    records = [openai(at, url) for at, url in enumerate(urls)]
    imported(source(tmp_path / "in", records, pictures=0), tmp_path / "out")
    assert {row["from"] for row in report(tmp_path / "out")["placed"]} == {
        f"data.jsonl: line {at}" for at in range(1, 5)
    }


def test_flat_records_are_rows_of_a_table(tmp_path: Path):
    rows = [{"image": f"{at}.png", "question": "How many?", "answer": at} for at in range(4)]
    rows[1]["answer"] = True
    imported(source(tmp_path / "in", rows), tmp_path / "out")
    assert {answer for _, answer in answers(tmp_path / "out")} == {"0", "yes", "2", "3"}


def test_the_papers_own_layout_is_imported_again(tmp_path: Path):
    imported(source(tmp_path / "in", [llava(at) for at in range(4)]), tmp_path / "out")
    imported(tmp_path / "out", tmp_path / "again")
    assert answers(tmp_path / "again") == answers(tmp_path / "out")
    assert report(tmp_path / "again")["questions"] == report(tmp_path / "out")["questions"]


def changed(**fields: Any) -> dict[str, Any]:
    return {**llava(3), **fields}


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ([], "found an empty list, expected an object"),
        (changed(image="9.png"), "found '9.png', where there is no picture, expected a picture"),
        (changed(image=["0.png", "1.png"]), "found 2 pictures, expected one: a task's question"),
        (changed(image=None), "found no picture, expected one"),
        (changed(image=7), "field 'image': found a number, expected a file's name"),
        (changed(conversations=llava(3)["conversations"][:3]), "field 'conversations': found"),
        (changed(conversations=[{"from": "gpt", "value": "x"}]), "field 'conversations': found"),
        (
            changed(conversations=[{"from": "human", "value": " "}, {"from": "gpt", "value": "x"}]),
            "field 'conversations': found an empty question, expected one",
        ),
        (openai(3, "https://x.org/a.png"), "found the address 'https://x.org/a.png', which is not"),
        (openai(3, "data:image/png;base64,????"), "found a data address with damaged base64"),
    ],
)  # fmt: skip
def test_a_record_that_can_not_be_used_is_said_by_line(tmp_path: Path, record: Any, sentence: str):
    folder = source(tmp_path / "in", [*(llava(at) for at in range(3)), record])
    with pytest.raises(DataError) as found:
        imported(folder, tmp_path / "out")
    assert str(found.value).startswith(f"data.jsonl: line 4: {sentence}")


def test_text_that_is_no_json_is_said(tmp_path: Path):
    folder = source(tmp_path / "in", [llava(at) for at in range(3)])
    (folder / "data.jsonl").write_text((folder / "data.jsonl").read_text() + "\n{oops\n")
    with pytest.raises(DataError) as found:
        imported(folder, tmp_path / "out")
    assert str(found.value).startswith("data.jsonl: line 4: found text that is not JSON, expected")
    (folder / "data.jsonl").unlink()
    (folder / "data.json").write_text("[{")
    with pytest.raises(DataError) as found:
        imported(folder, tmp_path / "out")
    assert str(found.value).startswith("data.json: line 1, column 3: found text that is not JSON")
