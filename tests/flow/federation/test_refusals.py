"""Bad input through the command line: one clear sentence, exit code 2, nothing left behind."""
# pydicom's datasets know their elements only at run time.
# pyright: reportUnknownMemberType=false

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pydicom
import pytest
from pydicom.data import get_testdata_file

import fedmslora
from common.bank.bank import Bank
from common.identity import sha256
from common.plan.file import load_plan
from common.plan_fields import BaseModelPin
from common.process.file_lock import file_lock
from server.run.folder import RunFolder
from server.run.journal import Journal
from simulation.hospitals import BASE_MODELS, prepare
from tests.flow.small_run import STAGE as SMALL_STAGE
from tests.flow.small_run import small_plan

#: Runs a command line that must be refused; gives the lines on stderr.
Refused: TypeAlias = Callable[..., list[str]]

STAGE = {**SMALL_STAGE, "rounds": 1}


def plan_file(folder: Path, **changes: Any) -> Path:
    """A plan smaller still: both tasks at the same two sites, hardly a question."""
    fields: dict[str, Any] = {
        "stages": [STAGE, {**STAGE, "name": "pcam", "modality": "pathology", "task": "PCAM"}],
        "simulation": {"data": "phantoms", "train_fraction": 0.1, "test_questions": 4},
        **changes,
    }
    return small_plan(folder / "plan.yaml", **fields)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    def run(*arguments: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["fedmslora", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            fedmslora.main()
        said = capsys.readouterr()
        assert (left.value.code, said.out) == (2, ""), said
        assert "Traceback" not in said.err
        return said.err.splitlines()

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data for the plan, SITE/TASK/ in the paper's layout."""
    folder = tmp_path_factory.mktemp("made")
    prepare(load_plan(plan_file(folder)), folder / "sites", None, BASE_MODELS["tiny-llava"])
    for site in ("a", "b"):
        shutil.copytree(folder / "sites" / site / "data", folder / "data" / site)
    return folder / "data"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sed": 1}, "sed: found a field 'sed', expected only known fields; did you mean 'seed'?"),
        (
            {"stages": [{**STAGE, "modality": "xry"}]},
            "stage 1 'cxp', modality: found 'xry', expected one of 'pathology', ",
        ),
        (
            {"stages": [STAGE, STAGE]},
            "stage 2 'cxp', name: found 'cxp' again (stage 1 has it), expected a name of its own",
        ),
        (
            {"method": {"name": "mslora_cr", "rank": 0, "alpha": 4, "contrast": {}}},
            "method.rank: found 0, expected at least 1",
        ),
        (
            {"stages": [{**STAGE, "task": "cpx"}]},
            "stage 1 'cxp', task: found 'cpx', expected one of 'pathvqa', ",
        ),
        (
            {"simulation": None},
            "simulation: found nothing, expected the data that stands in for the hospitals'; ",
        ),
        (
            {"base_model": {"name": "other", "sha256": "ab" * 32}},
            "base_model.name: found 'other', expected one of 'tiny-llava', ",
        ),
    ],
)
def test_a_wrong_plan(refused: Refused, tmp_path: Path, changes: dict[str, Any], said: str):
    plan = plan_file(tmp_path, **changes)
    (line,) = refused("simulate", plan, "--out", tmp_path / "run")
    assert line.startswith(f"{plan}: {said}"), line
    assert not (tmp_path / "run").exists()


