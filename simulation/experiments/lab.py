"""Runs the plans of experiments, several at a time, and writes the result of each.

A run's result is one small JSON file named by its plan's digest. A plan that has a result is
not run again. A result is found by its plan as today's code reads it, so that old results
stay valid when plans get a new field with a default.
"""

import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.code_digest import code_digest
from common.durable import DISK, write_file
from common.errors import DataError, PlanError
from common.identity import sha256
from common.metrics import AnsweredQuestion, AnswerKind, judge
from common.plan.file import parse_plan
from common.plan.plan import Earlier, Metric, Plan
from common.plan.simulation import NOT_OF_DATA
from common.signing import SigningKey
from report.model import RunReport
from server.run.folder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentResult:
    """The result of one run.

    Attributes:
        plan: its plan.
        code: digest of the code that ran.
        learned: each task's measure when it was learned, fractions.
        final: the same after the last stage; None where it was not scored.
        answers: per task the measure of each answer when learned, and
        final_answers: after the last stage; empty where not scored.
        steps: optimizer steps of all stages and sites.
        seconds: the run's time, for orientation.
        bytes_up, bytes_down: on the wire, of all sites.
        errors: relative aggregation error of each release.
    """

    plan: Plan
    code: str
    learned: tuple[float, ...]
    final: tuple[float | None, ...]
    answers: tuple[tuple[float, ...], ...]
    final_answers: tuple[tuple[float, ...], ...]
    steps: int
    seconds: float
    bytes_up: int
    bytes_down: int
    errors: tuple[float | None, ...]


class ResultsFolder:
    """The results of a folder, by their plans."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_plan: dict[str, ExperimentResult] = {}
        for file in sorted(folder.glob("*.json")):
            result = read_result(file)
            self._by_plan[result.plan.digest] = result

    def get(self, plan: Plan) -> ExperimentResult | None:
        """Return the plan's result, if it was run."""
        return self._by_plan.get(plan.digest)


