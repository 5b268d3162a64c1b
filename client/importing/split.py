"""Which questions are for training and which for the test: no patient is on both sides."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.data.joined_names import JoinedNames
from client.importing.question import BadRow, DatasetPart, SourceError, SourceQuestion
from client.importing.settings import ImportSettings
from common.errors import DataError
from common.identity import seed_for
from common.metrics import AnswerKind
from common.printable import counted

#: So many pairs of rows that violate a given split are named.
_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class SplitQuestions:
    """The questions of both sides, in the source's order.

    Attributes:
        groups: of each picture, the number of the group that must stay together: the pictures of
            one patient, those taken from one volume, and equal ones.
        how: how the sides were found, in words.
    """

    train: Sequence[SourceQuestion]
    test: Sequence[SourceQuestion]
    groups: Mapping[Path, int]
    how: str
    notes: Sequence[str]


def split_questions(
    questions: Sequence[SourceQuestion], digests: Mapping[Path, str], settings: ImportSettings
) -> SplitQuestions:
    """Split as the source does where it has training and test, else by patient.

    A part for validation goes to training where there is one for the test, else it is the test.

    Args:
        digests: of the pixels of each picture.

    Raises:
        DataError: a given split has a patient or a picture on both sides, or there are too few
            patients to split.
    """
    groups = _groups(questions, digests)
    given = {one.split for one in questions} - {None}
    notes: list[str] = []
    if given and not settings.resplit:
        _check_complete(questions)
    if not settings.resplit and DatasetPart.TRAIN in given and len(given) > 1:
        return _as_given(questions, groups, given, settings)
    if given and not settings.resplit:
        parts = ", ".join(sorted(str(part) for part in given if part))
        notes.append(f"the source has {parts} alone: the split is ours")
    sides = _by_group(questions, groups, settings)
    return SplitQuestions(
        [one for one in questions if sides[groups[one.picture]] is DatasetPart.TRAIN],
        [one for one in questions if sides[groups[one.picture]] is DatasetPart.TEST],
        groups,
        f"by {_unit(questions)}, {settings.test:.0%} of the questions for the test, "
        f"seed {settings.seed}",
        [*notes, *_patient_notes(questions)],
    )


def _unit(questions: Sequence[SourceQuestion]) -> str:
    if any(one.patient for one in questions):
        return "patient"
    return "volume" if any(one.origin for one in questions) else "picture"


def _patient_notes(questions: Sequence[SourceQuestion]) -> list[str]:
    without = len({one.picture for one in questions if not one.patient})
    if not without:
        return []
    return [
        f"of {counted(without, 'picture')} no patient is known: each counts as a patient of its "
        "own, so that pictures of one patient may be on both sides (--patient-column, "
        "--patient-pattern)"
    ]


def _groups(questions: Sequence[SourceQuestion], digests: Mapping[Path, str]) -> dict[Path, int]:
    joined = JoinedNames()
    for one in questions:
        name = f"pixels {digests[one.picture]}"
        joined.root(name)
        if one.patient:
            joined.join(f"patient {one.patient}", name)
        if one.origin:
            joined.join(f"origin {one.origin}", name)
    roots = [joined.root(f"pixels {digests[one.picture]}") for one in questions]
    numbers = {root: number for number, root in enumerate(dict.fromkeys(roots))}
    return {one.picture: numbers[root] for one, root in zip(questions, roots, strict=True)}


def _check_complete(questions: Sequence[SourceQuestion]) -> None:
    """Check that every question has a part, where one has.

    Raises:
        DataError: some have none.
    """
    without = [one for one in questions if one.split is None]
    if without:
        raise DataError(
            f"{without[0].place}: found no part of the split ({counted(len(without), 'question')} "
            "without one), expected train or test everywhere, or --resplit"
        )


def _as_given(
    questions: Sequence[SourceQuestion],
    groups: Mapping[Path, int],
    given: "set[DatasetPart | None]",
    settings: ImportSettings,
) -> SplitQuestions:
    validates = DatasetPart.TRAIN if DatasetPart.TEST in given else DatasetPart.TEST
    notes: list[str] = []
    if DatasetPart.VALIDATION in given:
        notes.append(f"the source's validation questions are for {validates}")

    def side(one: SourceQuestion) -> DatasetPart | None:
        return validates if one.split is DatasetPart.VALIDATION else one.split

    train = [one for one in questions if side(one) is DatasetPart.TRAIN]
    test = [one for one in questions if side(one) is DatasetPart.TEST]
    tested = {groups[one.picture] for one in test}
    shared = [one for one in train if groups[one.picture] in tested]
    if shared and not settings.leave_out_shared:
        raise DataError(_violation(shared, test, groups))
    if shared:
        train = [one for one in train if groups[one.picture] not in tested]
        notes.append(
            f"{counted(len(shared), 'training question')} left out, whose patient or picture the "
            "test has, too"
        )
        if not train:
            raise SourceError(
                "found no training question whose patient or picture is not in the test, too, "
                "expected at least one (--resplit splits anew)"
            )
    notes += _patient_notes(questions)
    return SplitQuestions(train, test, groups, "as the source has it", notes)


def _violation(
    shared: Sequence[SourceQuestion], test: Sequence[SourceQuestion], groups: Mapping[Path, int]
) -> str:
    """Return where the given split has the same patient or picture on both sides."""
    by_group: dict[int, SourceQuestion] = {}
    for one in test:
        by_group.setdefault(groups[one.picture], one)
    lines: list[str] = []
    for group, one in {groups[one.picture]: one for one in reversed(shared)}.items():
        other = by_group[group]
        same = one.patient is not None and one.patient == other.patient
        what = "patient" if same else "patient or picture"
        lines.append(f"{one.place} (train) and {other.place} (test): found the same {what}")
    lines.reverse()
    more = [f"and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
    number = counted(len(lines), "group of pictures", "groups of pictures")
    end = (
        f"The source's split has {number} on both sides, expected none: --resplit splits anew, "
        "--leave-out-shared leaves their training questions out"
    )
    return "\n".join([*lines[:_NAMED], *more, end])


def _by_group(
    questions: Sequence[SourceQuestion], groups: Mapping[Path, int], settings: ImportSettings
) -> dict[int, DatasetPart]:
    """Give each group to a side, so that every answer has its share in the test.

    Groups come in an order that depends on the seed and on what they hold, not on the file
    system; each goes to the test if that brings the numbers of its answers there nearer to their
    shares (the sum of squared differences, each relative to the answer's questions).
    """
    totals = Counter(_stratum(one) for one in questions)
    held: dict[int, Counter[str]] = {}
    names: dict[int, str] = {}
    for one in questions:
        group = groups[one.picture]
        held.setdefault(group, Counter())[_stratum(one)] += 1
        name = str(one.place)
        names[group] = min(names.get(group, name), name)
    if len(held) < 2:
        raise SourceError(
            "found the pictures of one patient, volume or picture alone, expected at least two "
            "to split (--no-patients counts every picture as a patient of its own)"
        )
    tested: Counter[str] = Counter()
    sides: dict[int, DatasetPart] = {}
    for group in sorted(held, key=lambda group: seed_for(settings.seed, "import", names[group])):
        change = 0.0
        for stratum, number in held[group].items():
            missing = settings.test * totals[stratum] - tested[stratum]
            change += ((missing - number) ** 2 - missing**2) / totals[stratum]
        sides[group] = DatasetPart.TEST if change < 0 else DatasetPart.TRAIN
        if change < 0:
            tested.update(held[group])
    for side in (DatasetPart.TRAIN, DatasetPart.TEST):
        if side not in sides.values():
            fewest = min(held, key=lambda group: (held[group].total(), names[group]))
            sides[fewest] = side
    return sides


def _stratum(one: SourceQuestion) -> str:
    """Return what a question's answers are counted under."""
    if one.kind is AnswerKind.CLOSED:
        return f"{one.finding or ''}: {one.answer.lower()}"
    return "open"


def equal_pictures(questions: Sequence[SourceQuestion], digests: Mapping[Path, str]) -> list[str]:
    """Return notes on pictures with the same pixels under several names, and on their answers."""
    names: dict[str, set[Path]] = {}
    answers: dict[tuple[str, str], set[str]] = {}
    for one in questions:
        digest = digests[one.picture]
        names.setdefault(digest, set()).add(one.picture)
        if one.kind is AnswerKind.CLOSED:
            answers.setdefault((digest, one.question or ""), set()).add(one.answer)
    copies = sum(len(files) - 1 for files in names.values())
    differing = sum(len(found) > 1 for found in answers.values())
    notes: list[str] = []
    if copies:
        notes.append(f"{counted(copies, 'picture')} with the same pixels as another one")
    if differing:
        notes.append(
            f"{counted(differing, 'closed question')} with different answers about equal pictures"
        )
    return notes


def contradictions(questions: Sequence[SourceQuestion]) -> list[BadRow]:
    """Return a row for every closed question that was answered otherwise before."""
    first: dict[tuple[Path, str], SourceQuestion] = {}
    found: list[BadRow] = []
    for one in questions:
        key = (one.picture, one.question or "")
        other = first.setdefault(key, one)
        if other.answer != one.answer and one.kind is AnswerKind.CLOSED:
            reason = f"found another answer than at {other.place.at or other.place}, expected one"
            found.append(BadRow(one.place, reason))
    return found
