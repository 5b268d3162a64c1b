"""Runs the experiments and writes docs/results.md: `python -m simulation.results.make_results`.

What has a result is not run again, so it goes on where it was stopped, and a second call only
writes the document and its pictures anew.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.durable import DISK, write_file
from common.errors import PlanError, Refusal, StateError
from simulation.experiments.experiments import Experiment
from simulation.experiments.lab import Results, run_all
from simulation.results.cells import collect, load_experiments
from simulation.results.document import Document, Origin, document
from simulation.results.significance import RESAMPLES


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user asks for; `only` None runs all experiments."""

    results: Path
    experiments: Path
    doc: Path
    workers: int
    only: str | None
    draw_only: bool
    resamples: int = RESAMPLES


def make_results(wish: Wish) -> int:
    """Run what is missing, then write; returns how many results are still missing.

    Raises:
        Refusal: an experiment or a result is wrong, or a run failed.
    """
    experiments = load_experiments(wish.experiments)
    if not wish.draw_only:
        _run(_chosen(experiments, wish), wish)
    results = Results(wish.results)
    collected = [collect(experiment, results) for experiment in experiments]
    _write(document(collected, _origin(wish), _discussion(wish.doc), wish.resamples), wish.doc)
    return sum(part.missing for part in collected)


def _chosen(experiments: Sequence[Experiment], wish: Wish) -> list[Experiment]:
    chosen = [one for one in experiments if wish.only in (None, one.name)]
    if not chosen:
        known = ", ".join(repr(one.name) for one in experiments)
        raise PlanError(f"--only: found {wish.only!r}, expected one of {known}")
    return chosen


def _run(experiments: Iterable[Experiment], wish: Wish) -> None:
    plans = [variant.plan for experiment in experiments for variant in experiment.variants]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="results-") as scratch:
        for done, wanted, name in run_all(plans, wish.results, Path(scratch), wish.workers):
            left = (time.monotonic() - began) / done * (wanted - done)
            print(progress_line(done, wanted, name, left), file=sys.stderr, flush=True)


def progress_line(done: int, wanted: int, name: str, left_s: float) -> str:
    """How far the runs are; the time left is a guess from those that are done."""
    minutes = round(left_s / 60)
    told = "less than a minute" if minutes < 1 else f"about {minutes} min"
    if minutes >= 90:
        told = f"about {minutes / 60:.1f} h"
    return f"{done}/{wanted} {name}" + (f", {told} left" if done < wanted else "")


def _origin(wish: Wish) -> Origin:
    return Origin(wish.results.as_posix(), wish.experiments.as_posix(), _images(wish.doc).name)


def _images(doc: Path) -> Path:
    return doc.parent / "images"


def _discussion(doc: Path) -> str:
    """What was written by hand, beside the document: NAME_discussion.md."""
    file = doc.with_name(f"{doc.stem}_discussion{doc.suffix}")
    try:
        return file.read_text(encoding="utf-8") if file.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"{file}: can't be read ({error})") from None


def _write(made: Document, doc: Path) -> None:
    try:
        _images(doc).mkdir(parents=True, exist_ok=True)
        for picture in made.pictures:
            write_file(_images(doc) / picture.file, picture.png, DISK)
        write_file(doc, made.text.encode(), DISK)
    except OSError as error:
        raise StateError(f"{error.filename or doc}: can't be written ({error.strerror})") from None


def _wish(arguments: Sequence[str] | None) -> Wish:
    parser = argparse.ArgumentParser(
        prog="python -m simulation.results.make_results",
        description="Runs the experiments that have no result, and writes the document.",
        epilog="example: python -m simulation.results.make_results --only rules --workers 4",
    )
    add = parser.add_argument
    add("--results", type=Path, default=Path("docs/results"), help="folder of results")
    add("--experiments", type=Path, default=Path("configs/experiments"), help="their files")
    add("--doc", type=Path, default=Path("docs/results.md"), help="the document")
    add("--workers", type=int, default=2, help="runs at a time (default: 2)")
    add("--only", metavar="NAME", help="run this experiment alone; all are drawn")
    add("--draw-only", action="store_true", help="run nothing")
    wish = Wish(**vars(parser.parse_args(arguments)))
    if wish.workers < 1:
        parser.error(f"--workers: found {wish.workers}, expected 1 at least")
    return wish


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 2 for a mistake that the user can mend, 130 when interrupted."""
    wish = _wish(arguments)
    try:
        missing = make_results(wish)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    told = f" ({missing} results are missing)" if missing else ""
    print(f"{wish.doc}{told}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
