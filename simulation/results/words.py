"""Numbers, tables and sentences of the results; every claim is made from the numbers."""

from collections.abc import Callable, Iterable, Sequence

from common.printable import counted
from report.significance import LEVEL
from report.spread import Spread
from simulation.results.significance import Comparison

DASH = "-"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown; all columns but the first are numbers."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(value: float | None, digits: int = 2) -> str:
    """Return a fraction as a percentage."""
    return DASH if value is None else f"{100 * value:.{digits}f}"


def points(value: float | None) -> str:
    """Return a difference of fractions in percentage points, with its sign; zero has none."""
    if value is None:
        return DASH
    text = f"{100 * value:+.2f}"
    return "0.00" if text in {"+0.00", "-0.00"} else text


def level(found: Spread | None) -> str:
    """Return mean and deviation of a percentage."""
    return _spread(found, percent)


def change(found: Spread | None) -> str:
    """Return mean and deviation of a difference, in points."""
    return _spread(found, points)


def _spread(found: Spread | None, written: Callable[[float], str]) -> str:
    if found is None:
        return DASH
    after = "" if found.deviation is None else f" ± {percent(found.deviation)}"
    return written(found.mean) + after


def between(low: float | None, high: float | None) -> str:
    """Return an interval of differences, in points."""
    return DASH if low is None else f"{points(low)} to {points(high)}"


def probability(p: float | None) -> str:
    """Return a p; a very small one as a bound."""
    if p is None:
        return DASH
    return "<0.0001" if p < 1e-4 else f"{p:.3g}"


def equation(p: float | None) -> str:
    """Return `p = 0.01`, or its bound."""
    text = probability(p)
    return f"p {text[0]} {text[1:]}" if text.startswith("<") else f"p = {text}"


def listed(names: Sequence[str]) -> str:
    """Return names as a list in a sentence."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


_HEADS = (
    "compared", "n", "difference", "95% over seeds and tasks", "p (Holm)", "p over seeds",
    "p over tasks", "95% over pictures", "right only in the first, second", "p over pictures",
)  # fmt: skip


def tests_table(comparisons: Sequence[Comparison]) -> str:
    """Return a table with a row for each comparison and its tests."""
    return table(_HEADS, [_test_row(one) for one in comparisons])


def _test_row(one: Comparison) -> list[str]:
    pictures, answers = one.pictures, one.answers
    return [
        named(one),
        str(len(one.differences)),
        points(one.difference),
        between(*(one.interval or (None, None))),
        DASH if one.p is None else f"{probability(one.p)} ({probability(one.holm)})",
        probability(one.seeds and one.seeds.p),
        probability(one.tasks and one.tasks.p),
        between(pictures.low, pictures.high) if pictures else DASH,
        f"{answers.first_only}, {answers.second_only}" if answers else DASH,
        probability(answers and answers.p),
    ]


def named(one: Comparison) -> str:
    """Return the comparison's name, with the group that it belongs to."""
    return f"{one.planned.group}: {one.planned.name}" if one.planned.group else one.planned.name


def overview(comparisons: Sequence[Comparison]) -> str:
    """Say which comparisons are significant after Holm, and which are not."""
    tested = [one for one in comparisons if one.p is not None]
    if not tested:
        return "Nothing can be tested yet: it takes two seeds of both."
    better = [one for one in tested if one.significant and (one.difference or 0) > 0]
    worse = [one for one in tested if one.significant and (one.difference or 0) < 0]
    rest = [one for one in tested if one not in better and one not in worse]
    of = counted(len(tested), "comparison")
    said = [
        f"Over seeds and tasks and after Holm (p < {LEVEL}), of {of}: "
        f"{len(better)} with a gain{_which(better)}, {len(worse)} with a loss{_which(worse)}."
    ]
    if rest:
        alone = [one for one in rest if one.p is not None and one.p < LEVEL]
        said.append(
            f"Not significant: {len(rest)}, of which without the correction "
            f"{len(alone)} would be{_which(alone)}."
        )
    return " ".join(said)


def _which(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return ""
    names = [f"{named(one)} {points(one.difference)}" for one in comparisons]
    return f" ({'; '.join(names)})"
