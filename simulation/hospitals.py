"""The simulated hospitals: for each site a folder with its site file, its data and its store."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from client.data.check import may_share
from client.data.task import check_task
from client.model.base_digest import base_digest
from common.durable import DISK, write_file
from common.errors import DataError, ModelError, PlanError, StateError
from common.identity import seed_for
from common.plan import DataSource, Modality, Plan, Simulation, Stage
from simulation.task_folder.write_task import Question, write_task

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


def check(plan: Plan, source: str, data: Path | None, base_model: Path | None) -> Path:
    """The base model's folder, once all that a run needs is found; nothing is written.

    Args:
        source: names the plan in a mistake.
        data: a folder SITE/TASK/ in the paper's layout, or None where data will be made.
        base_model: the base model's folder; by default the one that comes with the project.

    Raises:
        ModelError: the base model is another than the plan pins.
        PlanError: the plan names data that does not exist.
        DataError: a task's data can't be used; all mistakes are named.
    """
    folder = _base_model(plan, source, base_model)
    if data is None:
        _check_tasks(plan, source)
    elif not data.is_dir():
        found = "a file" if data.exists() else "nothing"
        raise DataError(f"{data}: found {found}, expected a folder with one folder for each site")
    else:
        _check_data(data / site / stage.task for stage in plan.stages for site in stage.sites)
    return folder


def prepare(plan: Plan, sites: Path, data: Path | None, base_model: Path) -> None:
    """Each site of the plan has its file beneath `sites`, and its data there or in `data`.

    Raises:
        StateError: the folder holds the sites of another plan.
        DataError: data that an earlier run made here was damaged.
    """
    _claim(plan, sites, data)
    for name in plan.sites:
        own = data / name if data else sites / name / "data"
        if data is None:
            for stage in plan.stages:
                if name in stage.sites:
                    _make_task(plan, stage, name, own / stage.task)
        _write_site_file(sites / name / "site.yaml", name, own, base_model)
    if data is None:
        _check_data(
            sites / name / "data" / stage.task for stage in plan.stages for name in stage.sites
        )


def _check_data(folders: Iterable[Path]) -> None:
    mistakes: list[str] = []
    for folder in dict.fromkeys(folders):
        try:
            check_task(folder, may_share=may_share(folder))
        except DataError as error:
            mistakes.append(str(error))
    if mistakes:
        raise DataError("\n".join(mistakes))


def _claim(plan: Plan, sites: Path, data: Path | None) -> None:
    """`sites` is for this data alone: what was made for another plan is not taken for it."""
    made = plan.simulation and plan.simulation.model_dump(mode="json", exclude={"compare"})
    made_of = {
        "data": str(data.resolve()) if data else None,
        "simulation": made,
        "seed": plan.seed,
        "stages": [[stage.task, *stage.sites] for stage in plan.stages],
    }
    file, text = sites / "made_of.json", json.dumps(made_of, indent=1) + "\n"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, text.encode(), DISK)
    elif file.read_text(encoding="utf-8") != text:
        raise StateError(
            f"{sites}: found the sites of another plan or another --data, expected this run's; "
            "use another folder"
        )


def _base_model(plan: Plan, source: str, given: Path | None) -> Path:
    folder = given or BASE_MODELS.get(plan.base_model.name)
    if folder is None:
        raise ModelError(
            f"{source}: base_model.name: found {plan.base_model.name!r}, expected one of "
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
        # Whoever runs the simulation is all its hospitals.
        "policy": {
            "modalities": list(Modality),
            "plans": "any",
            "rounds": None,
            "examples": 1,
            "images": 1,
        },
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    # JSON is YAML; a path with a colon or a hash in it stays what it is.
    file.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def _check_tasks(plan: Plan, source: str) -> None:
    """The plan's data can be made.

    Raises:
        PlanError: the plan says not how, or names tasks that do not exist.
    """
    if plan.simulation is None:
        raise PlanError(
            f"{source}: simulation: found nothing, expected the data that stands in for the "
            "hospitals'; or give their folder with --data"
        )
    known = [name for name, _ in _tasks(plan.simulation.data)]
    mistakes = [*_deal_mistakes(plan, plan.simulation, source)]
    mistakes += [
        f"{source}: stage {number} {stage.name!r}, task: found {stage.task!r}, "
        f"expected one of {', '.join(map(repr, known))}"
        for number, stage in enumerate(plan.stages, 1)
        if stage.task not in known
    ]
    if mistakes:
        raise PlanError("\n".join(mistakes))


def _deal_mistakes(plan: Plan, wish: Simulation, source: str) -> Iterable[str]:
    for task in dict.fromkeys(stage.task for stage in plan.stages):
        sites = len(_holders(plan, task))
        if wish.deal is not None and len(wish.deal) != sites:
            yield (
                f"{source}: simulation.deal: found {len(wish.deal)} numbers, expected {sites}: one "
                f"for each site of the task {task!r}"
            )


def _tasks(source: DataSource) -> Sequence[tuple[str, object]]:
    """Every task of a source, and its modality."""
    if source is DataSource.PICTURES:
        from simulation.pictures import source as pictures

        return pictures.TASKS
    from simulation.phantoms import source as phantoms

    return phantoms.TASKS


def _make_task(plan: Plan, stage: Stage, site: str, folder: Path) -> None:
    if folder.exists():
        return
    assert plan.simulation is not None
    train, test = _dealt(plan, plan.simulation, stage.task, site)
    if not train or not test:
        raise DataError(f"{folder}: found no question for site {site}, expected at least one")
    write_task(folder, train, test)


def _holders(plan: Plan, task: str) -> list[str]:
    """The sites that share a task's data, in the order in which they come to it."""
    stages = [stage for stage in plan.stages if stage.task == task]
    return list(dict.fromkeys(site for stage in stages for site in stage.sites))


