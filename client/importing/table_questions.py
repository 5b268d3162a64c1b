"""The rows of a table become questions, whatever file the table came from."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from client.data.records import quoted
from client.importing.columns import TableLayout
from client.importing.picture_files import FindPicture
from client.importing.question import BadRow, DatasetPart, SourceItem, SourceQuestion
from client.importing.settings import Uncertain
from client.importing.tables import SourceRow
from client.importing.values import as_kind, as_label, as_question, as_split, as_text
from common.metrics import AnswerKind

#: A letter before an option in the data set's own text, as in " A: liver ".
_LETTERED = re.compile(r"^([A-H])\s*:\s*(?=\S)")


@dataclass(frozen=True, slots=True)
class TableReader:
    """Makes questions of rows.

    Attributes:
        names: what the values of the label's column are called, where the file says so.
    """

    layout: TableLayout
    find: FindPicture
    uncertain: Uncertain
    names: Mapping[str, str]

    def questions(self, row: SourceRow) -> Iterator[SourceItem]:
        """Yield the questions of a row, or why there is none."""
        files = self._files(row)
        if isinstance(files, str):
            yield BadRow(row.place, f"column {quoted(self.layout.image)}: found {files}")
            return
        split = row.split
        if self.layout.split is not None:
            split = as_split(row.cells.get(self.layout.split))
            if split is None:
                reason = "found no name of a part, expected train, validation or test"
                yield BadRow(row.place, f"column {quoted(self.layout.split)}: {reason}")
                return
        if self.layout.question is not None:
            yield self._asked(row, files, split)
        elif self.layout.label is not None:
            yield self._labelled(row, files, split, self.layout.label)
        elif self.layout.one_hot:
            (label,) = (c for c in self.layout.flags if as_label(row.cells.get(c)) == "1")
            yield self._question(row, files, split, label)
        else:
            yield from self._findings(row, files, split)

    def _files(self, row: SourceRow) -> tuple[Path, ...] | str:
        value = row.cells.get(self.layout.image)
        if isinstance(value, Path):
            return (value,)
        name = as_text(value)
        if name is None:
            return "nothing, expected a picture's file"
        found = self.find(name)
        return f"{found}, expected a picture" if isinstance(found, str) else found

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

    def _patient(self, row: SourceRow) -> str | None:
        return None if self.layout.patient is None else as_label(row.cells.get(self.layout.patient))

    def _labelled(
        self, row: SourceRow, files: tuple[Path, ...], split: DatasetPart | None, column: str
    ) -> SourceItem:
        label = as_label(row.cells.get(column))
        if label is None:
            return BadRow(row.place, f"column {quoted(column)}: found nothing, expected a label")
        return self._question(row, files, split, self.names.get(label, label))

    def _findings(
        self, row: SourceRow, files: tuple[Path, ...], split: DatasetPart | None
    ) -> Iterator[SourceItem]:
        """Yield a question of yes or no for each label that the row says something about."""
        uncertain = {Uncertain.YES: "yes", Uncertain.NO: "no"}.get(self.uncertain)
        answers = {"1": "yes", "0": "no", "-1": uncertain}
        for column in self.layout.flags:
            value = as_label(row.cells.get(column))
            if value is not None and value not in answers:
                reason = f"found {quoted(value)}, expected 1, 0, -1 or nothing"
                yield BadRow(row.place, f"column {quoted(column)}: {reason}")
            elif value is not None and (answer := answers[value]) is not None:
                yield SourceQuestion(
                    place=row.place,
                    files=files,
                    question=None,
                    answer=answer,
                    finding=column,
                    kind=AnswerKind.CLOSED,
                    patient=self._patient(row),
                    split=split,
                )

    def _asked(
        self, row: SourceRow, files: tuple[Path, ...], split: DatasetPart | None
    ) -> SourceItem:
        layout = self.layout
        question, answer = as_question(row.cells.get(layout.question or "")), self._answer(row)
        for column, text, wanted in (
            (layout.question, question, "a question"),
            (layout.answer, answer, "an answer"),
        ):
            if text is None:
                reason = f"found nothing that can be used, expected {wanted}"
                return BadRow(row.place, f"column {quoted(column or '')}: {reason}")
        assert question is not None and answer is not None
        return SourceQuestion(
            place=row.place,
            files=files,
            question=question,
            answer=answer,
            kind=as_kind(row.cells.get(layout.kind)) if layout.kind else None,
            options=tuple(self._options(row).values()),
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
