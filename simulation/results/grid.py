"""The learning rates that were tried on validation, and the one that was chosen."""

from collections.abc import Sequence

from simulation.results.cells import CellGroup, Collected
from simulation.results.words import DASH, percent, points, table


def grid_table(group: CellGroup, rates: Sequence[float]) -> str:
    """Return a row for each setting with a grid: its score at each factor, the chosen one bold."""
    rows = [
        [
            ", ".join(filter(None, [group.title, group.label(cell)])),
            *(_score(cell.grid.scores[rate], rate == cell.rate) for rate in rates),
            DASH if cell.rate is None else f"{cell.rate:g}",
            points(cell.grid.lead),
            "at the border" if cell.grid.at_border else "",
        ]
        for cell in group.cells
        if cell.grid.scores
    ]
    heads = ("setting", *(f"{rate:g}" for rate in rates), "chosen", "above the next", "")
    return table(heads, rows) if rows else ""


def _score(score: float | None, chosen: bool) -> str:
    text = percent(score)
    return f"**{text}**" if chosen and score is not None else text


def border_notes(collected: Collected) -> str:
    """Name the settings whose best rate is the lowest or highest that was tried."""
    at_border = [
        ", ".join(filter(None, [group.title, group.label(cell)]))
        for group in collected.groups
        for cell in group.cells
        if cell.grid.at_border
    ]
    if not at_border:
        return ""
    return (
        f"**At the border of the grid: {'; '.join(at_border)}.** A better rate may lie beyond, so "
        "these are judged at the best of what was tried."
    )
