"""One whole federation in one process: plan, three sites, two stages, bank and report."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from common.bank.bank import Bank
from common.errors import BankError, DataError, ModelError, SiteFailed, StateError
from common.plan.file import load_plan
from report.json_file import read_report
from simulation import planned_run
from simulation.baselines import with_seed
from simulation.hospitals import prepare
from simulation.run import simulate
from tests.flow.cheap_runs import charts_drawn
from tests.flow.forked import exit_code_of
from tests.flow.small_run import bank_bytes, killed_after, options, small_plan


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, before = tmp_path_factory.mktemp("finished"), set(os.environ)
    with charts_drawn():
        simulate(small_plan(out / "plan.yaml"), options(out / "run"))
    left = set(os.environ) - before
    assert not {name for name in left if name.startswith(("FEDMSLORA", "FLWR", "RAY"))}
    return out / "run"


def test_a_plan_ends_with_a_bank_that_verifies_and_a_report(finished: Path):
    bank = Bank.open(finished / "bank")
    bank.verify(None, None)
    (report,) = read_report(finished)
    assert [release.name for release in bank.releases] == ["cxp", "pcam"]
    assert [release.sums for release in bank.releases] == [(0,), (0, 1)]
    assert bank.head == report.provenance.bank_head
    assert "<svg" in (finished / "report.html").read_text(encoding="utf-8")


def test_what_the_first_stage_learned_is_answered_the_same_after_the_second(finished: Path):
    (report,) = read_report(finished)
    assert report.scores[1][0] == report.scores[0][0]
    document = json.loads((finished / "report.json").read_text(encoding="utf-8"))
    assert document["metrics"]["forgetting"] == 0
    assert document["metrics"]["bwt"] == 0


def test_training_moved_the_adapter_and_the_loss(finished: Path):
    (report,) = read_report(finished)
    losses = {(point.stage, point.round, point.site): point.loss for point in report.curves}
    assert losses["cxp", 2, "a"] != losses["cxp", 1, "a"]
    assert all(
        abs(pair.b).max() > 0 for pair in Bank.open(finished / "bank").adapter(1).pairs.values()
    )


def test_no_question_answer_or_file_name_leaves_a_site(finished: Path):
    journal = (finished / "journal.sqlite").read_bytes()
    wal = finished / "journal.sqlite-wal"
    journal += wal.read_bytes() if wal.exists() else b""
    test = (finished / "sites/a/data/CXP/test.jsonl").read_text(encoding="utf-8").splitlines()[0]
    for told in ("pneumonia", "images/", ".png", json.loads(test)["text"][:20]):
        assert told.encode() not in journal


def test_a_second_run_ends_with_the_same_bank_bytes(finished: Path, tmp_path: Path):
    simulate(small_plan(tmp_path / "plan.yaml"), options(tmp_path / "again"))
    assert bank_bytes(tmp_path / "again") == bank_bytes(finished)


def test_a_run_killed_at_any_point_goes_on_to_the_same_bank_bytes(finished: Path, tmp_path: Path):
    plan, out = small_plan(tmp_path / "plan.yaml"), tmp_path / "run"
    # The last of them in the second stage's second round, with the first stage released.
    for answers in (3, 6, 8, 15):
        assert exit_code_of(killed_after, answers, plan, out) == -signal.SIGKILL
    simulate(plan, options(out))
    assert bank_bytes(out) == bank_bytes(finished)


def test_methods_are_compared_on_the_same_data_and_fine_tuning_may_forget(
    finished: Path, tmp_path: Path
):
    out = tmp_path / "run"
    methods = ["sequential", "separate", "mslora_cr_ortho"]
    simulate(small_plan(tmp_path / "plan.yaml"), options(out, methods=methods))
    reports = read_report(out)
    # The plan's own method comes first: its bank is the folder's.
    assert [report.method for report in reports] == ["mslora_cr_ortho", "sequential", "separate"]
    assert reports[0].zero_shot == reports[1].zero_shot
    # What a task's own model scores is known now; at the first stage there is nothing else.
    alone = reports[2].scores
    assert reports[0].single_task == (alone[0][0], alone[1][1])
    assert reports[0].scores[0][0] == alone[0][0]
    assert bank_bytes(out) == bank_bytes(finished)
    assert [release.sums for release in Bank.open(out / "methods/sequential/bank").releases] == [
        (0,),
        (1,),
    ]
    # What one method left at the sites is sent to them again for the next, and counted.
    for site in "abc":
        own, *others = (report.cost.sites[site].bytes_down for report in reports)
        assert others == pytest.approx([own] * 2, rel=0.01)


def test_another_method_alone_has_its_report_in_the_folder_too(tmp_path: Path):
    out = tmp_path / "run"
    (report,) = simulate(small_plan(tmp_path / "plan.yaml"), options(out, methods=["separate"]))
    assert report.method == "separate"
    assert read_report(out) == [report]
    assert not (out / "bank").exists()
    assert [r.sums for r in Bank.open(out / "methods/separate/bank").releases] == [(0,), (1,)]


def test_a_finished_run_is_not_run_again(finished: Path, monkeypatch: pytest.MonkeyPatch):
    def never(*_: object) -> None:
        raise AssertionError("a finished run was run")

    (report,) = read_report(finished)
    monkeypatch.setattr(planned_run, "run_apps", never)
    assert simulate(finished.parent / "plan.yaml", options(finished)) == [report]


def test_a_finished_run_leaves_no_write_ahead_log(finished: Path):
    assert [file.name for file in finished.glob("journal.sqlite*")] == ["journal.sqlite"]


def test_a_failure_at_a_site_is_told_in_the_sites_own_words(tmp_path: Path):
    plan = small_plan(tmp_path / "plan.yaml")
    plan.write_text(plan.read_text().replace("learning_rate: 0.005", "learning_rate: 1.0e+30"))
    with pytest.raises(SiteFailed) as caught:
        simulate(plan, options(tmp_path / "run"))
    # The sites answer in any order.
    lines = sorted(str(caught.value).splitlines())
    assert len(lines) == 2, lines
    log = tmp_path / "run/sites/a/store/failures.log"
    assert lines[0].startswith(
        "site a could not train stage 1, round 1: SiteFailed: site a: stage 'cxp', round 1: "
        "the loss is nan by step "
    )
    assert lines[0].endswith(f"a lower learning_rate than 1e+30 may help ({log} has more)")


def test_data_made_for_another_plan_is_not_taken_for_this_ones(tmp_path: Path):
    plan = load_plan(small_plan(tmp_path / "plan.yaml"))
    prepare(plan, tmp_path / "sites", None, tmp_path)
    prepare(plan, tmp_path / "sites", None, tmp_path)
    with pytest.raises(StateError, match="found the sites of another plan or another --data"):
        prepare(with_seed(plan, 6), tmp_path / "sites", None, tmp_path)
    with pytest.raises(StateError, match="found the sites of another plan or another --data"):
        prepare(plan, tmp_path / "sites", tmp_path / "data", tmp_path)


def test_given_data_that_have_changed_since_are_refused_though_the_run_is_finished(
    finished: Path, tmp_path: Path
):
    plan, data, out = finished.parent / "plan.yaml", tmp_path / "data", tmp_path / "run"
    for site in ("a", "b", "c"):
        shutil.copytree(finished / "sites" / site / "data", data / site)
    reports = simulate(plan, options(out, data=data))
    assert simulate(plan, options(out, data=data)) == reports
    questions = data / "b" / "CXP" / "test.jsonl"
    picture = next((data / "a" / "CXP").rglob("*.png"))
    refused = "found other questions or pictures than .*run was begun with, expected the same"
    for file, site in ((questions, "b"), (picture, "a")):
        before = file.read_bytes()
        # Neither changes what is read.
        file.write_bytes(before + b"\n")
        with pytest.raises(StateError, match=f"data/{site}/CXP: {refused}"):
            simulate(plan, options(out, data=data))
        file.write_bytes(before)
    assert simulate(plan, options(out, data=data)) == reports
    with pytest.raises(StateError, match="found the sites of another plan or another --data"):
        simulate(plan, options(out))


def test_sites_that_hold_one_task_in_two_stages_do_not_hold_the_same_pictures(tmp_path: Path):
    stage = yaml.safe_load(small_plan(tmp_path / "plan.yaml").read_text())["stages"][0]
    stages = [{**stage, "sites": ["a"]}, {**stage, "name": "again", "sites": ["b"]}]
    plan = load_plan(small_plan(tmp_path / "plan.yaml", stages=stages))
    prepare(plan, tmp_path / "sites", None, tmp_path)
    held = [
        {file.read_bytes() for file in (tmp_path / "sites" / site).rglob("*.png")}
        for site in ("a", "b")
    ]
    assert all(held)
    assert not held[0] & held[1]


def test_another_plan_in_the_same_folder_is_refused(finished: Path, tmp_path: Path):
    other = small_plan(tmp_path / "plan.yaml", aggregation="fedavg")
    before = bank_bytes(finished)
    with pytest.raises(StateError, match="found changed aggregation, expected the plan it began"):
        simulate(other, options(finished))
    assert bank_bytes(finished) == before


def test_a_base_model_that_the_plan_does_not_pin_is_refused(tmp_path: Path):
    pin = {"name": "tiny-llava", "sha256": "ab" * 32}
    with pytest.raises(ModelError, match="expected the plan's abab"):
        simulate(small_plan(tmp_path / "plan.yaml", base_model=pin), options(tmp_path / "run"))
    assert not (tmp_path / "run/bank").exists()


def test_a_bank_from_another_base_model_is_refused(tmp_path: Path):
    from common.plan_fields import BaseModelPin

    Bank.create(tmp_path / "run/bank", BaseModelPin(name="other", sha256="cd" * 32))
    with pytest.raises(BankError, match="found the base model other"):
        simulate(small_plan(tmp_path / "plan.yaml"), options(tmp_path / "run"))


def spoil(folder: Path, how: str) -> None:
    task = folder / "a/CXP"
    if how == "missing image":
        next((task / "images").glob("*.png")).unlink()
    elif how == "truncated image":
        image = next((task / "images").glob("*.png"))
        image.write_bytes(image.read_bytes()[:300])
    elif how == "empty test set":
        (task / "test.jsonl").write_text("", encoding="utf-8")
    elif how == "no answer":
        entries = json.loads((task / "train.json").read_text(encoding="utf-8"))
        entries[0]["conversations"][1]["value"] = " "
        (task / "train.json").write_text(json.dumps(entries), encoding="utf-8")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing image", "images/"),
        ("truncated image", "images/"),
        ("empty test set", "test.jsonl"),
        ("no answer", "train.json"),
    ],
)
def test_data_that_cannot_be_used_stops_a_run_before_it_starts(
    finished: Path, tmp_path: Path, how: str, said: str
):
    import shutil

    data = tmp_path / "data"
    for site in ("a", "b", "c"):
        shutil.copytree(finished / "sites" / site / "data", data / site)
    spoil(data, how)
    with pytest.raises(DataError, match=said):
        simulate(small_plan(tmp_path / "plan.yaml"), options(tmp_path / "run", data=data))
    assert not (tmp_path / "run/bank").exists()
