"""How far a run has come, by its events."""

from typing import Any

import pytest

from common.plan.file import parse_plan
from common.plan.plan import Plan
from server.dashboard.progress import code_of, progress_of
from tests.unit.small_round import document


def plan() -> Plan:
    stage = {**document()["stages"][0], "rounds": 3, "deadline_hours": 2.0}
    return parse_plan({**document(), "stages": [stage, {**stage, "name": "two"}]}, "p")


def at(minute: int, event: str, **fields: Any) -> dict[str, Any]:
    return {"event": event, "time": f"2026-11-29T10:{minute:02d}:00+00:00", **fields}


BEGUN = [
    at(0, "meeting"),
    at(1, "stage", stage=0),
    at(2, "base", task=0, score=0.25),
    at(5, "round", stage=0, round=1, losses={"a": 2.0}),
    at(11, "round", stage=0, round=2, losses={"a": 1.0}),
]


def test_the_time_left_is_the_usual_round_times_the_rounds_that_are_left():
    # Rounds of 4 and 6 minutes; 4 of 6 are left.
    assert progress_of(plan(), BEGUN, {"a": "asked"}).seconds_left == 4 * 5 * 60
    assert progress_of(plan(), BEGUN[:3], {"a": "asked"}).seconds_left is None
    # Taken up again, a run writes what it knows once more.
    again = [*BEGUN, at(40, "stage", stage=0), *(({**one, "time": None}) for one in BEGUN[3:])]
    assert progress_of(plan(), again, {"a": "asked"}).seconds_left == 4 * 5 * 60
    assert progress_of(plan(), [*BEGUN, at(12, "done", seconds=1.0)], {}).seconds_left is None


def test_stages_losses_and_scores_are_where_they_belong():
    events = [
        *BEGUN,
        at(20, "released", stage=0, name="one"),
        at(22, "scores", stage=0, scores=[0.5, None]),
    ]
    found = progress_of(plan(), events, {})
    assert (found.began, found.last) == ("2026-11-29T10:00:00+00:00", "2026-11-29T10:22:00+00:00")
    assert found.stages[0].released == "2026-11-29T10:20:00+00:00"
    assert (found.stages[1].began, found.stages[1].released) == (None, None)
    assert [(one.stage, one.round, one.losses) for one in found.losses] == [
        (0, 1, {"a": 2.0}), (0, 2, {"a": 1.0})
    ]  # fmt: skip
    assert (found.base, found.scores) == ((0.25, None), ((0.5, None), None))


def test_what_is_awaited_has_its_deadline_and_quorum():
    asked = {"stage": 0, "round": 3, "work": "train"}
    events = [*BEGUN, at(12, "waiting", **asked, **{"for": {"a": "asked"}})]
    events += [at(15, "waiting", **asked, **{"for": {"a": "offline"}})]
    due = progress_of(plan(), events, {"a": "offline"}).due
    assert due is not None
    assert due.since == "2026-11-29T10:12:00+00:00"
    assert due.deadline == "2026-11-29T12:12:00+00:00"
    sites = len(plan().stages[0].sites)
    assert (due.quorum, due.answered, due.of) == (sites, sites - 1, sites)
    assert progress_of(plan(), events, {}).due is None


def test_each_update_left_out_is_told_once_the_latest_first():
    one, two = ({"stage": 0, "site": site, "text": f"site {site} x"} for site in "ab")
    events = [*BEGUN, at(3, "refused", **one), at(4, "refused", **one), at(6, "refused", **two)]
    found = progress_of(plan(), events, {}).left_out
    assert [(left.site, left.time) for left in found] == [
        ("b", "2026-11-29T10:06:00+00:00"), ("a", "2026-11-29T10:04:00+00:00")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("awaited", "answered", "code"),
    [
        ({}, True, "same"),
        ({}, False, None),
        ({"a": "site a runs code 1, the coordinator 2; expected"}, True, "other"),
    ],
)
def test_a_sites_code_is_what_the_run_says_of_it(
    awaited: dict[str, str], answered: bool, code: str | None
):
    assert code_of("a", awaited, answered) == code
