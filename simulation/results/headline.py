"""Which settings gain as much over the plain sum as the paper says (arXiv 2508.11673)."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

from report.significance import LEVEL
from simulation.results.cells import Cell, CellGroup
from simulation.results.measures import mean_learned, over_seeds
from simulation.results.section import LESS_PLAIN, names_of
from simulation.results.significance import Comparison
from simulation.results.words import DASH, between, level, number_of, points, table

#: The paper's gain in the mean, as a fraction: 1.88 points.
HEADLINE = 0.0188
_TOLD = "1.88"


class Reached(StrEnum):
    """What the seeds say about a gain of the paper's size."""

    SHOWN = "shown"
    EXCLUDED = "excluded"
    OPEN = "neither"
    UNTESTED = "untested"


def reached(one: Comparison) -> Reached:
    """Classify the gain: shown if as large with p < 0.05, excluded if the interval ends below."""
    if one.t is None or one.high is None:
        return Reached.UNTESTED
    if one.t.mean >= HEADLINE and one.t.p < LEVEL:
        return Reached.SHOWN
    return Reached.EXCLUDED if one.high < HEADLINE else Reached.OPEN


def gains_table(group: CellGroup, comparisons: Mapping[Cell, Comparison]) -> str:
    """Return a table of the group's cells: their scores, their gains, and the paper's gain."""
    names, rows = names_of(group), list[list[str]]()
    for cell in group.cells:
        found, one = over_seeds(cell, mean_learned), comparisons.get(cell)
        gain = (
            [points(one.difference), between(one.low, one.high), reached(one)]
            if one
            else [DASH] * 3
        )
        rows.append([names[cell], level(found), number_of(found), *gain])
    heads = ("setting", "mean when learned, %", "n", "gain over the plain sum", "95% interval",
             f"gain of {_TOLD}")  # fmt: skip
    return table(heads, rows)


def headline(comparisons: Sequence[Comparison]) -> str:
    """Say in three sentences whether any setting gains as much as the paper, and which is best."""
    tested = [one for one in comparisons if one.t is not None]
    if not tested:
        return f"No setting can be tested for the paper's gain of {_TOLD} points yet."
    shown = [one for one in tested if reached(one) is Reached.SHOWN]
    return " ".join([_shown(shown, len(tested)), _rest(tested), _best(tested)])


def _shown(shown: Sequence[Comparison], tested: int) -> str:
    asked = f"gains {_TOLD} points or more over the plain sum with p < {LEVEL}"
    if not shown:
        return f"None of the {tested} settings tried {asked}."
    held = [one for one in shown if one.significant]
    names = "; ".join(f"{_setting(one)} {points(one.difference)}" for one in shown)
    correction = "all of them" if len(held) == len(shown) else f"{len(held)} of them"
    return (
        f"{len(shown)} of the {tested} settings tried {asked} ({names}); "
        f"{correction} also after Holm."
    )


def _rest(tested: Sequence[Comparison]) -> str:
    excluded = [one for one in tested if reached(one) is Reached.EXCLUDED]
    left = [one for one in tested if reached(one) is Reached.OPEN]
    text = (
        f"A gain of that size is excluded for {len(excluded)} of them, "
        f"whose 95% interval ends below +{_TOLD}"
    )
    if left:
        names = "; ".join(_setting(one) for one in left)
        return f"{text}; it is neither shown nor excluded for {len(left)} ({names})."
    return f"{text}."


def _best(tested: Sequence[Comparison]) -> str:
    best = max(tested, key=lambda one: one.difference or 0.0)
    return (
        f"The largest mean difference is that of {_setting(best)}: {points(best.difference)} "
        f"points ({between(best.low, best.high)})."
    )


def _setting(one: Comparison) -> str:
    return one.planned.name.removesuffix(LESS_PLAIN)
