"""`fedmslora simulate`: the runs that a plan asks for, one after another, on one machine."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from client.model.kinds import check_kind
from common.errors import PlanError, StateError
from common.plan.file import load_plan, read_plan
from common.plan.plan import Metric, Plan
from common.printable import counted
from common.process.file_lock import file_lock
from report.answers.examples import read_examples, write_examples
from report.hospitals.json_part import read_hospitals
from report.json_file import read_report
from report.model import RunReport
from report.write import page_is_current, write_document, write_report
from server.run.folder import RunFolder
from simulation.answer_figures import examples_of, figures_of
from simulation.answers_of import answers_of, pictures_of
from simulation.baselines import (
    LOCAL,
    POOLED,
    check_labels,
    check_learning_rates,
    local_plan,
    pooled_plan,
    with_method,
    with_seed,
)
from simulation.engines import Engine, check_engine
from simulation.hospital_scores import SeedRuns, hospitals_report
from simulation.hospitals import REFERENCE, check, check_made_of, claim_given_data, prepare
from simulation.paired_runs import PairedRun, paired_tests
from simulation.planned_run import PlannedRun, carry_out, check_resumable, finished
from simulation.single_site import carry_out_all, curve_runs, local_runs, pooled_run

_LOCK_FILE = ".lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """What the user asks of a simulation; None takes what the plan says."""

    out: Path
    engine: Engine
    methods: Sequence[str] | None
    seeds: int
    data: Path | None
    base_model: Path | None
    quiet: bool
    curve: Sequence[int] | None = None


def simulate(file: Path, options: SimulationOptions) -> list[RunReport]:
    """Run every method and seed, and return their reports, the plan's own method first.

    A finished run is not run again; an interrupted one is resumed. `local` has no report of its
    own, since a hospital alone does not run all stages: its scores are in the hospitals' part.

    Raises:
        Refusal: with one clear sentence; nothing half-written is left.
    """
    check_engine(options.engine)
    plan = load_plan(file)
    labels = _labels(plan, options)
    base_model = check(plan, str(file), options.data, options.base_model)
    seeds = [
        _Seed(with_seed(plan, seed), _root(plan, seed, options))
        for seed in range(plan.seed, plan.seed + options.seeds)
    ]
    federated = [_federated_runs(seed, labels, options) for seed in seeds]
    _check_methods(seeds[0], federated[0], labels, str(file), base_model)
    _check_reference(federated[0], plan, options)
    with _locked(options.out):
        for seed in seeds:
            check_made_of(seed.plan, seed.root / "sites", options.data)
        if options.data is not None:
            claim_given_data(plan, options.out, options.data)
        for run in chain(*federated):
            check_resumable(run)
        for run in chain(*federated):
            if finished(run) is None:
                carry_out(run, options.engine, base_model, options.quiet)
        for seed in seeds if not federated[0] else ():
            prepare(seed.plan, seed.root / "sites", options.data, base_model)
        by_seed = [
            _seed_runs(seed, own, labels, options)
            for seed, own in zip(seeds, federated, strict=True)
        ]
        _tell_points_without_runs(by_seed, _curve(plan, options), quiet=options.quiet)
        single = [run for one in by_seed for run in one.single_site]
        carry_out_all(single, options.engine, base_model, options.quiet)
        for seed, one in zip(seeds, by_seed, strict=True):
            _report_differences(seed, one)
        return _write_report(by_seed, options)


@dataclass(frozen=True, slots=True)
class _Seed:
    """The federation's plan with one seed, and the folder of the runs with this seed."""

    plan: Plan
    root: Path


def _labels(plan: Plan, options: SimulationOptions) -> list[str]:
    """Return each label once, the plan's own method first.

    Raises:
        PlanError: one is unknown, or needs another beside it.
    """
    own = plan.method.label
    compared = plan.simulation.compare if plan.simulation else ()
    labels = [own, *compared] if options.methods is None else options.methods
    where = "the plan's simulation.compare" if options.methods is None else "--methods"
    check_labels(plan, labels, where)
    check_learning_rates(plan)
    if set(labels) == {LOCAL}:
        raise PlanError(
            f"{where}: found {LOCAL!r} alone, expected a method or {POOLED!r} beside it: what it "
            "scores is in the report of that one"
        )
    if {LOCAL, POOLED} & {*labels} and any(one.metric is Metric.AUC for one in plan.stages):
        raise PlanError(
            f"{where}: found {LOCAL!r} or {POOLED!r} with a stage whose metric is 'auc', expected "
            "another metric: what a hospital gains is counted answer by answer"
        )
    if _curve(plan, options) and LOCAL not in labels:
        asked = "the plan's simulation.curve" if options.curve is None else "--curve"
        raise PlanError(
            f"{asked}: found no {LOCAL!r} in {where}, expected it for the curve of the hospitals "
            "alone"
        )
    return sorted(dict.fromkeys(labels), key=lambda name: name != own)


