"""What the user of an import asks for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from common.errors import DataError
from common.plan_fields import Modality


class Form(StrEnum):
    """What a source is; AUTO finds out."""

    AUTO = "auto"
    FOLDERS = "folders"
    TABLE = "table"
    JSON = "json"
    PARQUET = "parquet"
    SLAKE = "slake"
    VQA_RAD = "vqa-rad"
    PATHVQA = "pathvqa"
    PMC_VQA = "pmc-vqa"
    OMNIMEDVQA = "omnimedvqa"


class Uncertain(StrEnum):
    """What becomes of a label that a table calls uncertain (CheXpert's -1)."""

    OUT = "out"
    YES = "yes"
    NO = "no"


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The names of a table's columns; None is found by its name."""

    image: str | None = None
    labels: tuple[str, ...] = ()
    question: str | None = None
    answer: str | None = None
    patient: str | None = None
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Take:
    """Which pictures of a volume, a series or a file of several frames.

    Attributes:
        count: so many, spread evenly; None takes all, 1 the middle one.
    """

    count: int | None = 1

    def places(self, of: int) -> list[int]:
        """Return the places of the chosen among `of` pictures, in order.

        They are the middles of `count` equal parts, so that one is the middle picture.
        """
        if self.count is None or self.count >= of:
            return list(range(of))
        return [(2 * part + 1) * of // (2 * self.count) for part in range(self.count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSettings:
    """The options of an import.

    Attributes:
        pictures: another folder in which the pictures lie.
        question: the template of the question about a label.
        patient_pattern: a regular expression; its first group in a picture's path is the patient.
        patients: False where every picture counts as a patient of its own.
        test: the share of the questions that a split of ours gives to the test.
        resplit: split anew, whatever the source says.
        leave_out_shared: leave training questions out whose patient or picture the test has, too.
        leave_out_bad: leave rows out that can't be used, instead of refusing all.
        axis: along which a NIfTI volume is cut: 0 sagittal, 1 coronal, 2 axial.
        classes: all labels that there are, also where no picture here has one; empty: those that
            are found.
        label_names: what labels are called, by what the source writes.
        language: of a data set that has questions in several.
        link: link pictures symbolically instead of copying them.

    Raises:
        DataError: a value is out of its range, or the pattern no regular expression with a group.
    """

    form: Form = Form.AUTO
    pictures: Path | None = None
    columns: Columns = Columns()
    question: str | None = None
    patient_pattern: str | None = None
    patients: bool = True
    test: float = 0.2
    seed: int = 0
    resplit: bool = False
    leave_out_shared: bool = False
    leave_out_bad: bool = False
    take: Take = Take()
    axis: int = 2
    modality: Modality | None = None
    uncertain: Uncertain = Uncertain.OUT
    label_names: Mapping[str, str] = field(default_factory=dict[str, str])
    classes: tuple[str, ...] = ()
    language: str = "en"
    link: bool = False
    workers: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.test < 1:
            raise DataError(f"--test: found {self.test}, expected a share between 0 and 1")
        if self.axis not in (0, 1, 2):
            raise DataError(f"--axis: found {self.axis}, expected 0, 1 or 2")
        if self.patient_pattern is not None:
            try:
                groups = re.compile(self.patient_pattern).groups
            except re.error as error:
                raise DataError(
                    f"--patient-pattern: found no regular expression ({error.msg}), expected one "
                    "with a group, such as 'patient(\\d+)'"
                ) from None
            if groups < 1:
                raise DataError(
                    "--patient-pattern: found no group, expected one in parentheses around what "
                    "names the patient, such as 'patient(\\d+)'"
                )
