"""The result of one run, and the folder of such results.

A result is one small JSON file named by its plan's digest. It is found by its plan as today's
code reads it, so that old results stay valid when plans get a new field with a default.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from common.durable import DISK, write_file
from common.errors import DataError, PlanError
from common.plan.file import parse_plan
from common.plan.plan import Plan

#: Fields that are lists of numbers in the file.
_PLAIN = frozenset(
    {
        "learned",
        "final",
        "errors",
        "balanced",
        "final_balanced",
        "chance",
        "majority",
        "among",
        "unseen",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentResult:
    """The result of one run.

    Attributes:
        plan: its plan.
        code: digest of the code that ran.
        learned: each task's measure when it was learned, fractions.
        final: the same after the last stage; None where it was not scored.
        answers: per task the measure of each answer when learned, and
        final_answers: after the last stage; empty where not scored.
        steps: optimizer steps of all stages and sites.
        seconds: the run's time, for orientation.
        bytes_up, bytes_down: on the wire, of all sites.
        errors: relative aggregation error of each release.
        pictures: per task the number of each answer's picture, to treat the questions of a
            picture as one sample; empty in results from before it was kept.
        balanced, final_balanced: per task the balanced accuracy when learned, and at the end.
        chance, majority: per task the measure of what has seen no picture: see no_picture.py.
        among: per task after the last stage the share of closed questions whose likeliest option
            is right; None where it was not scored, empty where no task was scored so.
        unseen: per task the measure at the end, the mean over the hospitals that trained nothing
            (and, of hospitals alone, over whose model answers); empty where there is none.
        matrix: task j's measure after stage i, where tasks are scored before they arrive, too
            (evaluation.future); None where not scored, empty in other runs.
    """

    plan: Plan
    code: str
    learned: tuple[float, ...]
    final: tuple[float | None, ...]
    answers: tuple[tuple[float, ...], ...]
    final_answers: tuple[tuple[float, ...], ...]
    steps: int
    seconds: float
    bytes_up: int
    bytes_down: int
    errors: tuple[float | None, ...]
    pictures: tuple[tuple[int, ...], ...] = ()
    balanced: tuple[float, ...] = ()
    final_balanced: tuple[float | None, ...] = ()
    chance: tuple[float, ...] = ()
    majority: tuple[float, ...] = ()
    among: tuple[float | None, ...] = ()
    unseen: tuple[float | None, ...] = ()
    matrix: tuple[tuple[float | None, ...], ...] = ()


class ResultsFolder:
    """The results of a folder, by their plans."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_plan: dict[str, ExperimentResult] = {}
        for file in sorted(folder.glob("*.json")):
            result = read_result(file)
            self._by_plan[result.plan.digest] = result

    def get(self, plan: Plan) -> ExperimentResult | None:
        """Return the plan's result, if it was run."""
        return self._by_plan.get(plan.digest)


def read_result(file: Path) -> ExperimentResult:
    """Read what `write_result` wrote.

    Raises:
        DataError: it can't be read as one.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        plan = parse_plan(document["plan"], str(file))
        fields = {name: document[name] for name in document if name != "plan"}
        fields["answers"] = tuple(_decoded(packed) for packed in fields["answers"])
        fields["final_answers"] = tuple(_decoded(packed) for packed in fields["final_answers"])
        fields["pictures"] = tuple(_pictures(packed) for packed in fields.get("pictures", ()))
        fields["matrix"] = tuple(tuple(row) for row in fields.get("matrix", ()))
        for name in _PLAIN & fields.keys():
            fields[name] = tuple(fields[name])
        return ExperimentResult(plan=plan, **fields)
    except (
        OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, PlanError
    ) as error:  # fmt: skip
        raise DataError(f"{file}: can't be read as a result ({error})") from None


def write_result(folder: Path, result: ExperimentResult) -> None:
    """Write a result, whole or not at all."""
    document = {
        name: getattr(result, name) for name in ExperimentResult.__slots__ if name != "plan"
    }
    document["answers"] = [_encoded(values) for values in result.answers]
    document["final_answers"] = [_encoded(values) for values in result.final_answers]
    document["pictures"] = [_packed(own) for own in result.pictures]
    # Without what has its default: another default later is another plan only if it was written.
    document["plan"] = json.loads(result.plan.canonical())
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, ensure_ascii=False, sort_keys=True) + "\n"
    write_file(folder / f"{result.plan.digest[:16]}.json", text.encode(), DISK)


def _encoded(values: Sequence[float]) -> Mapping[str, Any]:
    """Encode few distinct values as a letter for each answer: short, and exact."""
    distinct = sorted(set(values))
    letters = {value: chr(ord("0") + place) for place, value in enumerate(distinct)}
    return {"values": distinct, "answers": "".join(letters[value] for value in values)}


def _decoded(packed: Mapping[str, Any]) -> tuple[float, ...]:
    """Decode what `_encoded` made."""
    return tuple(packed["values"][ord(letter) - ord("0")] for letter in packed["answers"])


def _packed(pictures: Sequence[int]) -> list[int] | dict[str, list[int]]:
    """Encode pictures by the length of each run, where the questions of each follow each other."""
    runs = [(number, len([*own])) for number, own in groupby(pictures)]
    if [number for number, _ in runs] == [*range(len(runs))]:
        return [length for _, length in runs]
    return {"numbers": [*pictures]}


def _pictures(packed: list[int] | Mapping[str, list[int]]) -> tuple[int, ...]:
    """Decode what `_packed` made."""
    if isinstance(packed, Mapping):
        return tuple(packed["numbers"])
    return tuple(number for number, length in enumerate(packed) for _ in range(length))
