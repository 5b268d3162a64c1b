"""The seeds that nobody looked at while anything was decided: opened once, at the end."""

from dataclasses import replace

from simulation.results.cells import Cell, Collected
from simulation.results.references import planned_comparisons
from simulation.results.significance import compared
from simulation.results.words import DASH, between, listed, named, points, probability, table


def holdout_blocks(collected: Collected) -> list[str]:
    """Return the experiment's comparisons on the holdout seeds beside those on the others."""
    seeds = collected.experiment.holdout
    if not seeds:
        return []
    text = listed([str(seed) for seed in seeds])
    if not any(cell.holdout for cell in collected.cells):
        return [f"The holdout seeds {text} have not been opened."]
    planned = planned_comparisons(collected)
    opened = [replace(one, first=_opened(one.first), second=_opened(one.second)) for one in planned]
    rows = [
        [
            named(new),
            points(old.difference),
            str(len(new.differences)),
            points(new.difference),
            between(*(new.interval or (None, None))),
            DASH if new.p is None else f"{probability(new.p)} ({probability(new.holm)})",
        ]
        for old, new in zip(compared(planned, 1), compared(opened, 1), strict=True)
        if new.differences
    ]
    heads = ("compared", "difference above", "n", "on the holdout", "95%", "p (Holm)")
    return [
        "### Holdout",
        f"The same on the seeds {text}, which were run once, after everything else was decided; "
        "the interval is over seeds and tasks.",
        table(heads, rows),
    ]


def _opened(cell: Cell) -> Cell:
    return replace(cell, results=cell.holdout, seeds=tuple(cell.holdout))
