"""A site's own file: where its data, base model and store are. It never travels."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from common.errors import SiteFailed


class Device(StrEnum):
    """Where a site computes; `auto` takes a GPU where there is one."""

    CPU = "cpu"
    CUDA = "cuda"
    AUTO = "auto"


class Site(BaseModel):
    """One site. Paths in a site file are relative to the file.

    Attributes:
        name: its pseudonym, the one thing here that others learn.
        data: folder that holds one folder for each task.
        base_model: folder of the frozen model.
        store: folder for releases and answers; made where it is missing.
        threads: CPU threads of the training; the results' last bits depend on it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
    data: Path
    base_model: Path
    store: Path
    device: Device
    threads: Annotated[int, Field(ge=1)]


def load_site(file: Path) -> Site:
    """Read and check a site file.

    Raises:
        SiteFailed: one sentence for each mistake.
    """
    try:
        document: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SiteFailed(f"{file}: can't be read as a site file ({reason})") from None
    except yaml.YAMLError as error:
        raise SiteFailed(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise SiteFailed(f"{file}: found {document!r}, expected the fields of a site")
    return _checked(_placed(cast(dict[str, Any], document), file.parent), file)


def _placed(document: dict[str, Any], beside: Path) -> dict[str, Any]:
    """Paths and the device as what they mean; whatever has the wrong type is left alone."""
    read = dict(document)
    for name in ("data", "base_model", "store"):
        if isinstance(read.get(name), str):
            read[name] = beside / Path(read[name]).expanduser()
    if read.get("device") in list(Device):
        read["device"] = Device(read["device"])
    return read


def _checked(document: dict[str, Any], file: Path) -> Site:
    try:
        return Site.model_validate(document)
    except ValidationError as error:
        lines = [
            f"{file}, {'.'.join(map(str, detail['loc']))}: {_mistake(detail)}"
            for detail in error.errors()
        ]
    raise SiteFailed("\n".join(lines))


def _mistake(detail: ErrorDetails) -> str:
    kind, kinds = detail["type"], ", ".join(repr(str(device)) for device in Device)
    if kind == "extra_forbidden":
        known = ", ".join(Site.model_fields)
        return f"found an unknown field, expected only {known}"
    if kind == "missing":
        return "found nothing, expected a value (it has no default)"
    expected = {
        "is_instance_of": f"one of {kinds}" if detail["loc"] == ("device",) else "a path",
        "string_pattern_mismatch": "a pseudonym of a-z, 0-9, - and _, at most 40 long",
        "greater_than_equal": "at least 1",
        "int_type": "a whole number",
    }.get(kind, detail["msg"])
    return f"found {detail['input']!r}, expected {expected}"
