"""Reading of a pickled list of plain values; a file that would run code is refused."""

import pickle
from pathlib import Path
from typing import Any, NoReturn, cast

from common.errors import DataError


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, dictionaries, texts and numbers, which need no code of anybody."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise pickle.UnpicklingError("code")


def read_plain_pickle(file: Path, name: str) -> list[object]:
    """Return the list that a file holds.

    Raises:
        DataError: it is not one, or holds anything but plain values.
    """
    try:
        with file.open("rb") as opened:
            value: Any = _PlainUnpickler(opened, encoding="utf-8").load()
    # A damaged file raises nearly anything.
    except Exception as error:
        found = "code" if str(error) == "code" else f"damage ({type(error).__name__})"
        raise DataError(
            f"{name}: found {found} in a pickle, expected a list of plain records"
        ) from None
    if not isinstance(value, list):
        raise DataError(f"{name}: found a pickle of something else, expected a list of records")
    return cast(list[object], value)
