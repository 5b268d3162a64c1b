"""The simulated hospitals: for each site a folder with its site file, its data and its store."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

from client.data.check import may_share
from client.data.task import TEST_FILE, TRAIN_FILE, check_task, read_task
from client.model.base_digest import base_digest
from client.model.kinds import check_kind
from common.documents.bounded import parse_json
from common.durable import DISK, write_file
from common.errors import DataError, ModelError, PlanError, StateError
from common.identity import sha256
from common.plan.plan import Plan
from common.plan.simulation import NOT_OF_DATA, ScoredSplit, Simulation, UnseenHospital
from common.plan_fields import Modality
from common.printable import counted, listed
from report.heterogeneity.model import HospitalTask
from simulation.data_sources import DataSource, data_source
from simulation.heterogeneity.draw import TaskDraw, UnseenDraw, questions_of
from simulation.heterogeneity.facts import (
    facts_of,
    unseen_folder,
    unseen_hospitals,
    unseen_tasks,
    write_facts,
)
from simulation.reference_pairs import PARTS as REFERENCE_PARTS
from simulation.reference_pairs import make_reference
from simulation.task_folder.write_task import Question, write_task

#: Folders of the base models that come with the project, by their name in a plan.
BASE_MODELS: Mapping[str, Path] = {
    "tiny-llava": Path(__file__).parent / "base_model",
    "tiny-clip": Path(__file__).parent / "clip_model",
}
#: Folder of public reference pairs, beside the sites' folders of data (docs/retrieval.md).
REFERENCE = "reference"
#: In the sites' folder: what they were made of.
_MADE_OF = "made_of.json"
#: In the simulation's folder: a digest of each task of data that were given.
_GIVEN_DATA = "given_data.json"


def check(plan: Plan, source: str, data: Path | None, base_model: Path | None) -> Path:
    """Check that everything a run needs is there, and return the base model's folder.

    Nothing is written.

    Args:
        source: names the plan in an error.
        data: a folder SITE/TASK/ in the paper's layout, or None where data will be made.
        base_model: the base model's folder; by default the one that comes with the project.

    Raises:
        ModelError: the base model is another than the plan pins.
        PlanError: the plan names data that does not exist, or a site as the reference pairs.
        DataError: a task's data can't be used; all mistakes are named.
    """
    _check_names(plan, source)
    folder = _base_model(plan, source, base_model)
    if data is None:
        _check_tasks(plan, source)
    elif not data.is_dir():
        found = "a file" if data.exists() else "nothing"
        raise DataError(f"{data}: found {found}, expected a folder with one folder for each site")
    elif plan.simulation and plan.simulation.hospitals:
        raise PlanError(
            f"{source}: simulation.hospitals: found it with --data, expected one of the two: "
            "only data that are made can be made to differ"
        )
    elif plan.simulation and plan.simulation.split is ScoredSplit.VALIDATION:
        raise PlanError(
            f"{source}: simulation.split: found 'validation' with --data, expected 'test': only "
            "data that are made have validation questions"
        )
    else:
        _check_data(data / site / stage.task for stage in plan.stages for site in stage.sites)
    return folder


def _check_names(plan: Plan, source: str) -> None:
    """Check that no site's folder is that of the reference pairs, where there are any.

    Raises:
        PlanError: one is.
    """
    reference = plan.simulation and plan.simulation.reference
    if reference is None and not plan.method.reference_pairs:
        return
    for name in (REFERENCE, *(f"{REFERENCE}-{part}" for part in REFERENCE_PARTS)):
        if name in plan.sites:
            raise PlanError(
                f"{source}: stages: found a site named {name!r}, expected another name: the folder "
                "of reference pairs is beside the sites'"
            )


def prepare(
    plan: Plan, sites: Path, data: Path | None, base_model: Path, reference: Path | None = None
) -> None:
    """Write every site's file, and make its data unless `data` is given.

    Args:
        sites: the folder that gets a folder for each site.
        reference: the folder of reference pairs, if it is not beside the sites' folders of data.

    Raises:
        StateError: the folder holds the sites of another plan or of other data.
        PlanError: the plan names a data source that does not exist.
        DataError: data that an earlier run made here was damaged.
    """
    _claim(plan, sites, data)
    reference = reference or (data or sites) / REFERENCE
    if data is None and plan.simulation and plan.simulation.reference:
        make_reference(plan, plan.simulation.reference, reference, base_model)
    for name in plan.sites:
        own = data / name if data else sites / name / "data"
        if data is None:
            _make_data(plan, name, own)
        _write_site_file(sites / name, sites, own, (base_model, reference))
    for hospital in unseen_hospitals(plan) if data is None else ():
        folder = unseen_folder(sites, hospital.name)
        _make_unseen(plan, hospital, folder / "data")
        _write_site_file(folder, sites, folder / "data", (base_model, reference))
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


def check_made_of(plan: Plan, sites: Path, data: Path | None) -> None:
    """Check that the folder `sites`, if it is there, holds this plan's sites on this data.

    Raises:
        StateError: it holds those of another plan or of other data.
    """
    file = sites / _MADE_OF
    # Before 0.7 the place itself stood there, in the run's folder, too.
    places = {_seen_by_run(sites, data), data and str(data.resolve())}
    if file.exists() and file.read_bytes() not in {_made_of(plan, place) for place in places}:
        raise StateError(
            f"{sites}: found the sites of another plan or another --data, expected this run's; "
            "use another folder"
        )


def claim_given_data(plan: Plan, folder: Path, data: Path) -> None:
    """Check that `data` is what it was when the simulation in `folder` began; note it if it begins.

    The files of questions are compared byte for byte, their pictures by name and size.

    Raises:
        StateError: the questions or pictures of a task have changed, or what was noted of them.
        DataError: a task can't be read.
    """
    file, digests = folder / _GIVEN_DATA, _task_digests(plan, data)
    if not file.exists():
        write_file(file, (json.dumps(digests, indent=1) + "\n").encode(), DISK)
        return
    try:
        before: object = parse_json(file.read_bytes())
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise StateError(
            f"{file}: found no digests of the data, expected those that this run was begun with; "
            "use another folder for the run"
        )
    known = cast(dict[str, object], before)
    for task, digest in digests.items():
        if known.get(task) != digest:
            raise StateError(
                f"{data / task}: found other questions or pictures than {folder} was begun with, "
                "expected the same; use another folder for the run"
            )


def _claim(plan: Plan, sites: Path, data: Path | None) -> None:
    """Reserve `sites` for this plan's data: what was made for another plan is not reused."""
    check_made_of(plan, sites, data)
    if not (sites / _MADE_OF).exists():
        sites.mkdir(parents=True, exist_ok=True)
        write_file(sites / _MADE_OF, _made_of(plan, _seen_by_run(sites, data)), DISK)