def _dealt(
    plan: Plan, wish: Simulation, task: str, site: str
) -> tuple[list[Question], list[Question]]:
    """The questions of the hospitals that the site stands for; groups are counted through."""
    holders = _holders(plan, task)
    deal = wish.deal or (1,) * len(holders)
    place, hospitals = holders.index(site), sum(deal)
    make = {DataSource.PICTURES: _pictures, DataSource.PHANTOMS: _phantoms}[wish.data]
    train: list[Question] = []
    test: list[Question] = []
    for position in range(sum(deal[:place]), sum(deal[: place + 1])):
        learned, asked = make(plan.seed, task, position, hospitals)
        learned, asked = _thinned(wish, plan.seed, task, learned, asked)
        first = 1 + max((question.group for question in (*train, *test)), default=-1)
        train += [replace(question, group=question.group + first) for question in learned]
        test += [replace(question, group=question.group + first) for question in asked]
    return train, test


def _pictures(
    seed: int, task: str, position: int, sites: int
) -> tuple[list[Question], list[Question]]:
    from simulation.pictures.source import picture_task

    return picture_task(task, position, sites, seed)


def _phantoms(
    seed: int, task: str, position: int, sites: int
) -> tuple[list[Question], list[Question]]:
    from simulation.phantoms.source import phantom_task

    counts = [-(-count // sites) for count in PHANTOM_QUESTIONS[task]]
    train, test = (
        phantom_task(task, count, seed_for(seed, part, task, position), position)
        for part, count in zip(("train", "test"), counts, strict=True)
    )
    # The groups of both count from 0; a picture of the one is none of the other.
    shift = 1 + max(question.group for question in train)
    return train, [replace(question, group=question.group + shift) for question in test]


def _thinned(
    wish: Simulation, seed: int, task: str, train: Sequence[Question], test: Sequence[Question]
) -> tuple[list[Question], list[Question]]:
    """Fewer questions, and noisy training answers, where the plan wants them."""
    rng = np.random.default_rng(seed_for(seed, "thinned"))
    fraction = wish.train_fractions.get(task, wish.train_fraction)
    kept = list(train[: max(1, round(fraction * len(train)))])
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
