"""What a person sees of a run without a terminal: lines on stderr, and the state now and then."""

from pathlib import Path

import pytest

from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.process.progress import Follower, write_event
from simulation import watch
from simulation.failures import with_log_texts
from simulation.watch import watching


def plan() -> Plan:
    stage = {
        "name": "bone", "modality": "ct", "task": "t", "sites": ["a", "b"], "rounds": 2,
        "local_epochs": 1, "learning_rate": 0.1, "batch_size": 8,
    }  # fmt: skip
    return parse_plan(
        {
            "name": "p", "seed": 3, "base_model": {"name": "tiny", "sha256": "ab" * 32},
            "method": {
                "name": "mslora_cr", "rank": 2, "alpha": 2, "active": "all", "contrast": None
            },
            "aggregation": "fedavg",
            "stages": [stage, {**stage, "name": "film", "modality": "xray"}],
        },
        "p",
    )  # fmt: skip


def test_every_stage_round_and_score_has_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with watching("p, mslora_cr, seed 3", plan(), tmp_path / "progress", tmp_path / "sites"):
        for news in (
            {"event": "meeting"},
            {"event": "stage", "stage": 1},
            {"event": "scoring", "stage": None, "task": 1},
            {"event": "base", "task": 1, "score": 0.25},
            {"event": "round", "stage": 1, "round": 2, "losses": {"a": 0.12345, "b": 1.0}},
            {"event": "refused", "stage": 1, "text": "site b could not [red] train"},
            {"event": "scores", "stage": 1, "scores": [0.5, 0.996]},
            {"event": "done", "seconds": 61.4},
        ):
            write_event(tmp_path / "progress", "coordinator", news)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "p, mslora_cr, seed 3",
        "stage 2 of 2: film (xray) at a, b",
        "  base model: 25",
        "  round 2 of 2: loss a 0.123, b 1.000",
        "  left out: site b could not [red] train",
        "  scores: bone 50, film 100",
        "done in 1 min 1 s",
    ]


def test_without_a_terminal_the_current_state_is_printed_now_and_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watch, "_STATUS_EVERY_S", 0.0)
    step = {"stage": 0, "round": 2, "site": "b", "step": 10, "steps": 33, "loss": 0.5}
    with watching("p", plan(), tmp_path / "progress", tmp_path / "sites"):
        write_event(tmp_path / "sites/b/store/progress", "b", step)
    said = capsys.readouterr().err
    assert "  preparing the sites' data: b step 10 of 33, loss 0.500\n" in said


def test_a_site_may_be_called_as_the_coordinator_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watch, "_STATUS_EVERY_S", 0.0)
    stages = tuple(s.model_copy(update={"sites": ("coordinator",)}) for s in plan().stages)
    of_one = plan().model_copy(update={"stages": stages})
    step = {"stage": 0, "round": 1, "site": "coordinator", "step": 1, "steps": 2, "loss": 0.5}
    with watching("p", of_one, tmp_path / "progress", tmp_path / "sites"):
        write_event(tmp_path / "sites/coordinator/store/progress", "coordinator", step)
        write_event(tmp_path / "progress", "coordinator", {"event": "done", "seconds": 3})
    said = capsys.readouterr().err
    assert "coordinator step 1 of 2, loss 0.500" in said and "done in 0 min 3 s" in said


def test_news_from_before_the_watch_are_not_told_again_and_half_a_line_is_passed_over(
    tmp_path: Path,
):
    write_event(tmp_path, "a", {"step": 1})
    with (tmp_path / "a.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2')
    follower = Follower(tmp_path)
    # The writer was killed within a line; its successor's first line is lost with it.
    write_event(tmp_path, "a", {"step": 3})
    write_event(tmp_path, "a", {"step": 4})
    assert list(follower.events()) == [("a", {"step": 3}), ("a", {"step": 4})]
    with (tmp_path / "b.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5}\n{"st{"step": 6}\n{"step": 7}\n{"st')
    assert list(follower.events()) == [("b", {"step": 5}), ("b", {"step": 7})]


def test_a_reference_to_a_sites_log_becomes_what_stands_there(tmp_path: Path):
    log = tmp_path / "b/store/failures.log"
    log.parent.mkdir(parents=True)
    log.write_text("00000000 KeyError: 'x'\nTraceback ...\nabcdef12 DataError: no picture\n")
    told = "site b could not train: DataError (the site's own log has the text under abcdef12)"
    assert with_log_texts(told, tmp_path) == (
        f"site b could not train: DataError: no picture ({log} has more)"
    )
    unknown = told.replace("abcdef12", "12abcdef")
    assert with_log_texts(unknown, tmp_path) == unknown