def _seen_from(folder: Path, place: Path, run: Path) -> str:
    """Return where a place is: from the folder if it is in the run's, which can be moved."""
    place = place.resolve()
    within = place.is_relative_to(run.resolve())
    return os.path.relpath(place, folder.resolve()) if within else str(place)


def _seen_by_run(sites: Path, data: Path | None) -> str | None:
    return data and _seen_from(sites.parent, data, sites.parent)


def _made_of(plan: Plan, data: str | None) -> bytes:
    """Return what the sites' folders follow from, as a JSON document."""
    made = plan.simulation and plan.simulation.model_dump(mode="json", exclude=set(NOT_OF_DATA))
    made_of = {
        "data": data,
        "simulation": made,
        "seed": plan.seed,
        "stages": [[stage.task, *stage.sites] for stage in plan.stages],
    }
    return (json.dumps(made_of, indent=1) + "\n").encode()


def _task_digests(plan: Plan, data: Path) -> dict[str, str]:
    """Return a digest of each site's questions and of their pictures' sizes, by SITE/TASK."""
    tasks = (f"{site}/{stage.task}" for stage in plan.stages for site in stage.sites)
    return {task: _task_digest(data / task) for task in dict.fromkeys(tasks)}


def _task_digest(folder: Path) -> str:
    questions = [sha256((folder / name).read_bytes()) for name in (TRAIN_FILE, TEST_FILE)]
    task = read_task(folder)
    pictures = sorted({example.image for example in (*task.train, *task.test)})
    sizes = [[str(path.relative_to(folder)), path.stat().st_size] for path in pictures]
    return sha256(json.dumps([questions, sizes]).encode())


def _base_model(plan: Plan, source: str, given: Path | None) -> Path:
    folder = given or BASE_MODELS.get(plan.base_model.name)
    if folder is None:
        raise ModelError(
            f"{source}: base_model.name: found {plan.base_model.name!r}, expected one of "
            f"{', '.join(map(repr, BASE_MODELS))}, or a folder given with --base-model"
        )
    check_kind(plan, folder)
    found = base_digest(folder)
    if found != plan.base_model.sha256:
        raise ModelError(
            f"{folder}: found a base model with digest {found}, "
            f"expected the plan's {plan.base_model.sha256}"
        )
    return folder.resolve()


