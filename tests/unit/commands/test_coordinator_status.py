"""What the coordinator says of its runs and sites."""

import json
from pathlib import Path
from typing import Any

import pytest

from commands.terminal import coordinator_status
from common.process.progress import write_event
from server.coordinator.state import State
from server.coordinator.superlink import SuperLink
from server.dashboard.status_document import read_status
from tests.unit.commands.coordinator_calls import first, refusal, said


def test_the_status_of_a_run_in_its_first_round(sites: State):
    said(sites, "run", first(sites), "--detach")
    progress = sites.run("first").progress
    for news in (
        {"event": "meeting"},
        {"event": "stage", "stage": 0},
        {"event": "round", "stage": 0, "round": 1, "losses": {"north": 1.0}},
        {
            "event": "waiting",
            "stage": 0,
            "round": 2,
            "for": {"north": "working 12/40", "south": "offline"},
        },
    ):
        write_event(progress, "coordinator", news)
    document = json.loads(said(sites, "status", "--json"))
    run = document["run"]
    assert run["stages"][0]["phase"] == "active"
    assert (run["stages"][0]["round"], run["stages"][0]["rounds"]) == (1, 3)
    assert run["awaited"] == {"north": "working 12/40", "south": "offline"}
    assert [site["doing"] for site in document["sites"]] == ["working 12/40", "offline"]
    assert document["sites"][0]["online"] is None
    assert (document["superlink"], document["process"]) == (False, None)
    assert document["certificate_days"] == 824
    assert run["progress"]["losses"] == [{"stage": 0, "round": 1, "losses": {"north": 1.0}}]
    assert run["progress"]["due"]["round"] == 2
    assert [one["name"] for one in document["runs"]] == ["first"]
    assert [site["code"] for site in document["sites"]] == [None, None]
    shown = said(sites, "status")
    assert "training stain (stage 1), round 2 of 3" in shown
    assert "north: working 12/40" in shown


def test_the_headline_is_the_round_that_trains_and_not_the_scoring_before_it(sites: State):
    said(sites, "run", first(sites), "--detach")
    for news in (
        {"event": "stage", "stage": 0},
        {"event": "scoring", "stage": None, "task": 0},
        {"event": "waiting", "stage": 0, "round": 0, "for": {"north": "asked"}},
        {"event": "base", "task": 0, "score": 0.5},
        {"event": "waiting", "stage": 0, "round": 1, "for": {"north": "asked"}},
    ):
        write_event(sites.run("first").progress, "coordinator", news)
    run = json.loads(said(sites, "status", "--json"))["run"]
    assert run["at"] == "training stain (stage 1), round 1 of 3"


def test_the_status_of_a_failed_run_says_why(sites: State):
    said(sites, "run", first(sites), "--detach")
    news = {"event": "failed", "text": "the reason"}
    write_event(sites.run("first").progress, "coordinator", news)
    assert "run first: the reason" in said(sites, "status")
    assert "found no run 'other'" in refusal(sites, "status", "--run", "other")


def test_a_run_is_named_and_no_path_elsewhere(sites: State):
    said(sites, "run", first(sites), "--detach")
    elsewhere = sites.root / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "plan.json").write_bytes(sites.run("first").plan.read_bytes())
    assert "found no run '../elsewhere'" in refusal(sites, "status", "--run", "../elsewhere")


def test_watched_into_a_file_the_status_is_lines_and_ends_with_the_run(
    sites: State, monkeypatch: pytest.MonkeyPatch
):
    said(sites, "run", first(sites), "--detach")
    progress = sites.run("first").progress
    write_event(progress, "coordinator", {"event": "stage", "stage": 0})
    waiting = {"event": "waiting", "stage": 0, "round": 1, "for": {"north": "asked"}}
    news = iter([waiting, {"event": "done", "seconds": 1.0}])
    monkeypatch.setattr(
        "commands.terminal.coordinator_status.time.sleep",
        lambda _seconds: write_event(progress, "coordinator", next(news)),  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    )
    clock = iter(range(0, 10**6, 20))
    monkeypatch.setattr("commands.terminal.coordinator_status.time.monotonic", lambda: next(clock))
    lines = said(sites, "status", "--watch").splitlines()
    assert len(lines) == 3 and all("UTC  run first: " in line for line in lines)
    assert lines[0].endswith("stain (stage 1); 0 of 1 stage released; 0 of 2 sites online")
    assert lines[1].endswith("waiting for north (asked)")
    assert "run first: done" in lines[2]


def test_watched_on_a_terminal_the_status_is_read_once_a_time_and_ends_with_the_run(
    sites: State, monkeypatch: pytest.MonkeyPatch
):
    said(sites, "run", first(sites), "--detach")
    progress = sites.run("first").progress
    write_event(progress, "coordinator", {"event": "stage", "stage": 0})
    reads: list[str | None] = []

    def counted(opened: State, superlink: SuperLink, run_name: str | None) -> Any:
        reads.append(run_name)
        return read_status(opened, superlink, run_name)

    def ends(_seconds: float) -> None:
        write_event(progress, "coordinator", {"event": "done", "seconds": 1.0})

    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setattr("commands.terminal.coordinator_status.read_status", counted)
    monkeypatch.setattr("commands.terminal.coordinator_status.time.sleep", ends)
    shown = said(sites, "status", "--watch")
    assert len(reads) == 2
    assert shown.index("run first: stain") < shown.index("run first: done")


def test_the_status_of_a_new_coordinator(state: State):
    shown = said(state, "status")
    assert "no run yet" in shown
    assert "no site yet" in shown
    assert json.loads(said(state, "status", "--json"))["run"] is None


@pytest.mark.parametrize(
    ("days", "told"),
    [(30, ""), (29, "expires in 29 days: "), (1, "expires in 1 day: "), (-1, "has expired: ")],
)
def test_status_warns_of_a_certificate_in_its_last_month(
    state: State, monkeypatch: pytest.MonkeyPatch, days: int, told: str
):
    def left(_certificate: Path) -> int:
        return days

    monkeypatch.setattr(coordinator_status, "days_left", left)
    warned = f"The certificate {told}fedmslora coordinator init --renew" in said(state, "status")
    assert warned == bool(told)
