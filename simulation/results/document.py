"""docs/results.md: the set-up, how to read it, and a part for each experiment."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

from report.canvas import Chart
from report.significance import RESAMPLES
from simulation.results.cells import Cell, Collected
from simulation.results.gains import regularizer, transfer
from simulation.results.headline import HEADLINE
from simulation.results.methods import methods
from simulation.results.order import order
from simulation.results.rules import passes_of, rules
from simulation.results.section import Section, missing_of
from simulation.results.words import listed, table

#: Title and report of an experiment, by the first word of its name; the default is `transfer`.
_SECTIONS: Mapping[str, tuple[str, Callable[[Collected, int], Section]]] = {
    "methods": ("The methods", methods),
    "regularizer": ("The regularizer", regularizer),
    "transfer": ("What transfers", transfer),
    "rules": ("Aggregation rules and sites", rules),
    "order": ("The order of arrival", order),
}

_TOP = """# Results

<!-- Written by `python -m simulation.results.make_results`. Change that, not this. -->

What the methods of this project do on synthetic tasks, with their spread and with what they lose.
Everything below is made from the files of `{results}`, one for each run; `make results` runs what
is missing there and writes this page anew. Tables, pictures and sentences follow the numbers;
{by_hand}."""

_SETUP = """## Set-up

Each experiment varies one plan of `{experiments}` along a few axes. A *setting* is one choice on
every axis, and each setting is run with several seeds. A seed decides the pictures, the questions,
the label noise, the start of each adapter and the order of batches, so runs of one seed have the
same data and can be compared pair by pair. The base model is the small one that comes with the
project: the figures compare methods with each other. They say nothing about medicine, nor about
how a 7B model would do."""

_READING = """## How to read it

- **When learned**: the mean over tasks of each task's score right after its own stage. **At the
  end**: the same after the last stage. Scores are percentages of the plan's measure for the task.
  `±` is the standard deviation over seeds, `n` the number of seeds.
- **Backward transfer**: over all tasks but the last, the score at the end less the score when
  learned. Below 0 it is forgetting.
- **Learning gain**: the mean score when learned less that of `separate`, one LoRA for each task,
  with the same seed and data. `separate` is the same for all settings, so a difference of two means
  when learned is a difference of learning gain. `joint` learns all tasks at once, so only its score
  at the end counts. It makes the steps of all stages together, and takes each question as often as
  its own stage would, in one mixed order.
- **Plain sum** (`mslora`): all earlier adapters are summed, nothing is regularized.
- A **difference** is the first less the second, in points of percent. It is tested in three ways.
  *Over seeds*: Student's t on the differences of seeds, with its 95% interval. The sentences speak
  of this test, since it counts all that a seed decides. *Over questions*: a bootstrap of
  {resamples} draws of the questions within each seed and task; it says how sure we are of these
  very runs. *Right and wrong*: McNemar's exact test on all answers of all seeds together; an
  answer is right if its measure is 1. Questions that share a picture count as independent, so the
  last two are too sure of themselves.
- In `p (Holm)` the second number is adjusted by Holm's method for all comparisons of its
  experiment, each kind of test for itself. **Significant** means that the adjusted p over seeds is
  below 0.05. With few seeds a real but small difference is often not significant: *not significant*
  does not mean *equal*, so look at the interval.
- The paper's gain in the mean is {headline} points. For a setting, a gain of this size is *shown*
  if the mean difference from the plain sum is at least that large and p over seeds is below 0.05
  (not adjusted). It is *excluded* if the 95% interval ends below it."""


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
    parts = sorted(collected, key=_place)
    sections = [
        (part, _SECTIONS.get(_kind(part), _SECTIONS["transfer"])[1](part, resamples))
        for part in parts
    ]
    by_hand = "only the discussion at the end is not" if discussion else "none is written by hand"
    top = _TOP.format(results=origin.results, by_hand=by_hand)
    reading = _READING.format(headline=f"{100 * HEADLINE:.2f}", resamples=f"{resamples:,}")
    setup = _SETUP.format(experiments=origin.experiments)
    blocks = [top, setup, _overview(parts), _code(parts), _plans(parts), reading]
    for number, (part, section) in enumerate(sections):
        blocks += _section_blocks(part, section, f"({chr(ord('a') + number)})", origin)
    blocks += [discussion.strip()] if discussion else []
    pictures = tuple(picture for _, section in sections for picture in section.pictures)
    return Document("\n\n".join(filter(None, blocks)) + "\n", pictures)


def _kind(part: Collected) -> str:
    return part.experiment.name.split("_")[0]


def _place(part: Collected) -> tuple[int, str]:
    kinds = list(_SECTIONS)
    kind = _kind(part)
    return (kinds.index(kind) if kind in kinds else len(kinds), part.experiment.name)


def _title(part: Collected) -> str:
    name = part.experiment.name
    if _kind(part) not in _SECTIONS:
        return name
    title = _SECTIONS[_kind(part)][0]
    return title if name == _kind(part) else f"{title}: {name}"


def _section_blocks(
    part: Collected, section: Section, letter: str, origin: DocumentPaths
) -> list[str]:
    shown = [f"![{one.description}]({origin.images}/{one.file})" for one in section.pictures]
    return [
        f"## {letter} {_title(part)}",
        f"*{part.experiment.question}* What each setting changes is in "
        f"`{origin.experiments}/{part.experiment.name}.yaml`.",
        missing_of(part),
        *shown,
        *section.blocks,
    ]


def _overview(parts: Sequence[Collected]) -> str:
    heads = ("experiment", "plan", "settings", "seeds", "runs", "of them done", "minutes of runs")
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
    return "\n".join(f"- {name}: {_tasks(cell)}." for name, cell in first.items())


def _tasks(cell: Cell) -> str:
    """List modality, passes over the training questions, and test questions of each task."""
    result = next(iter(cell.results.values()), None)
    asked = [f", {len(own)} test questions" for own in result.answers] if result else [""]
    stages = zip(cell.plan.stages, passes_of(cell.plan), cycle(asked), strict=False)
    return "; ".join(
        f"{stage.name} ({stage.modality}, {passes:g} passes{questions})"
        for stage, passes, questions in stages
    )


def _overview_row(part: Collected) -> list[str]:
    runs = sum(len(cell.seeds) for cell in part.cells)
    seconds = sum(run.seconds for cell in part.cells for run in cell.results.values())
    plan = part.cells[0].plan
    return [
        part.experiment.name,
        f"{plan.name} ({len(plan.stages)} tasks)",
        str(len(part.cells)),
        str(max(len(cell.seeds) for cell in part.cells)),
        str(runs),
        str(runs - part.missing),
        f"{seconds / 60:.0f}",
    ]
