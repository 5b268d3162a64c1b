"""A run is requested, followed and stopped."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from common.errors import PlanError, StateError
from common.plan.file import load_plan
from common.process.progress import write_event
from server.coordinator.state import RequestedRun, State
from tests.unit.commands.coordinator_calls import called, first, refusal, said


def test_a_new_run_does_not_wait_for_a_removed_site(sites: State):
    assert "north is removed" in said(sites, "enroll", "--leave", "north")
    assert "found the sites north that are not enrolled" in refusal(sites, "run", first(sites))


def test_a_run_that_has_begun_continues_without_a_removed_site(sites: State):
    said(sites, "run", first(sites), "--detach")
    assert "north is removed" in said(sites, "revoke", "north")
    said(sites, "stop")
    assert "first: queued" in said(sites, "run", first(sites), "--detach")


def test_a_plan_with_unknown_sites_is_refused(state: State):
    told = refusal(state, "run", first(state))
    assert "found the sites north, south that are not enrolled" in told
    assert state.requested is None
    assert not state.run("first").root.exists()


def test_a_wrong_plan_is_refused(state: State, tmp_path: Path):
    (tmp_path / "plan.yaml").write_text("name: x", encoding="utf-8")
    result = called(state, "run", str(tmp_path / "plan.yaml"))
    assert isinstance(result.exception, PlanError)


def test_a_run_is_prepared_and_queued(sites: State):
    assert "first: queued" in said(sites, "run", first(sites), "--detach")
    folder = sites.run("first")
    assert load_plan(folder.plan).digest == load_plan(Path(first(sites))).digest
    assert folder.key.read_bytes() == sites.key.read_bytes()
    assert folder.key.stat().st_mode & 0o777 == 0o600
    assert sites.requested == RequestedRun(run="first", since=0)


def test_another_plan_under_the_name_of_a_run_is_refused_by_its_fields(sites: State):
    said(sites, "run", first(sites), "--detach")
    plan = Path(first(sites))
    plan.write_text(plan.read_text(encoding="utf-8").replace("seed: 7", "seed: 8"), "utf-8")
    assert "another plan: found changed seed" in refusal(sites, "run", first(sites))


def test_a_second_run_waits_for_nobody(sites: State):
    said(sites, "run", first(sites), "--detach")
    plan = Path(first(sites))
    plan.write_text(plan.read_text(encoding="utf-8").replace("name: first", "name: next"), "utf-8")
    assert "found another run, 'first', that has not ended" in refusal(sites, "run", first(sites))


def ended(state: State, monkeypatch: pytest.MonkeyPatch, **news: Any) -> Result:
    """`run`, where the run tells this as soon as it is followed."""

    def soon(self: object) -> list[object]:
        write_event(state.run("first").progress, "coordinator", news)
        return []

    monkeypatch.setattr("server.coordinator.superlink.SuperLink.runs", soon)
    return called(state, "run", first(state))


def test_run_into_a_file_says_what_it_waits_for(sites: State, monkeypatch: pytest.MonkeyPatch):
    progress = sites.run("first").progress
    waiting = {"event": "waiting", "stage": 0, "round": 1, "for": {"north": "asked"}}
    news = iter([waiting, {**waiting, "for": {}}, {"event": "done", "seconds": 1.0}])

    def pause(_seconds: float) -> None:
        if event := next(news, None):
            write_event(progress, "coordinator", event)

    monkeypatch.setattr("server.coordinator.superlink.SuperLink.runs", lambda _self: [])  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    monkeypatch.setattr("commands.terminal.coordinator_follow.time.sleep", pause)
    clock = iter(range(0, 10**6, 20))
    monkeypatch.setattr("commands.terminal.coordinator_follow.time.monotonic", lambda: next(clock))
    result = called(sites, "run", first(sites))
    assert result.exit_code == 0, result.exception
    lines = [line.split("UTC  ")[-1] for line in result.output.splitlines()]
    assert lines[:2] == [
        "waiting for the keeper to start the run",
        "training stain (stage 1), round 1 of 3; waiting for north (asked)",
    ]


def test_run_uses_no_dead_proxy_and_says_in_a_sentence_what_it_waits_for(
    sites: State, monkeypatch: pytest.MonkeyPatch
):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")

    def pause(_seconds: float) -> None:
        write_event(sites.run("first").progress, "coordinator", {"event": "done", "seconds": 1.0})

    monkeypatch.setattr("commands.terminal.coordinator_follow.time.sleep", pause)
    result = called(sites, "run", first(sites))
    assert result.exit_code == 0, result.exception
    sentence = (
        f"waiting for the SuperLink: the SuperLink at {sites.settings.inner} does not answer "
        "(ConnectError); is `fedmslora coordinator start` running?"
    )
    assert result.output.count(sentence) == 1 and "127.0.0.1:1 " not in result.output


def test_run_says_where_the_report_is(sites: State, monkeypatch: pytest.MonkeyPatch):
    result = ended(sites, monkeypatch, event="done", seconds=61.0)
    assert result.exit_code == 0, result.exception
    assert "done in 1 min 1 s" in result.output
    assert str(sites.run("first").root / "report.html") in result.output


def test_run_fails_with_the_sentence_of_the_failure(sites: State, monkeypatch: pytest.MonkeyPatch):
    result = ended(sites, monkeypatch, event="failed", text="north: found x, expected y")
    assert isinstance(result.exception, StateError)
    assert str(result.exception) == "north: found x, expected y"


def test_ctrl_c_stops_watching_and_not_the_run(sites: State, monkeypatch: pytest.MonkeyPatch):
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    result = called(sites, "run", first(sites))
    assert result.exit_code == 130
    assert "first is still running" in result.output
    assert sites.requested is not None
    assert not sites.requested.stop


def test_stop_is_remembered_while_the_superlink_is_away(sites: State):
    assert "No run is in progress." in said(sites, "stop")
    said(sites, "run", first(sites), "--detach")
    assert "will stop as soon as" in said(sites, "stop")
    assert sites.requested == RequestedRun(run="first", since=0, stop=True)
    # Requested again before the keeper came to it.
    said(sites, "run", first(sites), "--detach")
    assert sites.requested == RequestedRun(run="first", since=0)


def test_stop_all_says_that_nothing_runs(state: State):
    assert "The coordinator is not running." in said(state, "stop", "--all")
