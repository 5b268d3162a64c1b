"""docs/results.md: the set-up, how to read it, and a part for each experiment."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, groupby

from common.plan.plan import BatchScope, Plan
from report.canvas import Chart
from report.significance import RESAMPLES
from simulation.results.cells import Cell, Collected
from simulation.results.section import Section, section
from simulation.results.words import listed, table

#: Titles of experiments, by the first word of their names.
_TITLES: Mapping[str, str] = {
    "methods": "The methods",
    "composition": "The earlier adapters that a stage is trained on",
    "rules": "Aggregation rules and sites",
    "regularizer": "The regularizer",
    "order": "The order of arrival",
    "hospitals": "Hospitals that differ",
    "alone": "Alone, federated, pooled",
    "pictures": "Alone, federated, pooled on real pictures",
    "personal": "A part of each adapter that stays at its site",
    "curve": "What a federation is worth in pictures",
    "twin": "Classes that arrive",
}

_TOP = """# Results

<!-- Written by `python -m simulation.results.make_results`. Change that, not this. -->

What the methods of this project do, with their spread and with what they lose: on synthetic tasks,
and where an experiment says so on the real pictures of the demo.
Everything below is made from the files of `{results}`, one for each run; `make results` runs what
is missing there and writes this page anew. Tables, pictures and sentences follow the numbers;
{by_hand}."""

_SETUP = """## Set-up

Each experiment varies one plan of `{experiments}` along a few axes. A *setting* is one choice on
every axis, and each setting is run with several seeds. A seed decides the pictures, the questions,
the label noise, the start of each adapter and the order of batches, so runs of one seed have the
same data and can be compared pair by pair. The base model is the small one that comes with the
project: the figures compare methods with each other. They say nothing about medicine, nor about
how a 7B model would do.

**Every setting at its own best learning rate.** Where an experiment has a grid, each setting is
first run at factors of the plan's rates, with tuning seeds that are not those of the test, and
scored on validation questions: other pictures than those of training and of the test. It begins
with the middle of the grid and goes on outward as long as the best factor is the outermost. The
factor with the best mean over tasks and tuning seeds (of equal ones the lower) is then run on the
test. All that was tried is shown, and by how many points the chosen one is above the next: where
they are few, another tuning seed might have chosen otherwise. A choice at the border of the grid is
marked. **One thing at a time:** a plan of several sites states the batch of all of them together,
so that one and four sites make as many steps of as many questions."""

_READING = """## How to read it

- **When learned**: the mean over tasks of each task's score right after its own stage. **At the
  end**: the same after the last stage. Scores are percentages of the plan's measure for the task.
  `±` is the standard deviation over seeds, `n` the number of seeds.
- **Random answer**: the expected score of one of the answers that training gives to the same
  question, each equally likely. **Commonest answer**: that of always giving training's most
  frequent one. Neither looks at the picture. **Balanced accuracy**: the share of right answers
  within each true answer, averaged over these; of open answers, nearly each of which is another,
  it is near 0 and says little.
- **Transfer**: the mean of a task's scores after the stages before its own, over all tasks but the
  first; **Avg**: the mean over tasks and stages (ZSCL, arXiv 2303.06628).
- **Backward transfer**: over all tasks but the last, the score at the end less the score when
  learned. Below 0 it is forgetting. What forgets an answer's *words*, too, answers with no option
  of the question.
- A **difference** is the first less the second, in points of percent. Its interval and p take
  **seeds and tasks** both as the sample: whether it would hold for other seeds and other tasks
  (docs/adr/0018-evidence.md has the test, and how often it is wrong). Beside it stand Student's t
  over seeds alone (other data, the same tasks) and over tasks alone (other tasks, the same seeds).
  *Over pictures*: a bootstrap of {resamples} draws of the pictures, each with all its questions,
  within each seed and task, and for right and wrong answers McNemar's test with a picture's
  questions as one; they say how sure we are of these very runs. An answer is right if its measure
  is 1.
- In `p (Holm)` the second number is adjusted by Holm's method for all comparisons of its
  experiment. **Significant** means that it is below 0.05. With few seeds and tasks a real but small
  difference is often not significant: *not significant* does not mean *equal*, so look at the
  interval.
