"""Plans of three stages, experiments over them, and results that nobody ran."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.plan.file import parse_plan
from common.plan.plan import Plan
from simulation.experiments.experiments import Experiment, load_experiment
from simulation.experiments.result_file import ExperimentResult, ResultsFolder, write_result
from simulation.results.cells import Cell, Collected, collect

STAGE: dict[str, Any] = {
    "name": "one", "modality": "pathology", "task": "pathvqa", "sites": ["a"], "rounds": 2,
    "local_epochs": 1, "learning_rate": 1e-2, "batch_size": 4, "metric": "f1",
}  # fmt: skip
PLAN: dict[str, Any] = {
    "name": "made",
    "seed": 0,
    "base_model": {"name": "tiny", "sha256": "0" * 64},
    "method": {
        "name": "mslora_cr", "rank": 2, "alpha": 2, "active": "all", "hold": "fold",
        "start": "fresh", "contrast": None,
    },
    "aggregation": "svd",
    "wire": "fp32",
    "evaluation": {"earlier": "none", "zero_shot": False},
    "stages": [
        STAGE,
        {**STAGE, "name": "two", "modality": "radiology", "task": "CXP"},
        {**STAGE, "name": "three", "modality": "pathology", "task": "PCAM"},
    ],
    "simulation": {"data": "phantoms", "train_fraction": 1.0},
}  # fmt: skip
SEQUENTIAL = {"name": "sequential", "rank": 2, "alpha": 2}
JOINT = {"name": "joint", "rank": 2, "alpha": 2}
TASKS = 3
#: Draws of a bootstrap: few, as its interval is not what is tested.
DRAWS = 200
Marks = Sequence[Sequence[float]]


def plan(**changes: Any) -> Plan:
    """The plan with other values in these fields."""
    return parse_plan({**PLAN, **changes}, "made")


def sequential(seed: int = 0) -> Plan:
    """One adapter through all stages, scored again at the end."""
    again = {"earlier": "last", "zero_shot": False}
    return plan(seed=seed, method=SEQUENTIAL, evaluation=again)


def result(
    of: Plan, learned: Marks, final: Marks | None = None, **changes: Any
) -> ExperimentResult:
    """The result with these measures of the answers to each task."""
    last = [None] * (len(learned) - 1)
    fields: dict[str, Any] = {
        "plan": of,
        "code": "0",
        "learned": tuple(mean(own) for own in learned),
        "final": tuple(map(mean, final)) if final else (*last, mean(learned[-1])),
        "answers": tuple(map(tuple, learned)),
        "final_answers": tuple(map(tuple, final)) if final else (),
        "steps": 10,
        "seconds": 2.0,
        "bytes_up": 1000,
        "bytes_down": 2000,
        "errors": (0.0, 0.1, 0.2),
        "pictures": tuple(tuple(range(len(own))) for own in learned),
    }
    return ExperimentResult(**{**fields, **changes})


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def even(score: float, count: int = 4) -> Marks:
    """Answers to every task, all of this measure."""
    return [[score] * count] * TASKS


def cell(name: str, scores: Mapping[int, float], **changes: Any) -> Cell:
    """A cell whose tasks have one score in each seed."""
    of = {seed: result(plan(seed=seed, **changes), even(score)) for seed, score in scores.items()}
    first = next(iter(of.values())).plan
    return cell_of(first, of, variant=name)


def cell_of(first: Plan, of: Mapping[int, ExperimentResult], **settings: str) -> Cell:
    """A cell with these results, by seed."""
    return Cell(settings=settings, plan=first, seeds=tuple(of), results=of)


def write_experiment(folder: Path, name: str, axes: Mapping[str, Any], **changes: Any) -> Path:
    """An experiment beside its plan."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "made.yaml").write_text(yaml.safe_dump(PLAN), encoding="utf-8")
    file = folder / f"{name}.yaml"
    document = {"question": "Why?", "plan": "made.yaml", "seeds": 3, "axes": axes, **changes}
    file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return file


@dataclass(frozen=True, slots=True)
class Variant:
    """A combination of an experiment with one of its seeds, at the plan's own learning rates."""

    settings: Mapping[str, str]
    seed: int
    plan: Plan


def variants(experiment: Experiment) -> list[Variant]:
    """Every combination and seed of the test."""
    return [
        Variant(one.settings, seed, one.at(seed))
        for one in experiment.combinations
        for seed in experiment.seeds
    ]


def collected(
    file: Path, results: Path, score: Mapping[str, Sequence[float]], final: float | None = None
) -> Collected:
    """The experiment with results: by the last axis' setting a score for each seed, or none."""
    experiment = load_experiment(file)
    for variant in variants(experiment):
        scores = score.get([*variant.settings.values()][-1], ())
        if variant.seed < len(scores):
            learned = even(scores[variant.seed])
            left = None if final is None else [*even(final)[:-1], learned[-1]]
            write_result(results, result(variant.plan, learned, left))
    return collect(experiment, ResultsFolder(results))


def of_scores(scores: Sequence[float], **changes: Any) -> Cell:
    """A cell with a score for each seed, from 0."""
    return cell("x", dict(enumerate(scores)), **changes)