def test_every_mistake_of_a_plan_has_its_line(refused: Refused, tmp_path: Path):
    stages = [{**STAGE, "task": "one"}, {**STAGE, "name": "b", "task": "two"}]
    lines = refused("simulate", plan_file(tmp_path, stages=stages), "--out", tmp_path / "run")
    assert ["found 'one'" in lines[0], "found 'two'" in lines[1]] == [True, True]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--methods", "sequential,best"],
            "--methods: found 'best', expected some of 'mslora_cr_ortho'",
        ),
        (
            ["--methods", "mslora_cr_ortho,finetune"],
            "method 'clip_finetune': found the base model",
        ),
        (["--methods", ""], "--methods: found '', expected some of 'mslora_cr_ortho'"),
        (["--curve", ""], "--curve: found '', expected whole numbers such as 10,40,160"),
        (["--curve", "10,0"], "--curve: found '10,0', expected whole numbers such as 10,40,160"),
        (["--curve", "1" * 5000], f"--curve: found '{'1' * 60}', expected whole numbers such as"),
        (["--engine", "spark"], "--engine: found 'spark', expected 'flower' or 'inprocess'"),
        (["--data", "nowhere"], "nowhere: found nothing, expected a folder with one folder for"),
        (["--base-model", "nowhere"], "nowhere: found no folder, expected a base model"),
    ],
)
def test_a_wrong_option(refused: Refused, tmp_path: Path, options: list[str], said: str):
    (line,) = refused("simulate", plan_file(tmp_path), "--out", tmp_path / "run", *options)
    assert said in line
    assert not (tmp_path / "run").exists()


def test_more_seeds_than_can_be_meant(refused: Refused, tmp_path: Path):
    lines = refused("simulate", plan_file(tmp_path), "--out", tmp_path / "run", "--seeds", "1001")
    assert "1001 is not in the range 1<=x<=1000" in "".join(lines)


def test_a_plan_that_is_not_there(refused: Refused, tmp_path: Path):
    (line,) = refused("simulate", tmp_path / "none.yaml", "--out", tmp_path / "run")
    assert line == f"{tmp_path / 'none.yaml'}: can't be read as a plan (No such file or directory)"


def test_a_damaged_base_model(refused: Refused, tmp_path: Path):
    plan, base = plan_file(tmp_path), tmp_path / "base"
    shutil.copytree(BASE_MODELS["tiny-llava"], base)
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (line,) = refused("simulate", plan, "--out", tmp_path / "run", "--base-model", base)
    assert line.startswith(f"{base}: found a base model with digest ")
    assert not (tmp_path / "run").exists()


def drop_image(task: Path) -> None:
    (task / "images/00000.png").unlink()


def truncate_image(task: Path) -> None:
    image = task / "images/00000.png"
    image.write_bytes(image.read_bytes()[:300])


def empty_test_set(task: Path) -> None:
    (task / "test.jsonl").write_text("", encoding="utf-8")


def drop_answer(task: Path) -> None:
    entries = json.loads((task / "train.json").read_text(encoding="utf-8"))
    entries[0]["conversations"][1]["value"] = " "
    (task / "train.json").write_text(json.dumps(entries), encoding="utf-8")


def dicom_without_pixels(task: Path) -> None:
    header = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    del header.PixelData
    header.save_as(task / "images/header.dcm")
    entries = json.loads((task / "train.json").read_text(encoding="utf-8"))
    entries[0]["image"] = "images/header.dcm"
    (task / "train.json").write_text(json.dumps(entries), encoding="utf-8")


def remove_task(task: Path) -> None:
    shutil.rmtree(task)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (drop_image, "field 'image': found 'images/00000.png', where there is no file"),
        (truncate_image, "images/00000.png: found "),
        (empty_test_set, "test.jsonl: found no questions, expected at least one"),
        (drop_answer, "train.json: entry 1: field 'conversations': found blank text"),
        (dicom_without_pixels, "images/header.dcm: found "),
        (remove_task, "b/PCAM: found nothing, expected a task's folder"),
    ],
)
def test_data_that_cannot_be_used(
    refused: Refused, made: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str
):
    data = tmp_path / "data"
    shutil.copytree(made, data)
    spoil(data / "b/PCAM")
    lines = refused("simulate", plan_file(tmp_path), "--out", tmp_path / "run", "--data", data)
    # A picture that several questions share is a mistake of each of them.
    assert all(str(data / "b/PCAM") in line and said in line for line in lines), lines
    assert lines
    assert not (tmp_path / "run").exists()


def test_the_data_of_all_sites_is_told_at_once(refused: Refused, made: Path, tmp_path: Path):
    data = tmp_path / "data"
    shutil.copytree(made, data)
    shutil.rmtree(data / "a")
    empty_test_set(data / "b/CXP")
    lines = refused("simulate", plan_file(tmp_path), "--out", tmp_path / "run", "--data", data)
    assert [line.split(": ")[0].removeprefix(f"{data}/") for line in lines] == [
        "a/CXP",
        "b/CXP/test.jsonl",
        "a/PCAM",
    ]