- **Holdout**: seeds that were run once, after everything else was decided."""


@dataclass(frozen=True, slots=True)
class DocumentPaths:
    """The paths that the document names, as its readers see them."""

    results: str
    experiments: str
    images: str


@dataclass(frozen=True, slots=True)
class Document:
    """The text in Markdown, and the pictures that it shows."""

    text: str
    pictures: tuple[Chart, ...]


def document(
    collected: Sequence[Collected],
    origin: DocumentPaths,
    discussion: str,
    resamples: int = RESAMPLES,
) -> Document:
    """Return the whole document; equal results make equal bytes.

    Args:
        discussion: text written by hand, for the end; may be empty.
    """
    parts = sorted(collected, key=lambda part: (part.experiment.priority, part.experiment.name))
    begun = [part for part in parts if _is_begun(part)]
    sections = [(part, section(part, resamples)) for part in begun]
    by_hand = "only the discussion at the end is not" if discussion else "none is written by hand"
    top = _TOP.format(results=origin.results, by_hand=by_hand)
    reading = _READING.format(resamples=f"{resamples:,}")
    setup = _SETUP.format(experiments=origin.experiments)
    blocks = [top, setup, _overview(parts), _code(parts), _plans(parts), reading]
    for number, (part, made) in enumerate(sections):
        blocks += _section_blocks(part, made, f"({chr(ord('a') + number)})", origin)
    blocks += [_not_begun([part for part in parts if part not in begun])]
    blocks += [discussion.strip()] if discussion else []
    pictures = tuple(picture for _, made in sections for picture in made.pictures)
    return Document("\n\n".join(filter(None, blocks)) + "\n", pictures)


def _title(part: Collected) -> str:
    name = part.experiment.name
    kind = name.split("_")[0]
    if kind not in _TITLES:
        return name
    return _TITLES[kind] if name == kind else f"{_TITLES[kind]}: {name}"


def _section_blocks(
    part: Collected, made: Section, letter: str, origin: DocumentPaths
) -> list[str]:
    shown = [f"![{one.description}]({origin.images}/{one.file})" for one in made.pictures]
    return [
        f"## {letter} {_title(part)}",
        f"*{part.experiment.question}* What each setting changes is in "
        f"`{origin.experiments}/{part.experiment.name}.yaml`.",
        _missing(part),
        *shown,
        *made.blocks,
    ]


def _is_begun(part: Collected) -> bool:
    return part.missing_tuning < part.tuning_runs or any(cell.results for cell in part.cells)


def _not_begun(parts: Sequence[Collected]) -> str:
    """List the experiments of which no run is there; empty if there are none."""
    if not parts:
        return ""
    rows = [f"- `{part.experiment.name}`: {part.experiment.question}" for part in parts]
    return "\n".join(["## Not run yet", "", *rows])


def _missing(part: Collected) -> str:
    """Say which runs have no result; empty if all have."""
    if not part.missing and not part.missing_tuning:
        return ""
    lacking = [
        (", ".join(filter(None, [part.tag(group), group.label(cell)])), cell.missing)
        for group in part.groups
        for cell in group.cells
        if cell.missing
    ]
    said: list[str] = []
    for seeds, own in groupby(lacking, key=lambda one: one[1]):
        names = "; ".join(name for name, _ in own)
        said.append(f"{names} (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})")
    runs = sum(len(cell.seeds) for cell in part.cells)
    tuned = f", and {part.missing_tuning} of the grid" if part.missing_tuning else ""
    return (
        f"**{part.missing} of {runs} runs on the test have no result yet{tuned}**"
        f"{': ' if said else ''}{'; '.join(said)}. The figures below are of what is there."
    )


def _overview(parts: Sequence[Collected]) -> str:
    heads = ("experiment", "plan", "settings", "runs of the grid", "done", "runs on the test",
             "done", "minutes of runs")  # fmt: skip
    return table(heads, [_overview_row(part) for part in parts])


def _code(parts: Sequence[Collected]) -> str:
    """Say which versions of the code made the results: results are kept when the code changes."""
    runs = {
        result.plan.digest: result.code
        for part in parts
        for cell in part.cells
        for result in cell.results.values()
    }
    counts = Counter(runs.values())
    if len(counts) < 2:
        return "".join(
            f"All of them were run by one state of the code, `{code}`." for code in counts
        )
    text = listed([f"`{code}` ({count})" for code, count in counts.most_common()])
    return (
        f"They were run by {len(counts)} states of the code (digests of `common`, `server` and "
        f"`client`, and how many runs): {text}. A result is found by its plan alone, so whoever "
        "changes what a plan means must delete what it changes."
    )


def _plans(parts: Sequence[Collected]) -> str:
    """List the tasks of each plan that is varied, as its first cell has them."""
    first: dict[str, Cell] = {}
    for part in parts:
        first.setdefault(part.cells[0].plan.name, part.cells[0])
    return "\n".join(
        f"- {name}, {_batch(cell.plan)}: {_tasks(cell)}." for name, cell in first.items()
    )


def _passes(plan: Plan) -> list[float]:
    """Return how many epochs each stage trains on its data."""
    return [stage.rounds * stage.local_epochs for stage in plan.stages]


def _batch(plan: Plan) -> str:
    """Say of how many questions the plan's steps are."""
    sizes = listed(sorted({str(stage.batch_size) for stage in plan.stages}))
    shared = any(stage.batch is BatchScope.GLOBAL for stage in plan.stages)
    return f"batches of {sizes} " + ("of all sites together" if shared else "at each site")


def _tasks(cell: Cell) -> str:
    """List modality, passes over the training questions, and test questions of each task."""
    result = next(iter(cell.results.values()), None)
    asked = [f", {len(own)} test questions" for own in result.answers] if result else [""]
    stages = zip(cell.plan.stages, _passes(cell.plan), cycle(asked), strict=False)
    return "; ".join(
        f"{stage.name} ({stage.modality}, {passes:g} passes{questions})"
        for stage, passes, questions in stages
    )


def _overview_row(part: Collected) -> list[str]:
    runs = sum(len(cell.seeds) for cell in part.cells)
    seconds = sum(run.seconds for cell in part.cells for run in cell.results.values())
    plan, grid = part.cells[0].plan, part.tuning_runs
    return [
        part.experiment.name,
        f"{plan.name} ({len(plan.stages)} tasks)",
        str(len(part.cells)),
        str(grid),
        str(grid - part.missing_tuning),
        str(runs),
        str(runs - part.missing),
        f"{(seconds + part.tuning_seconds) / 60:.0f}",
    ]
