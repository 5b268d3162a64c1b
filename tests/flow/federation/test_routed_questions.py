"""A federation with statistics of pictures and listed questions, from its plan to `bank ask`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import fedmslora
from client.data.task import Example, read_task
from commands.bank import app
from common.bank.bank import Bank
from report.json_file import read_report
from serving.open_bank import OpenBank
from simulation.run import simulate
from tests.flow.small_run import STAGE, options, small_plan

#: Two stages of chest films, which pictures alone can't tell apart, and one of pathology.
ASKED = {
    "CXP": (
        "given a chest x-ray image, determine whether the patient has a normal chest or "
        "pneumonia. only output 'normal' or 'pneumonia'."
    ),
    "iu-x-ray": "provide a detailed report that includes both findings and impressions.",
    "PCAM": (
        "given a histopathologic scan of a lymph node, classify the center of the image. "
        "only output 'positive' or 'negative'."
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("questions")
    stages: list[dict[str, Any]] = [
        {
            **STAGE, "name": task.lower(), "task": task, "sites": [site], "rounds": 1,
            "modality": "pathology" if task == "PCAM" else "radiology", "local_epochs": 0.1,
            "questions": [asked],
        }
        for (task, asked), site in zip(ASKED.items(), "aab", strict=True)
    ]  # fmt: skip
    # 120, 72 and 120 different pictures: enough for statistics.
    simulated = {"data": "phantoms", "train_fraction": 0.6, "test_questions": 12}
    evaluation = {"zero_shot": False, "earlier": "last"}
    plan = small_plan(
        folder / "plan.yaml", stages=stages, router={}, simulation=simulated, evaluation=evaluation
    )
    simulate(plan, options(folder / "run"))
    return folder / "run"


def questions_of(run: Path, task: str) -> list[Example]:
    return list(read_task(run / "sites" / ("b" if task == "PCAM" else "a") / "data" / task).test)


@pytest.fixture(scope="module")
def bank(run: Path) -> OpenBank:
    return fedmslora.open_bank(run)


def test_each_release_has_its_pictures_statistics_and_its_stages_questions(run: Path):
    bank = Bank.open(run / "bank")
    assert [release.questions for release in bank.releases] == [(one,) for one in ASKED.values()]
    assert [one.images for one in bank.prototypes().values()] == [120, 72, 120]
    assert all(one.statistics is not None for one in bank.prototypes().values())


def test_scores_are_routed_by_the_question_and_the_report_says_how_surely(run: Path):
    (report,) = read_report(run)
    routed = report.routed
    assert routed is not None and routed.known is not None and routed.confidence is not None
    assert routed.stage[2] == (1.0, 1.0, 1.0)
    assert routed.scores[2] == report.scores[2]
    # By the pictures' statistics 97 % are known; of 12 hardly fewer than 9.
    assert all(share is not None and share >= 0.75 for share in routed.known[2])
    assert all(share is not None and 0.9 < share <= 1 for share in routed.confidence[2])
    page = (run / "report.html").read_text(encoding="utf-8")
    said = "The router takes 100 % of a task&#39;s test images to its own stage"
    assert said in " ".join(page.split())
    assert "<th>called known</th><th>confidence</th>" in page.replace("\n", "")


def test_a_stage_is_found_by_picture_and_question(run: Path, bank: OpenBank):
    known = 0
    for task, question in ASKED.items():
        for one in questions_of(run, task)[:4]:
            found = bank.ask(one.image, question)
            assert (found.stage, found.question_known) == (task.lower(), True)
            known += bool(found.known)
    assert known >= 9


def test_of_one_film_the_question_chooses_the_stage_and_never_another_kind_of_picture(
    run: Path, bank: OpenBank
):
    film = questions_of(run, "CXP")[0].image
    assert bank.ask(film, "write a report with findings").stage == "iu-x-ray"
    found = bank.ask(film, "is the center of the lymph node positive?")
    assert (found.modality, found.question_known) == ("radiology", False)
    assert "; pcam has " in found.question_reason


def test_on_the_command_line_noise_is_unlike_all_whatever_is_asked(run: Path, tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    told = CliRunner().invoke(
        app, ["ask", str(tmp_path / "noise.png"), ASKED["CXP"], "--bank", str(run), "--json"]
    )
    found = json.loads(told.stdout)
    assert (found["known"], found["calibrated"]) == (False, True) and found["reason"]
