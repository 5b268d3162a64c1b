"""Texts of a site's choice are short and can't control the admin's terminal."""

import json

import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from common.errors import BankError, PlanError, SiteFailed
from common.exchange import Presence, read_reply
from common.plan.file import parse_plan
from common.printable import printable
from common.tensors import read_header
from tests.hostile.approved_site import STAGE, plan_of

LONG = "x" * 400


def record(**header: object) -> RecordDict:
    text = json.dumps(header)
    return RecordDict({"header": ConfigRecord({"json": text}), "blobs": ArrayRecord({})})


@pytest.mark.parametrize(
    "header",
    [
        {"kind": "failure", "site": LONG, "error": "e", "ref": "r", "reason": None},
        {"kind": "failure", "site": "a", "error": LONG, "ref": "r", "reason": None},
        {"kind": "failure", "site": "a", "error": "e", "ref": LONG, "reason": None},
        {"kind": "failure", "site": "a", "error": "e", "ref": "r", "reason": LONG},
        {"kind": "working", "site": LONG, "order": "o", "step": 1, "steps": 1},
        {"kind": "lacks", "site": "a", "order": "o", "digests": [LONG]},
        {"kind": LONG},
    ],
)
def test_a_long_text_of_a_site_makes_its_message_unreadable(header: dict[str, object]):
    with pytest.raises(SiteFailed) as caught:
        read_reply(record(**header))
    assert len(str(caught.value)) < 100


def test_an_introduction_is_bounded_too():
    for site, code in ((LONG, "c"), ("a", LONG)):
        with pytest.raises(SiteFailed):
            Presence.from_record(record(site=site, code=code, holds=[]))


@pytest.mark.parametrize("name", ["x" * 201, "\x1b[31mred", "\u202egnp.exe", "a\nb"])
def test_an_arrays_name_is_short_and_printable(name: str):
    text = json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    blob = len(text).to_bytes(8, "little") + text + bytes(4)
    with pytest.raises(BankError, match="found a name of") as caught:
        read_header(lambda at, count: blob[at : at + count], len(blob), "adapter")
    assert name not in str(caught.value)


@pytest.mark.parametrize("name", ["\x1b[2Jred", "red\x07", "a\u202eb", "a\x00b", "a\u2028b"])
def test_a_class_that_controls_a_terminal_is_no_class(name: str):
    with pytest.raises(PlanError, match="classes"):
        plan_of(stages=[{**STAGE, "classes": ["blue", name]}])
    parse_plan(
        plan_of(stages=[{**STAGE, "classes": ["blue", "naïve T-cell, 5 µm"]}]).model_dump(
            mode="json"
        ),
        "test",
    )


@pytest.mark.parametrize("text", ["is it \x1b[2Jred?", "a\x07?", "a\u202eb?", "a\x00b", "x" * 301])
def test_a_listed_question_that_controls_a_terminal_or_is_long_is_none(text: str):
    # An admin reads it at approval, and whoever asks the bank is shown it.
    with pytest.raises(PlanError, match="questions"):
        plan_of(stages=[{**STAGE, "questions": ["is it blue?", text]}])
    with pytest.raises(PlanError, match="questions"):
        plan_of(stages=[{**STAGE, "questions": ["is it blue?"] * 101}])
    assert plan_of(stages=[{**STAGE, "questions": ["est-ce naïf ?", "图像中有肿瘤吗"]}])


def test_what_is_shown_is_cut_and_harmless():
    assert printable("\x1b[31m" + LONG, 20) == "?[31m" + "x" * 15 + " ..."