def _check_methods(
    seed: _Seed, runs: Sequence[PlannedRun], labels: Sequence[str], source: str, base_model: Path
) -> None:
    """Check that every method can have the plan's base model and stages, before one of them runs.

    So are the plans of one site each.

    Raises:
        ModelError: a method needs a base model of another kind.
        PlanError: the plan lacks what it needs, such as classes; `source` names the plan.
    """
    plans = {f"the method {run.label!r}": run.plan for run in runs}
    compared = runs[0].plan if runs else seed.plan
    if LOCAL in labels:
        plans |= {f"{LOCAL!r} at {site}": local_plan(compared, site) for site in compared.sites}
    if POOLED in labels:
        plans[repr(POOLED)] = pooled_plan(compared)
    for what, plan in plans.items():
        check_kind(plan, base_model)
        # As the run itself will read it.
        read_plan(plan.canonical().encode(), plan.digest, f"{source} with {what}")


def _check_reference(runs: Sequence[PlannedRun], plan: Plan, options: SimulationOptions) -> None:
    """Check that there will be reference pairs for every method that trains on them.

    Raises:
        PlanError: there will be none.
    """
    if options.data is not None:
        there, lack = (options.data / REFERENCE).is_dir(), f"folder {options.data / REFERENCE}"
    else:
        there, lack = bool(plan.simulation and plan.simulation.reference), "simulation.reference"
    for run in runs:
        if run.plan.method.reference_pairs and not there:
            raise PlanError(
                f"the method {run.label!r}: found no {lack}, expected it: the method trains on "
                "reference pairs, too"
            )


def _curve(plan: Plan, options: SimulationOptions) -> list[int]:
    """Return the numbers of questions of the curve, from the fewest."""
    planned = plan.simulation.curve if plan.simulation else ()
    return sorted(set(planned if options.curve is None else options.curve))


def _tell_points_without_runs(
    seeds: Sequence[SeedRuns], curve: Sequence[int], *, quiet: bool
) -> None:
    """Print at which numbers of questions the curve has no hospital, since none has so many."""
    there = {run.first for one in seeds for run in one.curve}
    for number in curve:
        if number not in there and not quiet:
            print(f"  curve: no hospital has more than {counted(number, 'question')} of a task")


def _root(plan: Plan, seed: int, options: SimulationOptions) -> Path:
    return options.out if seed == plan.seed else options.out / "seeds" / str(seed)


def _federated_runs(
    seed: _Seed, labels: Sequence[str], options: SimulationOptions
) -> list[PlannedRun]:
    """List the runs with all sites: the plan's own method in the root itself, others below it."""
    own, root = seed.plan.method.label, seed.root
    return [
        PlannedRun(
            label=label,
            plan=with_method(seed.plan, label),
            folder=RunFolder(root if label == own else root / "methods" / label),
            sites=root / "sites",
            data=options.data,
        )
        for label in labels
        if label not in (LOCAL, POOLED)
    ]


def _seed_runs(
    seed: _Seed,
    federated: Sequence[PlannedRun],
    labels: Sequence[str],
    options: SimulationOptions,
) -> SeedRuns:
    """Return the runs of a seed; those with one site are on the sites' data, which are there.

    They have the method that they are compared with: the first that runs with all sites.
    """
    own = federated[0] if federated else PlannedRun("", seed.plan, RunFolder(seed.root), seed.root)
    plan, root, alone = own.plan, own.folder.root, LOCAL in labels

    def task_folder(site: str, task: str) -> Path:
        data = options.data / site if options.data else seed.root / "sites" / site / "data"
        return data / task

    # All that is one site's is made of the federation's data, but for the reference pairs.
    reference = (options.data or seed.root / "sites") / REFERENCE
    local = local_runs(plan, root, task_folder) if alone else []
    curve = curve_runs(plan, root, task_folder, _curve(plan, options)) if alone else []
    pooled = pooled_run(plan, root, task_folder) if POOLED in labels else None
    return SeedRuns(
        plan=plan,
        task_folder=task_folder,
        federated=federated,
        local=[replace(run, reference=reference) for run in local],
        pooled=pooled and replace(pooled, reference=reference),
        curve=[replace(run, reference=reference) for run in curve],
    )