def test_a_bank_from_another_base_model(refused: Refused, tmp_path: Path):
    Bank.create(tmp_path / "run/bank", BaseModelPin(name="other", sha256="cd" * 32))
    before = set(tmp_path.rglob("*"))
    plan = plan_file(tmp_path)
    (line,) = refused("simulate", plan, "--out", tmp_path / "run")
    assert f"{tmp_path / 'run/bank'}: found the base model other (cdcd" in line
    assert set(tmp_path.rglob("*")) - before == {plan, tmp_path / "run/.lock"}


def test_a_plan_changed_between_start_and_resume(refused: Refused, tmp_path: Path):
    started = load_plan(plan_file(tmp_path))
    folder = RunFolder(tmp_path / "run")
    Journal(folder, started).close()
    journal = sha256(folder.journal.read_bytes())
    plan = plan_file(tmp_path, aggregation="fedavg")
    (line,) = refused("simulate", plan, "--out", tmp_path / "run")
    assert "this run was started with another plan: found changed aggregation, expected" in line
    assert sha256(folder.journal.read_bytes()) == journal


def test_a_changed_plan_is_found_before_a_compared_method_is_reached(
    refused: Refused, tmp_path: Path
):
    folder = RunFolder(tmp_path / "run/methods/sequential")
    Journal(folder, load_plan(plan_file(tmp_path, seed=9))).close()
    lines = refused(
        "simulate", plan_file(tmp_path), "--out", tmp_path / "run", "--methods",
        "mslora_cr,sequential",
    )  # fmt: skip
    assert "methods/sequential: this run was started with another plan" in lines[0]
    assert not (tmp_path / "run/sites").exists()


def test_a_folder_that_is_a_file(refused: Refused, tmp_path: Path):
    (tmp_path / "run").write_text("mine", encoding="utf-8")
    (line,) = refused("simulate", plan_file(tmp_path), "--out", tmp_path / "run")
    assert line == f"{tmp_path / 'run'}: can't be used as the run's folder (File exists)"
    assert (tmp_path / "run").read_text(encoding="utf-8") == "mine"


def test_a_folder_that_cannot_be_written(refused: Refused, tmp_path: Path):
    (line,) = refused("simulate", plan_file(tmp_path), "--out", "/proc/run")
    assert line.startswith("/proc/run: can't be used as the run's folder (")


def test_a_folder_that_another_process_uses(refused: Refused, tmp_path: Path):
    (tmp_path / "run").mkdir()
    with file_lock(tmp_path / "run/.lock"):
        (line,) = refused("simulate", plan_file(tmp_path), "--out", tmp_path / "run")
    assert line.startswith(
        f"{tmp_path / 'run'}: found another fedmslora running in this folder, expected none"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bank", "verify", "none"], "none/bank.json: can't be read (No such file or directory)"),
        (["bank", "list", "none"], "none/bank.json: can't be read (No such file or directory)"),
        (["report", "."], "report.json: can't be read as a report (No such file or directory)"),
        (["report", "none"], "none/report.json: can't be read as a report (No such file or direc"),
        (["answers", "score", "none"], "none: can't be read as answers (No such file or directory"),
        (["answers", "score", "bad.jsonl"], "bad.jsonl, line 2: "),
        (["answers", "score", "empty.jsonl"], "empty.jsonl: found no answer, expected one JSON"),
        (["answers", "score", "."], ".: can't be read as answers (Is a directory)"),
    ],
)
def test_the_other_commands(
    refused: Refused,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
):
    monkeypatch.chdir(tmp_path)
    good = {"prompt": "q", "text": "yes", "gt": "yes", "answer_type": "CLOSED"}
    (tmp_path / "bad.jsonl").write_text(f"{json.dumps(good)}\n{{\n", encoding="utf-8")
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    (line,) = refused(*arguments)
    assert line.startswith(said), line
