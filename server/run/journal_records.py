"""What the journal gives back: traffic, accepted updates, closed rounds."""

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import StateError
from common.exchange import Scores


@dataclass(frozen=True, slots=True)
class Traffic:
    """The bytes that one answered order cost at one site."""

    site: str
    work: str
    stage: int
    round: int
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True, slots=True)
class AcceptedUpdate:
    """An accepted update; its adapter is a blob of the run's folder.

    Attributes:
        adapter: the adapter's digest.
        prototype: the digest of its images' prototype, also a blob; None without one.
    """

    site: str
    examples: int
    steps: int
    loss: float
    regularizer: float
    seconds: float
    peak_memory: int
    adapter: str
    prototype: str | None = None


@dataclass(frozen=True, slots=True)
class ClosedRound:
    """The result of a round.

    Attributes:
        sites: training examples of each site that counted.
        refusals: why other sites did not count.
        adapter: digest of the merged adapter.
        error: what the aggregation discarded, relative to the exact mean (Frobenius); only of a
            stage's last round, whose adapter is released, else None.
    """

    sites: Mapping[str, int]
    refusals: tuple[str, ...]
    adapter: str
    error: float | None


def answer_of(work: str, header: str) -> AcceptedUpdate | Scores:
    """Return the answer to this work, by its header."""
    return accepted_update(header) if work == "train" else Scores.from_header(json.loads(header))


def accepted_update(header: str) -> AcceptedUpdate:
    """Return the update with this header."""
    fields: dict[str, Any] = json.loads(header)
    del fields["order"]
    return AcceptedUpdate(**fields)


def closed_round(sites: str, refusals: str, adapter: str, error: float | None) -> ClosedRound:
    """Return the round of this row; `sites` and `refusals` are JSON."""
    return ClosedRound(dict(json.loads(sites)), tuple(json.loads(refusals)), adapter, error)


@contextmanager
def row_errors(file: Path) -> Generator[None]:
    """Read rows of the journal `file`: raise a StateError where one is no answer and no round."""
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(
            f"{file}: found a row that was damaged ({type(error).__name__}), expected an answer "
            "or a round; restore it from a backup, or begin anew in another folder"
        ) from None
