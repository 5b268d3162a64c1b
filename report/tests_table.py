"""The paired tests of a comparison as a table: a row for each method and measure."""

from collections.abc import Sequence
from dataclasses import dataclass

from report.methods import LEARNED, PairedTest, Test

#: Each column's score, whether its test is over seeds (Student's t), and its heading.
_COLUMNS = (
    (LEARNED, False, "when learned"),
    ("last", False, "at the end"),
    ("last", True, "at the end, over seeds"),
    ("forgetting", True, "forgetting, over seeds"),
    ("learning_gain", True, "learning gain, over seeds"),
)
HEADS = tuple(head for _, _, head in _COLUMNS)


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """The tests against one method in one measure; None where there is no such test."""

    method: str
    measure: str
    cells: tuple[PairedTest | None, ...]


def comparison_rows(tests: Sequence[PairedTest]) -> list[ComparisonRow]:
    """Return the rows by measure, then by method, both in their order of appearance."""
    measures = dict.fromkeys(test.measure for test in tests)
    methods = dict.fromkeys(test.method for test in tests)
    return [
        ComparisonRow(method, measure, cells)
        for measure in measures
        for method in methods
        if any(cells := _cells([t for t in tests if (t.method, t.measure) == (method, measure)]))
    ]


def _cells(tests: Sequence[PairedTest]) -> tuple[PairedTest | None, ...]:
    found = {(test.score, test.test is Test.T): test for test in tests}
    return tuple(found.get((score, over_seeds)) for score, over_seeds, _ in _COLUMNS)
