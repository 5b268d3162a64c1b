"""The rows of a table become questions, whatever file the table came from."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from client.data.records import describe_type, quoted
from client.importing.columns import TableLayout
from client.importing.picture_files import FindPicture
from client.importing.question import BadRow, DatasetPart, SourceItem, SourceQuestion
from client.importing.settings import Uncertain
from client.importing.tables import SourceRow
from client.importing.values import as_kind, as_label, as_question, as_split, as_text
from common.metrics import AnswerKind

#: A letter before an option in the data set's own text, as in " A: liver ".
_LETTERED = re.compile(r"^([A-H])\s*:\s*(?=\S)")


#: A label that says that there is none of the others.
_NO_FINDING = frozenset({"no finding", "no findings"})


def several_findings(values: Iterable[object]) -> tuple[str, ...]:
    """Return the labels of cells that have several, separated by bars (NIH's ChestX-ray14).

    Empty where no cell has several.
    """
    cells = [_parts(value) for value in values]
    if all(len(cell) < 2 for cell in cells):
        return ()
    found = {label for cell in cells for label in cell}
    return tuple(sorted(label for label in found if label.lower() not in _NO_FINDING))


def _unusable(value: object) -> str:
    """Describe a cell that can't be used, without its content."""
    blank = isinstance(value, str | float) and as_text(value) is None
    return "nothing" if blank else describe_type(value)


def _parts(value: object) -> list[str]:
    return [part.strip() for part in (as_text(value) or "").split("|") if part.strip()]


@dataclass(frozen=True, slots=True)
class TableReader:
    """Makes questions of rows.

    Attributes:
        names: what the values of the label's column are called, where the file says so.
        findings: the labels of a column whose cells have several; empty where each has one.
    """

    layout: TableLayout
    find: FindPicture
    uncertain: Uncertain
    names: Mapping[str, str]
    findings: tuple[str, ...] = ()

    def questions(self, row: SourceRow) -> Iterator[SourceItem]:
        """Yield the questions of a row, or why there is none."""
        layout, files, split = self.layout, self._files(row), self._split(row)
        if isinstance(files, BadRow):
            yield files
        elif isinstance(split, BadRow):
            yield split
        elif layout.question is not None:
            yield self._asked(row, files, split)
        elif layout.label is not None and self.findings:
            given = _parts(row.cells.get(layout.label))
            for label in self.findings:
                yield self._finding(row, files, split, label, "yes" if label in given else "no")
        elif layout.label is not None:
            yield self._labelled(row, files, split, layout.label)
        else:
            yield from self._flagged(row, files, split)

    def _files(self, row: SourceRow) -> tuple[Path, ...] | BadRow:
        column = self.layout.image
        value = row.cells.get(column)
        if isinstance(value, Path):
            return (value,)
        name = as_text(value)
        if name is None:
            reason = f"column {quoted(column)}: found {_unusable(value)}, expected a picture's file"
            return BadRow(row.place, reason)
        files = self.find(name)
        if isinstance(files, str):
            return BadRow(row.place, f"column {quoted(column)}: found {files}, expected a picture")
        return files

    def _split(self, row: SourceRow) -> DatasetPart | BadRow | None:
        """Return the row's part, or the file's."""
        column = self.layout.split
        if column is None:
            return row.split
        reason = (
            f"column {quoted(column)}: found no name of a part, expected train, validation or test"
        )
        return as_split(row.cells.get(column)) or BadRow(row.place, reason)

    def _question(
        self, row: SourceRow, files: tuple[Path, ...], split: DatasetPart | None, answer: str
    ) -> SourceQuestion:
        return SourceQuestion(
            place=row.place,
            files=files,
            question=None,
            answer=answer,
            patient=self._patient(row),
            split=split,
        )

    def _finding(
        self,
        row: SourceRow,
        files: tuple[Path, ...],
        split: DatasetPart | None,
        label: str,
        answer: str,
    ) -> SourceQuestion:
        asked = self._question(row, files, split, answer)
        return replace(asked, finding=label, kind=AnswerKind.CLOSED)

    def _patient(self, row: SourceRow) -> str | None:
        return None if self.layout.patient is None else as_label(row.cells.get(self.layout.patient))

    def _labelled(
        self, row: SourceRow, files: tuple[Path, ...], split: DatasetPart | None, column: str
    ) -> SourceItem:
        label = as_label(row.cells.get(column))
        if label is None:
            found = _unusable(row.cells.get(column))
            return BadRow(row.place, f"column {quoted(column)}: found {found}, expected a label")
        # `datasets` writes -1 where a label is withheld.
        if self.names and label not in (*self.names, *self.names.values()):
            expected = f"0 to {len(self.names) - 1}, which have names"
            return BadRow(
                row.place, f"column {quoted(column)}: found another label, expected {expected}"
            )
        return self._question(row, files, split, self.names.get(label, label))

    def _flagged(
        self, row: SourceRow, files: tuple[Path, ...], split: DatasetPart | None
    ) -> Iterator[SourceItem]:
        """Yield the label whose column has the one 1, or a question of yes or no for each label.

        Labels that the row says nothing about are not asked about.
        """
        if self.layout.one_hot:
            (label,) = (c for c in self.layout.flags if as_label(row.cells.get(c)) == "1")
            yield self._question(row, files, split, label)
            return
        uncertain = {Uncertain.YES: "yes", Uncertain.NO: "no"}.get(self.uncertain)
        answers = {"1": "yes", "0": "no", "-1": uncertain}
        for column in self.layout.flags:
            value = as_label(row.cells.get(column))
            if value is not None and value not in answers:
                reason = f"found {quoted(value)}, expected 1, 0, -1 or nothing"
                yield BadRow(row.place, f"column {quoted(column)}: {reason}")
            elif value is not None and (answer := answers[value]) is not None:
                yield self._finding(row, files, split, column, answer)

    def _asked(
        self, row: SourceRow, files: tuple[Path, ...], split: DatasetPart | None
    ) -> SourceItem:
        layout = self.layout
        question, answer = as_question(row.cells.get(layout.question or "")), self._answer(row)
        options = self._options(row)
        wanted_answer = f"one of {len(options)} options" if options else "an answer"
        for column, text, wanted in (
            (layout.question, question, "a question"),
            (layout.answer, answer, wanted_answer),
        ):
            if text is None:
                found = _unusable(row.cells.get(column or ""))
                reason = f"found {found}, expected {wanted}"
                return BadRow(row.place, f"column {quoted(column or '')}: {reason}")
        assert question is not None and answer is not None
        return SourceQuestion(
            place=row.place,
            files=files,
            question=question,
            answer=answer,
            kind=as_kind(row.cells.get(layout.kind)) if layout.kind else None,
            options=tuple(options.values()),
            patient=self._patient(row),
            split=split,
        )

    def _options(self, row: SourceRow) -> dict[str, str]:
        """Return the row's options by their letters, without letters in the text."""
        found = {
            letter: as_text(row.cells.get(column)) for letter, column in self.layout.choices.items()
        }
        return {letter: _LETTERED.sub("", text).strip() for letter, text in found.items() if text}

    def _answer(self, row: SourceRow) -> str | None:
        """Return the answer; where it is an option's letter, the option."""
        answer = as_text(row.cells.get(self.layout.answer or ""))
        options = self._options(row)
        if not options:
            return answer
        letter = as_text(row.cells.get(self.layout.letter)) if self.layout.letter else None
        plain = None if answer is None else _LETTERED.sub("", answer).strip()
        if plain in options.values():
            return plain
        return options.get((letter or answer or "").strip(" .:()").upper(), None)
