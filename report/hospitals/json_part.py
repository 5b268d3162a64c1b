"""What every hospital gains, in report.json: the field `hospitals` and those beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from common.errors import DataError
from report.hospitals.model import HospitalsReport
from report.json_file import REPORT_FILE, read_document

_REPORT: TypeAdapter[HospitalsReport] = TypeAdapter(HospitalsReport)
#: The names in report.json of the parts of a `HospitalsReport`.
_FIELDS: Mapping[str, str] = {
    "hospitals": "hospitals",
    "all_hospitals": "together",
    "hospital_curves": "curves",
}
#: Where report.json has the method and the seeds that the others are of.
_OF = "hospitals_of"


def hospitals_document(hospitals: HospitalsReport) -> dict[str, Any]:
    """Return the fields of report.json that say what every hospital gains."""
    values: dict[str, Any] = _REPORT.dump_python(hospitals, mode="json")
    document = {name: values[field] for name, field in _FIELDS.items()}
    return document | {_OF: {name: values[name] for name in ("method", "seeds", "rates")}}


def read_hospitals(folder: Path) -> HospitalsReport | None:
    """Read what every hospital gains from a report's folder; None if it was not measured.

    Raises:
        DataError: there is no report, or a field is missing or wrong.
    """
    document = read_document(folder)
    if _OF not in document:
        return None
    try:
        values = {field: document.get(name) for name, field in _FIELDS.items()}
        return _REPORT.validate_python({**values, **document[_OF]})
    except (ValidationError, TypeError) as error:
        where = "hospitals"
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or where
        raise DataError(f"{folder / REPORT_FILE}, {where}: found what is no such part") from None