def _write_site_file(site: Path, sites: Path, data: Path, shared: tuple[Path, Path]) -> None:
    """Write the file of the site of this folder; `shared`: base model and reference pairs."""
    base_model, reference = shared
    fields: dict[str, object] = {
        "name": site.name,
        "data": _seen_from(site, data, sites.parent),
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
            "train_alone": True,
            "test_questions": 1,
        },
    }
    if reference.is_dir():
        fields["reference"] = _seen_from(site, reference, sites.parent)
    site.mkdir(parents=True, exist_ok=True)
    # JSON is YAML; a path with a colon or a hash in it stays what it is.
    (site / "site.yaml").write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def _check_tasks(plan: Plan, source: str) -> None:
    """Check that the plan's data can be made.

    Raises:
        PlanError: the plan does not say how, or names tasks that do not exist.
    """
    if plan.simulation is None:
        raise PlanError(
            f"{source}: simulation: found nothing, expected the data that stands in for the "
            "hospitals'; or give their folder with --data"
        )
    found = data_source(plan.simulation.data, source)
    known = found.tasks
    mistakes = [
        *_deal_mistakes(plan, plan.simulation, source),
        *_fraction_mistakes(plan, plan.simulation, source),
    ]
    if plan.simulation.split is ScoredSplit.VALIDATION and found.validation is None:
        mistakes.append(
            f"{source}: simulation.split: found 'validation', expected 'test': the data source "
            f"{plan.simulation.data!r} has no validation questions"
        )
    mistakes += [
        f"{source}: stage {number} {stage.name!r}, task: found {stage.task!r}, "
        f"expected one of {', '.join(map(repr, known))}"
        for number, stage in enumerate(plan.stages, 1)
        if stage.task not in known
    ]
    if mistakes:
        raise PlanError("\n".join(mistakes))


def _deal_mistakes(plan: Plan, simulation: Simulation, source: str) -> Iterable[str]:
    for task in dict.fromkeys(stage.task for stage in plan.stages):
        sites = len(_holders(plan, task))
        if simulation.deal is not None and len(simulation.deal) != sites:
            yield (
                f"{source}: simulation.deal: found {counted(len(simulation.deal), 'number')}, "
                f"expected {sites}: one for each site of the task {task!r}"
            )


def _fraction_mistakes(plan: Plan, simulation: Simulation, source: str) -> Iterable[str]:
    tasks = dict.fromkeys(stage.task for stage in plan.stages)
    if unknown := [task for task in simulation.train_fractions if task not in tasks]:
        yield (
            f"{source}: simulation.train_fractions: found {listed(unknown)}, expected only tasks "
            f"of the plan: {listed(tasks)}"
        )


def _make_data(plan: Plan, site: str, folder: Path) -> None:
    """Write the data of every task that the site holds and whose folder is not there yet."""
    simulation = plan.simulation
    assert simulation is not None
    source = data_source(simulation.data, plan.name)
    for task in dict.fromkeys(stage.task for stage in plan.stages if site in stage.sites):
        if (folder / task).exists():
            continue
        train, test, facts = _questions(plan, simulation, source, task, site)
        if not train or not test:
            raise DataError(
                f"{folder / task}: found no question for site {site}, expected at least one"
            )
        # First, so that a task that is there has them.
        write_facts(folder.parent, task, facts)
        write_task(folder / task, train, test)


def _make_unseen(plan: Plan, hospital: UnseenHospital, folder: Path) -> None:
    """Write the test questions of a hospital that trains nothing."""
    simulation = plan.simulation
    assert simulation is not None
    make = questions_of(simulation, data_source(simulation.data, plan.name))
    for task in unseen_tasks(plan, hospital):
        if (folder / task).exists():
            continue
        drawn = UnseenDraw(simulation, make, plan.seed, task, hospital.name).questions()
        write_facts(folder.parent, task, [facts_of(hospital.name, task, drawn)])
        write_task(folder / task, drawn.train, drawn.test)


def _holders(plan: Plan, task: str) -> list[str]:
    """Return the sites that share a task's data, in the order of the stages."""
    stages = [stage for stage in plan.stages if stage.task == task]
    return list(dict.fromkeys(site for stage in stages for site in stage.sites))


def _questions(
    plan: Plan, simulation: Simulation, source: DataSource, task: str, site: str
) -> tuple[list[Question], list[Question], list[HospitalTask]]:
    """Return the questions of all hospitals that the site stands for, image groups renumbered."""
    holders = _holders(plan, task)
    deal = simulation.deal or (1,) * len(holders)
    place = holders.index(site)
    differences = simulation.hospitals
    names = (differences and differences.names) or tuple(holders)
    draw = TaskDraw(simulation, questions_of(simulation, source), plan.seed, task, sum(deal), names)
    train: list[Question] = []
    test: list[Question] = []
    facts: list[HospitalTask] = []
    for position in range(sum(deal[:place]), sum(deal[: place + 1])):
        drawn = draw.hospital(position)
        first = 1 + max((question.group for question in (*train, *test)), default=-1)
        train += [replace(question, group=question.group + first) for question in drawn.train]
        test += [replace(question, group=question.group + first) for question in drawn.test]
        if differences is not None:
            facts.append(facts_of(names[position], task, drawn))
    return train, test, facts