def _report_differences(seed: _Seed, runs: SeedRuns) -> None:
    """Add to the reports how the hospitals differ, and the scores at those that trained nothing."""
    if seed.plan.simulation and seed.plan.simulation.hospitals:
        from simulation.unseen import report_differences

        pooled = [] if runs.pooled is None else [runs.pooled]
        for run in (*runs.federated, *pooled):
            # Of a finished run, too: it may have been interrupted just here.
            report_differences(run, seed.plan, seed.root / "sites")


def _write_report(seeds: Sequence[SeedRuns], options: SimulationOptions) -> list[RunReport]:
    """Write the page of every finished run and the report of all, and return their reports."""
    pooled = [[] if one.pooled is None else [one.pooled] for one in seeds]
    runs = [run for one, more in zip(seeds, pooled, strict=True) for run in (*one.federated, *more)]
    read = [replace(_write_page(run, options.out), method=run.label) for run in runs]
    reports = _with_single_task_scores(runs, read)
    if any(one.single_site for one in seeds):
        hospitals = hospitals_report(seeds)
    else:
        # A plan may have its sites train alone by an order.
        hospitals = read_hospitals(runs[0].folder.root)
    several = hospitals or len(reports) > 1 or runs[0].folder.root != options.out
    if several or not page_is_current(options.out):
        paired = [
            PairedRun(
                report,
                partial(answers_of, run.plan, run.folder, run.sites),
                partial(pictures_of, run.plan, run.sites),
            )
            for run, report in zip(runs, reports, strict=True)
        ]
        # Data that is given stays the same; only what is made follows the seed.
        tests = paired_tests(paired, same_questions=options.data is not None)
        examples = read_examples(runs[0].folder.root)
        write_examples(options.out, examples)
        write_report(options.out, reports, tests, hospitals, examples)
    return reports


def _write_page(run: PlannedRun, out: Path) -> RunReport:
    """Add what a run's answers show to its report, and write its page if that is not there yet.

    That of the folder `out` is written with all runs.
    """
    folder = run.folder.root
    report, hospitals = read_report(folder)[0], read_hospitals(folder)
    if report.answers is None:
        report = replace(report, answers=figures_of(run))
        write_examples(folder, examples_of(run))
        write_document(folder, [report], (), hospitals)
    if folder != out and not page_is_current(folder):
        write_report(folder, [report], (), hospitals, read_examples(folder))
    return report


def _with_single_task_scores(
    runs: Sequence[PlannedRun], reports: Sequence[RunReport]
) -> list[RunReport]:
    """Add each task's score by a model of its own, where a run with the same seed has one."""
    alone = {
        report.seed: tuple(report.scores[task][task] for task in range(len(report.stages)))
        for run, report in zip(runs, reports, strict=True)
        if run.plan.method.independent_stages and run.label != POOLED
    }
    return [replace(report, single_task=alone.get(report.seed)) for report in reports]


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Lock the folder for this process; a new folder that stays empty is removed.

    Raises:
        StateError: another process has the lock, or the folder can't be made or written.
    """
    new = not folder.exists()
    busy = StateError(f"{folder}: found another fedmslora running in this folder, expected none")
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = file_lock(folder / _LOCK_FILE, patience_s=0, error=lambda: busy)
            stack.enter_context(lock)
        except OSError as error:
            raise StateError(
                f"{folder}: can't be used as the run's folder ({error.strerror})"
            ) from None
        try:
            yield
        except BrokenPipeError:
            # Nobody reads any more what is printed: no fault of the folder's.
            raise
        except OSError as error:
            # A full disk, most likely, which may show at any file.
            raise StateError(
                f"{error.filename or folder}: can't be used ({error.strerror or error})"
            ) from error
        finally:
            if new and [path.name for path in folder.iterdir()] == [_LOCK_FILE]:
                (folder / _LOCK_FILE).unlink()
                folder.rmdir()
