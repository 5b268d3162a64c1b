"""The page's tables again, from the raw result files, with other code.

Nothing of simulation/results computes here what is expected: files are read as plain JSON, means
are numpy's or sums, tests are scipy's or written out. Only which plan belongs to which row is
asked of the experiment's file.
"""

import json
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulation.experiments.experiments import Experiment, load_experiment
from simulation.experiments.result_file import write_result
from simulation.experiments.tuning import tuning_plans
from simulation.results.make_results import ResultsOptions, make_results
from tests.unit.made_results import SEQUENTIAL, result, write_experiment

#: Without types, and only the references here.
stats: Any = import_module("scipy.stats")
ROOT = Path(__file__).resolve().parents[4]
RNG = np.random.default_rng(11)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of one experiment with a grid, of results that nobody ran."""
    folder = tmp_path_factory.mktemp("page")
    axes: Any = {"v": {"own": {}, "other": {"method.active": "none"},
                 "one": {"method": SEQUENTIAL, "evaluation.earlier": "last"}}}  # fmt: skip
    file = write_experiment(
        folder / "e", "x", axes, seeds=4, tuning={"rates": [0.5, 1, 2], "seeds": [50, 51]},
        references=[{"settings": {"v": "other"}}],
    )  # fmt: skip
    experiment = load_experiment(file)
    for one in experiment.combinations:
        plans = [plan for _, plan in tuning_plans(experiment, one)]
        for plan in [*plans, *(one.at(seed, rate) for seed in range(4) for rate in (0.5, 1, 2))]:
            marks = RNG.choice([0.0, 0.25, 1.0], (3, 12)).tolist()
            again = RNG.choice([0.0, 1.0], (3, 12)).tolist()
            final = [*again[:2], marks[2]] if plan.method.name == "sequential" else None
            shown = tuple(tuple(np.repeat(range(4), 3).tolist()) for _ in range(3))
            write_result(folder / "r", result(plan, marks, final, pictures=shown))
    options = ResultsOptions(
        results=folder / "r", experiments=folder / "e", doc=folder / "page.md", workers=1,
        draw_only=True, resamples=200,
    )  # fmt: skip
    make_results(options)
    return folder


def tables(page: Path) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Every table of the page, with the experiment that it is of, its heads and its rows."""
    experiment, rows = "", list[list[str]]()
    for line in [*page.read_text(encoding="utf-8").splitlines(), ""]:
        if found := re.search(r"What each setting changes is in `\S*?(\w+)\.yaml`", line):
            experiment = found[1]
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif rows:
            yield experiment, rows[0], rows[2:]
            rows = []


def raw(folder: Path, digest: str) -> dict[str, Any] | None:
    """A result as plain JSON, its answers decoded."""
    file = folder / f"{digest[:16]}.json"
    if not file.exists():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    for field in ("answers", "final_answers"):
        found[field] = [
            [one["values"][ord(letter) - 48] for letter in one["answers"]] for one in found[field]
        ]
    return found


def learned(run: Mapping[str, Any]) -> dict[str, float]:
    """Each task's score when learned, as the mean over its answers."""
    return means(run, run["answers"], run["learned"])


def final(run: Mapping[str, Any]) -> dict[str, float]:
    """Each task's score at the end; what was not scored again has not changed."""
    return means(run, run["final_answers"], run["final"]) if run["final_answers"] else learned(run)


def means(run: Mapping[str, Any], answers: Any, told: Any) -> dict[str, float]:
    """The means over answers, near which must be what sites tell, a token measure rounded."""
    found: dict[str, float] = {}
    for stage, own, rounded in zip(run["plan"]["stages"], answers, told, strict=True):
        exact, sites = sum(own) / len(own), len(stage["sites"])
        # client/orders/leaving_figures.py: by at most half a question a site.
        tokens = stage["metric"] in ("f1", "recall", "bleu", "bleu_1")
        assert abs(rounded - exact) <= 0.5 * sites / len(own) * tokens + 1e-9
        found[stage["name"]] = exact
    return found


def reported(run: Mapping[str, Any]) -> float:
    """The mean over tasks at the end that the run reported, by which its rate is chosen."""
    scores: list[float] = run["final" if run["final_answers"] else "learned"]
    return sum(scores) / len(scores)


def best_rate(experiment: Experiment, number: int, folder: Path) -> float | None:
    """The factor with the best mean at the end over tasks and tuning seeds."""
    one = experiment.combinations[number]
    scores: dict[float, list[float]] = {}
    for rate, plan in tuning_plans(experiment, one):
        run = raw(folder, plan.digest)
        score = np.nan if run is None else reported(run)
        scores.setdefault(rate, []).append(score)
    means = [float(np.mean(own)) for own in scores.values()]
    if experiment.tuning is None or not means:
        return 1.0
    rates = [*scores]
    first = experiment.tuning.first or rates
    low, high = rates.index(first[0]), rates.index(first[-1])
    # Outward from the first ones, until the best is not the outermost.
    while not np.isnan(means[low : high + 1]).any():
        # The lowest of those that are equal to twelve digits.
        top = max(means[low : high + 1]) - 5e-13
        best = next(at for at in range(low, high + 1) if means[at] >= top)
        if low < best < high or (best in (0, low) and low == 0) or best == len(rates) - 1:
            return rates[best]
        low, high = low - (best == low), high + (best == high and best != low)
    return None