def read_result(file: Path) -> ExperimentResult:
    """Read what `write_result` wrote.

    Raises:
        DataError: it can't be read as one.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        plan = parse_plan(document["plan"], str(file))
        fields = {name: document[name] for name in document if name != "plan"}
        fields["answers"] = tuple(_decoded(packed) for packed in fields["answers"])
        fields["final_answers"] = tuple(_decoded(packed) for packed in fields["final_answers"])
        for name in ("learned", "final", "errors"):
            fields[name] = tuple(fields[name])
        return ExperimentResult(plan=plan, **fields)
    except (
        OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, PlanError
    ) as error:  # fmt: skip
        raise DataError(f"{file}: can't be read as a result ({error})") from None


def write_result(folder: Path, result: ExperimentResult) -> None:
    """Write a result, whole or not at all."""
    document = {
        name: getattr(result, name) for name in ExperimentResult.__slots__ if name != "plan"
    }
    document["answers"] = [_encoded(values) for values in result.answers]
    document["final_answers"] = [_encoded(values) for values in result.final_answers]
    document["plan"] = result.plan.model_dump(mode="json")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, ensure_ascii=False, sort_keys=True) + "\n"
    write_file(folder / f"{result.plan.digest[:16]}.json", text.encode(), DISK)


def run_all(
    plans: Iterable[Plan], results: Path, scratch: Path, workers: int
) -> Iterator[tuple[int, int, str]]:
    """Run what has no result yet; yield (done, of how many, the plan's name) after each.

    Plans with the same data run in one process, one after another, so that pictures are drawn and
    encoded once.

    Raises:
        PlanError: a plan's measure is no mean over answers, before anything is run.
    """
    known = ResultsFolder(results)
    missing = {plan.digest: plan for plan in plans if known.get(plan) is None}
    groups: dict[str, list[Plan]] = {}
    for plan in missing.values():
        for stage in plan.stages:
            measure(AnsweredQuestion("", "", "", AnswerKind.OPEN), stage.metric)
        groups.setdefault(_data_of(plan), []).append(plan)
    done = 0
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, max_tasks_per_child=1) as pool:
        # Small chunks, so that no process is left with a long group at the end.
        chunks = [group[i : i + 12] for group in groups.values() for i in range(0, len(group), 12)]
        running = [pool.submit(_run_group, chunk, results, scratch) for chunk in chunks]
        try:
            for finished in as_completed(running):
                for name in finished.result():
                    done += 1
                    yield done, len(missing), name
        finally:
            # After a failure the pool would still run everything that is queued, for hours.
            pool.shutdown(cancel_futures=True)


def _run_group(plans: Sequence[Plan], results: Path, scratch: Path) -> list[str]:
    import torch

    from simulation.engines import QUIET

    os.environ.update(QUIET)
    torch.set_num_threads(1)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as own:
        for plan in plans:
            write_result(results, _run(plan, Path(own)))
    return [plan.name for plan in plans]


def _run(plan: Plan, scratch: Path) -> ExperimentResult:
    """Run the plan with the apps in this process."""
    from simulation.hospitals import check, prepare

    folder, sites = RunFolder(scratch / "run"), scratch / "sites"
    base_model = check(plan, plan.name, None, None)
    folder.root.mkdir()
    prepare(plan, sites, None, base_model)
    SigningKey.from_seed(bytes.fromhex(sha256(plan.digest.encode()))).save(folder.key)
    began = time.monotonic()
    report = _run_apps(plan, folder, sites)
    result = _result(plan, report, folder, sites, time.monotonic() - began)
    shutil.rmtree(folder.root)
    for store in sites.glob("*/store"):
        shutil.rmtree(store)
    return result


def _run_apps(plan: Plan, folder: RunFolder, sites: Path) -> RunReport:
    from client.app import app as client
    from server.app import SiteConnection, run
    from server.network import SIMULATED
    from simulation.inprocess import grid_of

    files = [sites / site / "site.yaml" for site in plan.sites]
    grid = grid_of(client, [{"site-file": str(file)} for file in files])
    # Sites answer within the call, so there is nothing to wait for.
    return run(plan, folder, grid, SiteConnection(replace(SIMULATED, poll_s=0.0)))


def _result(
    plan: Plan, report: RunReport, folder: RunFolder, sites: Path, seconds: float
) -> ExperimentResult:
    from contextlib import closing

    from server.run.journal import Journal
    from simulation.answers_of import answers_of

    tasks, last = range(len(plan.stages)), len(plan.stages) - 1
    again = plan.evaluation.earlier is not Earlier.NONE
    with closing(Journal(folder, plan)) as journal:
        steps = sum(update.steps for task in tasks for _, update in journal.updates(task))

    learned = [score for task in tasks if (score := report.scores[task][task]) is not None]
    assert len(learned) == len(tasks), "a task is scored when it is learned"

    def measured(task: int, after: int) -> tuple[float, ...]:
        answers = answers_of(plan, folder, sites, task, after)
        return tuple(measure(answer, plan.stages[task].metric) for answer in answers)

    return ExperimentResult(
        plan=plan,
        code=code_digest(),
        learned=tuple(learned),
        final=tuple(report.scores[last]),
        answers=tuple(measured(task, task) for task in tasks),
        final_answers=tuple(measured(task, last) for task in tasks) if again else (),
        steps=steps,
        seconds=round(seconds, 1),
        bytes_up=sum(site.bytes_up for site in report.cost.sites.values()),
        bytes_down=sum(site.bytes_down for site in report.cost.sites.values()),
        errors=report.aggregation_error,
    )


def measure(answer: AnsweredQuestion, metric: Metric) -> float:
    """Return one answer's contribution to the mean that is a task's measure; a fraction.

    Raises:
        PlanError: the measure is no mean over answers.
    """
    judged = judge(answer)
    match metric:
        case Metric.ACCURACY:
            return float(judged.exact)
        case Metric.F1:
            return judged.overlap.f1
        case Metric.RECALL:
            return judged.overlap.recall
        case Metric.BLEU:
            return judged.bleu.all
        case Metric.BALANCED_ACCURACY:
            raise PlanError(
                f"metric: found {str(metric)!r}, expected one that is a mean over answers"
            )


def _data_of(plan: Plan) -> str:
    """Return a key that is equal where the sites' data are the same."""
    made = plan.simulation and plan.simulation.model_dump(mode="json", exclude=set(NOT_OF_DATA))
    return json.dumps([plan.seed, made, [[stage.task, stage.sites] for stage in plan.stages]])


def _encoded(values: Sequence[float]) -> Mapping[str, Any]:
    """Encode few distinct values as a letter for each answer: short, and exact."""
    distinct = sorted(set(values))
    letters = {value: chr(ord("0") + place) for place, value in enumerate(distinct)}
    return {"values": distinct, "answers": "".join(letters[value] for value in values)}


def _decoded(packed: Mapping[str, Any]) -> tuple[float, ...]:
    """Decode what `_encoded` made."""
    return tuple(packed["values"][ord(letter) - ord("0")] for letter in packed["answers"])
