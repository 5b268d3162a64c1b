"""The simulated hospitals: for each site a folder with its site file, its data and its store."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from client.data import check_task
from client.model import base_digest
from common.errors import DataError, ModelError, PlanError
from common.identity import seed_for
from common.plan import DataSource, Plan, Simulation, Stage
from simulation.write_task import Question, write_task

#: Folders of the base models that come with the project, by their name in a plan.
BASE_MODELS: Mapping[str, Path] = {"tiny-llava": Path(__file__).parent / "base_model"}
#: Training and test questions of each phantom task over all its sites; few-shot from the
#: fourth on, as knowledge of a modality is meant to help the tasks that come late.
PHANTOM_QUESTIONS: Mapping[str, tuple[int, int]] = {
    "pathvqa": (600, 240),
    "slake-vqarad": (600, 240),
    "derm": (600, 240),
    "PCAM": (200, 240),
    "CXP": (200, 240),
    "HAM": (300, 240),
    "nmi": (120, 240),
    "iu-x-ray": (120, 240),
}


def prepare(plan: Plan, sites: Path, data: Path | None, base_model: Path | None) -> None:
    """Each site of the plan has its file and its checked data beneath `sites`.

    Args:
        data: a folder SITE/TASK/ in the paper's layout to read instead of making data.
        base_model: the base model's folder; by default the one that comes with the project.

    Raises:
        DataError: a task's data can't be used; all mistakes are named.
        ModelError: the base model is another than the plan pins.
        PlanError: the plan names data that does not exist.
    """
    folder = _base_model(plan, base_model)
    for name in plan.sites:
        own = data / name if data else sites / name / "data"
        for stage in plan.stages:
            if name in stage.sites:
                if data is None:
                    _make_task(plan, stage, name, own / stage.task)
                check_task(own / stage.task)
        _write_site_file(sites / name / "site.yaml", name, own, folder)


def _base_model(plan: Plan, given: Path | None) -> Path:
    folder = given or BASE_MODELS.get(plan.base_model.name)
    if folder is None:
        raise ModelError(
            f"base_model.name: found {plan.base_model.name!r}, expected one of "
            f"{', '.join(map(repr, BASE_MODELS))}, or a folder given with --base-model"
        )
    found = base_digest(folder)
    if found != plan.base_model.sha256:
        raise ModelError(
            f"{folder}: found a base model with digest {found}, "
            f"expected the plan's {plan.base_model.sha256}"
        )
    return folder.resolve()


def _write_site_file(file: Path, name: str, data: Path, base_model: Path) -> None:
    fields = {
        "name": name,
        "data": str(data.resolve()),
        "base_model": str(base_model),
        "store": "store",
        "device": "auto",
        # One thread a site: two sites train side by side on two cores, and the last bits
        # of a sum depend on how many threads share it.
        "threads": 1,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    # JSON is YAML; a path with a colon or a hash in it stays what it is.
    file.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def _make_task(plan: Plan, stage: Stage, site: str, folder: Path) -> None:
    if folder.exists():
        return
    if plan.simulation is None:
        raise PlanError(
            "simulation: found nothing, expected the data that stands in for the hospitals'; "
            "or give their folder with --data"
        )
    position, sites = stage.sites.index(site), len(stage.sites)
    make = {DataSource.PICTURES: _pictures, DataSource.PHANTOMS: _phantoms}
    train, test = make[plan.simulation.data](plan.seed, stage, position, sites)
    train, test = _thinned(plan.simulation, plan.seed, train, test)
    if not train or not test:
        raise DataError(f"{folder}: found no question left, expected at least one")
    write_task(folder, train, test)


def _pictures(
    seed: int, stage: Stage, position: int, sites: int
) -> tuple[list[Question], list[Question]]:
    from simulation.pictures import TASKS, picture_task

    _known(stage, [name for name, _ in TASKS])
    return picture_task(stage.task, position, sites, seed)


def _phantoms(
    seed: int, stage: Stage, position: int, sites: int
) -> tuple[list[Question], list[Question]]:
    from simulation.phantoms import TASKS, phantom_task

    _known(stage, [name for name, _ in TASKS])
    counts = [-(-count // sites) for count in PHANTOM_QUESTIONS[stage.task]]
    train, test = (
        phantom_task(stage.task, count, seed_for(seed, part, stage.task, position), position)
        for part, count in zip(("train", "test"), counts, strict=True)
    )
    # The groups of both count from 0; a picture of the one is none of the other.
    shift = 1 + max(question.group for question in train)
    return train, [replace(question, group=question.group + shift) for question in test]


def _known(stage: Stage, tasks: Sequence[str]) -> None:
    if stage.task not in tasks:
        raise PlanError(
            f"stage {stage.name!r}, task: found {stage.task!r}, "
            f"expected one of {', '.join(map(repr, tasks))}"
        )


def _thinned(
    wish: Simulation, seed: int, train: Sequence[Question], test: Sequence[Question]
) -> tuple[list[Question], list[Question]]:
    """Fewer questions, and noisy training answers, where the plan wants them."""
    rng = np.random.default_rng(seed_for(seed, "thinned"))
    kept = list(train[: max(1, round(wish.train_fraction * len(train)))])
    return _noisy(kept, wish.label_noise, rng), list(test[: wish.test_questions])


def _noisy(train: list[Question], share: float, rng: np.random.Generator) -> list[Question]:
    """A share of the answers replaced by another answer to the same question."""
    given: dict[str, list[str]] = {}
    for question in train:
        given.setdefault(question.question, []).append(question.answer)
    return [
        replace(question, answer=str(rng.choice(given[question.question])))
        if rng.random() < share
        else question
        for question in train
    ]
