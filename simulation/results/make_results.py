"""Runs the experiments and writes docs/results.md: `python -m simulation.results.make_results`.

What has a result is not run again, so it goes on where it was stopped, and a second call only
writes the document and its pictures anew.
"""

import argparse
import fnmatch
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.durable import DISK, write_file
from common.errors import PlanError, StateError
from common.plan.plan import Plan
from common.printable import counted
from report.significance import RESAMPLES
from simulation.command_line.exit_codes import with_exit_codes
from simulation.experiments.experiments import Experiment
from simulation.experiments.lab import run_all
from simulation.experiments.result_file import ResultsFolder
from simulation.experiments.tuning import rate_of_test
from simulation.results.cells import collect, grid_of, load_experiments
from simulation.results.document import Document, DocumentPaths, document
from simulation.results.measures import tuning_score


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultsOptions:
    """What the user asks for: `only` and `without` are patterns of experiments' names."""

    results: Path
    experiments: Path
    doc: Path
    workers: int
    only: Sequence[str] = ("*",)
    without: Sequence[str] = ()
    draw_only: bool
    holdout: bool = False
    resamples: int = RESAMPLES


def make_results(options: ResultsOptions) -> int:
    """Run what is missing and write the document; return how many results are still missing.

    Raises:
        Refusal: an experiment or a result is wrong, or a run failed.
    """
    experiments = load_experiments(options.experiments)
    if not options.draw_only:
        _run(_chosen(experiments, options), options)
    results = ResultsFolder(options.results)
    collected = [collect(experiment, results) for experiment in experiments]
    paths = DocumentPaths(
        options.results.as_posix(), options.experiments.as_posix(), _images(options.doc).name
    )
    made = document(collected, paths, _discussion(options.doc), options.resamples)
    _write(made, options.doc)
    return sum(part.missing + part.missing_tuning for part in collected)


def _chosen(experiments: Sequence[Experiment], options: ResultsOptions) -> list[Experiment]:
    """Return the experiments that are asked for.

    Raises:
        PlanError: a pattern is that of no experiment.
    """
    names = [one.name for one in experiments]
    for option, patterns in (("--only", options.only), ("--without", options.without)):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                known = ", ".join(repr(name) for name in names)
                raise PlanError(f"{option}: found {pattern!r}, expected one of {known}")

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    return [
        one
        for one in experiments
        if matches(one.name, options.only) and not matches(one.name, options.without)
    ]


def _run(experiments: Iterable[Experiment], options: ResultsOptions) -> None:
    """Run each experiment's grid, then the test at the chosen rates; one after another.

    Plans go seed by seed, so that an interruption leaves every setting with as many seeds.
    """
    with tempfile.TemporaryDirectory(prefix="results-") as scratch:
        for experiment in experiments:
            while grid := _missing_of_grid(experiment, options.results):
                _run_plans(f"{experiment.name}, grid", grid, options, Path(scratch))
            chosen = plans_of_test(experiment, ResultsFolder(options.results), options.holdout)
            _run_plans(experiment.name, chosen, options, Path(scratch))


def _missing_of_grid(experiment: Experiment, folder: Path) -> list[Plan]:
    results = ResultsFolder(folder)
    return [plan for plan in grid_of(experiment, results) if results.get(plan) is None]


def plans_of_test(
    experiment: Experiment, results: ResultsFolder, holdout: bool = False
) -> list[Plan]:
    """Return the plans of the test, or of the holdout, at the rates chosen so far."""
    seeds = experiment.holdout if holdout else experiment.seeds
    rates = {
        one: rate_of_test(experiment, one, lambda plan: tuning_score(results.get(plan)))
        for one in experiment.combinations
    }
    return [one.at(seed, rate) for seed in seeds for one, rate in rates.items() if rate is not None]


def _run_plans(name: str, plans: Iterable[Plan], options: ResultsOptions, scratch: Path) -> None:
    began = time.monotonic()
    by_seed = sorted(plans, key=lambda plan: plan.seed)
    for done, wanted, _ in run_all(by_seed, options.results, scratch, options.workers):
        left = (time.monotonic() - began) / done * (wanted - done)
        print(progress_line(done, wanted, name, left), file=sys.stderr, flush=True)


def progress_line(done: int, wanted: int, name: str, left_s: float) -> str:
    """Say how many runs are done, with an estimate of the time left."""
    minutes = round(left_s / 60)
    text = "less than a minute" if minutes < 1 else f"about {minutes} min"
    if minutes >= 90:
        text = f"about {minutes / 60:.1f} h"
    return f"{done}/{wanted} {name}" + (f", {text} left" if done < wanted else "")


def _images(doc: Path) -> Path:
    return doc.parent / "images"


def _discussion(doc: Path) -> str:
    """Return what was written by hand beside the document, in NAME_discussion.md."""
    file = doc.with_name(f"{doc.stem}_discussion{doc.suffix}")
    try:
        return file.read_text(encoding="utf-8") if file.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"{file}: can't be read ({error})") from None


def _write(made: Document, doc: Path) -> None:
    try:
        _images(doc).mkdir(parents=True, exist_ok=True)
        for picture in made.pictures:
            write_file(_images(doc) / picture.file, picture.content, DISK)
        write_file(doc, made.text.encode(), DISK)
    except OSError as error:
        raise StateError(f"{error.filename or doc}: can't be written ({error.strerror})") from None


def _options(arguments: Sequence[str] | None) -> ResultsOptions:
    parser = argparse.ArgumentParser(
        prog="python -m simulation.results.make_results",
        description="Runs the experiments that have no result, and writes the document; stopped, "
        "it goes on with the same command.",
        epilog="example: python -m simulation.results.make_results --only rules --workers 4",
    )
    add = parser.add_argument
    add("--results", type=Path, default=Path("docs/results"), help="folder of results")
    add("--experiments", type=Path, default=Path("configs/experiments"), help="their files")
    add("--doc", type=Path, default=Path("docs/results.md"), help="the document")
    add("--workers", type=int, default=2, help="runs at a time (default: 2)")
    add(
        "--only",
        metavar="NAME",
        nargs="+",
        default=["*"],
        help="run these, or 'twin_*'; all are drawn",
    )
    add("--without", metavar="NAME", nargs="+", default=[], help="run all but these")
    add("--holdout", action="store_true", help="open the holdout seeds: once, at the end")
    add("--draw-only", action="store_true", help="run nothing")
    options = ResultsOptions(**vars(parser.parse_args(arguments)))
    if options.workers < 1:
        parser.error(f"--workers: found {options.workers}, expected 1 at least")
    return options


@with_exit_codes
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = _options(arguments)
    missing = make_results(options)
    text = f" ({counted(missing, 'result is', 'results are')} missing)" if missing else ""
    print(f"{options.doc}{text}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
