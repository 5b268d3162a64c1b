"""The hospital's guide names every field that can leave a site, and no other."""

import re
from dataclasses import fields

from common.exchange import Failure, Lacks, Presence, Reason, Scores, Update, Working
from common.identity import ROOT

GUIDE = (ROOT / "docs" / "hospital.md").read_text(encoding="utf-8")
_ROW = re.compile(r"^\| (\w+) \| `(\w+)` \|", re.MULTILINE)


def test_what_leaves_the_building_is_what_messages_have():
    messages = (Update, Scores, Working, Lacks, Failure, Presence)
    found = {(one.__name__, field.name) for one in messages for field in fields(one)}
    told = _ROW.findall(GUIDE)
    assert len(told) == len(set(told))
    assert set(told) == found


def test_every_reason_of_a_refusal_is_explained():
    told = GUIDE.replace("\n", " ")
    for reason in Reason:
        words = str(reason).removeprefix("its policy does not allow ").removeprefix("it has ")
        assert words.split(" than its policy")[0] in told, reason.name
