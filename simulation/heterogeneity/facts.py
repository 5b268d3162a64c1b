"""What was drawn for the simulated hospitals: kept beside their data, and told in the report."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from common.durable import DISK, write_file
from common.plan.plan import Plan
from common.plan.simulation import UnseenHospital
from report.heterogeneity.model import HospitalTask, SimulatedHospital
from simulation.heterogeneity.draw import HospitalQuestions
from simulation.heterogeneity.scanner import draw_scanner

#: In the folder of the sites; no site's name begins with an underscore.
_UNSEEN: Final = "_unseen"
_FACTS: Final = "drawn"
_TASKS: TypeAdapter[tuple[HospitalTask, ...]] = TypeAdapter(tuple[HospitalTask, ...])


def unseen_hospitals(plan: Plan) -> tuple[UnseenHospital, ...]:
    """Return the plan's simulated hospitals that train nothing."""
    differences = plan.simulation and plan.simulation.hospitals
    return differences.unseen if differences else ()


def unseen_tasks(plan: Plan, hospital: UnseenHospital) -> tuple[str, ...]:
    """Return the tasks of which the hospital has test questions, in the order of the stages."""
    tasks = dict.fromkeys(stage.task for stage in plan.stages)
    return tuple(task for task in tasks if hospital.tasks is None or task in hospital.tasks)


def unseen_folder(sites: Path, name: str) -> Path:
    """Return the folder of a hospital that trains nothing: none of the federation's sites."""
    return sites / _UNSEEN / name


def facts_of(hospital: str, task: str, drawn: HospitalQuestions) -> HospitalTask:
    """Count what was drawn for a hospital."""
    counted = Counter(question.answer for question in drawn.train or drawn.test)
    return HospitalTask(
        hospital=hospital,
        task=task,
        train=len(drawn.train),
        test=len(drawn.test),
        wrong_labels=drawn.wrong,
        answers=dict(sorted(counted.items(), key=lambda one: (-one[1], one[0]))),
    )


def write_facts(site: Path, task: str, facts: Sequence[HospitalTask]) -> None:
    """Write what a site's hospitals were drawn for a task to the site's folder."""
    if facts:
        file = site / _FACTS / f"{task}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, _TASKS.dump_json(tuple(facts), indent=1) + b"\n", DISK)


def simulated_hospitals(plan: Plan, sites: Path) -> tuple[SimulatedHospital, ...]:
    """Return every hospital of a simulation as it was drawn, those that train nothing last.

    Empty where the plan does not make them differ, or their data were given.
    """
    differences = plan.simulation and plan.simulation.hospitals
    if not differences:
        return ()
    unseen = [one.name for one in differences.unseen]
    folders = [*(sites / name for name in plan.sites)]
    folders += [unseen_folder(sites, name) for name in unseen]
    tasks = dict.fromkeys(stage.task for stage in plan.stages)
    files = [folder / _FACTS / f"{task}.json" for folder in folders for task in tasks]
    found = [
        one for file in files if file.exists() for one in _TASKS.validate_json(file.read_bytes())
    ]
    names = dict.fromkeys(one.hospital for one in found)
    scanners = {name: draw_scanner(plan.seed, name, differences.scanners) for name in names}
    return tuple(
        SimulatedHospital(
            name=name,
            unseen=name in unseen,
            scanner=scanner and scanner.facts(),
            tasks=tuple(one for one in found if one.hospital == name),
        )
        for name, scanner in scanners.items()
    )