def runs_of(experiment: Experiment, folder: Path) -> dict[str, dict[int, Mapping[str, Any]]]:
    """The results of the test by the combination's settings and seed."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for number, one in enumerate(experiment.combinations):
        rate = best_rate(experiment, number, folder)
        runs = {s: raw(folder, one.at(s, rate).digest) for s in experiment.seeds} if rate else {}
        key = " ".join(one.settings.values())
        found[key] = {seed: run for seed, run in runs.items() if run is not None}
    return found


def two_way_p(table: Any) -> tuple[float, float, float]:
    """p and interval over rows and columns, by sums of squares."""
    seeds, tasks = table.shape
    total = np.sum((table - table.mean()) ** 2)
    rows = tasks * np.sum((table.mean(1) - table.mean()) ** 2)
    columns = seeds * np.sum((table.mean(0) - table.mean()) ** 2)
    a, b = rows / (seeds - 1), columns / (tasks - 1)
    c = (total - rows - columns) / ((seeds - 1) * (tasks - 1))
    if a + b - c >= max(a, b):
        square = a + b - c
        df = square**2 / (a**2 / (seeds - 1) + b**2 / (tasks - 1)
                          + c**2 / ((seeds - 1) * (tasks - 1)))  # fmt: skip
    else:
        square, df = max(a, b), (seeds - 1 if a >= b else tasks - 1)
    error = np.sqrt(square / table.size)
    half = stats.t.ppf(0.975, df) * error
    return 2 * stats.t.sf(abs(table.mean()) / error, df), table.mean() - half, table.mean() + half


def told(value: float) -> str:
    """A percentage or difference to two digits, without the sign of a gain."""
    return f"{100 * value:.2f}".replace("-0.00", "0.00")


def check_page(page: Path, experiments: Path, results: Path) -> int:
    """Check every row of scores and of tests that is about known runs; return how many."""
    checked = 0
    for name, heads, rows in tables(page):
        if heads[0] not in ("setting", "compared") or not name:
            continue
        experiment = load_experiment(experiments / f"{name}.yaml")
        known = runs_of(experiment, results)
        for row in rows:
            if heads[1] == "rate":
                checked += check_scores(row, known)
            elif heads[1] == "n":
                checked += check_test(row, experiment, known)
    return checked


def check_scores(row: list[str], known: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> int:
    runs = [own for key, own in known.items() if set(row[0].split(", ")) <= {key, *key.split()}]
    if len(runs) != 1 or not runs[0] or "-" in (row[2], row[3]):
        return 0
    for column, score in ((2, learned), (3, final)):
        means = [float(np.mean([*score(run).values()])) for run in runs[0].values()]
        assert row[column].split(" ± ")[0] == told(float(np.mean(means))), row
        if len(means) > 1:
            assert row[column].split(" ± ")[1] == told(float(np.std(means, ddof=1))), row
    assert row[5] == str(len(runs[0])), row
    return 1


def check_test(
    row: list[str], experiment: Experiment, known: Mapping[str, Mapping[int, Mapping[str, Any]]]
) -> int:
    first_name, _, second_name = row[0].partition(" less ")
    if len(experiment.axes) > 1 or first_name not in known:
        return 0
    ends = second_name.endswith(", at the end")
    first, second = known[first_name], known[second_name.removesuffix(", at the end")]
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < 2:
        return 0
    score = final if ends else learned
    tasks = sorted(score(first[seeds[0]]))
    table = np.array([[score(first[s])[t] - score(second[s])[t] for t in tasks] for s in seeds])
    p, low, high = two_way_p(table)
    assert row[1:4] == [
        str(len(seeds)), signed(table.mean()), f"{signed(low)} to {signed(high)}",
    ], row  # fmt: skip
    for text, value in (
        (row[4].split(" ")[0], p),
        (row[5], stats.ttest_1samp(table.mean(1), 0).pvalue),
        (row[6], stats.ttest_1samp(table.mean(0), 0).pvalue),
    ):
        assert text == ("<0.0001" if value < 1e-4 else f"{value:.3g}"), row
    return 1


def signed(value: float) -> str:
    return "0.00" if told(value) == "0.00" else f"{100 * value:+.2f}"


def test_a_page_of_made_results_is_what_its_files_say(made: Path):
    # Three rows of scores; three of tests, of which one is at the end.
    assert check_page(made / "page.md", made / "e", made / "r") == 6


def test_the_projects_page_is_what_its_files_say():
    results = ROOT / "docs" / "results"
    checked = check_page(ROOT / "docs" / "results.md", ROOT / "configs" / "experiments", results)
    # Those of the grid alone make no table.
    tested = [
        one for one in results.glob("*.json") if '"split": "validation"' not in one.read_text()
    ]
    assert checked > 0 or not tested


def test_the_projects_results_are_all_asked_for():
    asked: set[str] = set()
    for file in (ROOT / "configs" / "experiments").glob("*.yaml"):
        if "stages:" in file.read_text(encoding="utf-8"):
            continue
        experiment = load_experiment(file)
        rates = experiment.tuning.rates if experiment.tuning else [1.0]
        for one in experiment.combinations:
            asked |= {plan.digest[:16] for _, plan in tuning_plans(experiment, one)}
            asked |= {
                one.at(seed, rate).digest[:16]
                for seed in (*experiment.seeds, *experiment.holdout)
                for rate in {*rates, 1.0}
            }
    there = {file.stem for file in (ROOT / "docs" / "results").glob("*.json")}
    assert there <= asked, "a result that no experiment asks for"
