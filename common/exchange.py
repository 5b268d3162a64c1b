"""Order, Update and Scores, and their wire form: nothing else travels.

A message is one JSON header (Flower's ConfigRecord) and named blobs of bytes
(an ArrayRecord). No text that a site wrote is among them but numbers, its pseudonym
and digests: no patient data, no file name, no image path.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, TypeAlias

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common.errors import SiteFailed
from common.identity import canonical_json, sha256


class Work(StrEnum):
    """What an order asks for."""

    TRAIN = "train"
    EVALUATE = "evaluate"


@dataclass(frozen=True, slots=True)
class ReleaseRef:
    """A release that an order builds on: which stage it was, and its adapter's digest."""

    stage: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a site is asked to do. Equal orders have equal answers, so it may be asked twice.

    Attributes:
        plan: the plan's canonical JSON.
        stage: the stage (0-based) whose task is trained or scored.
        round: 1-based round of the stage; 0 in an evaluation.
        releases: the bank so far, oldest first.
        active: the stages of `releases` that are summed into the model.
        adapter: the stage's adapter so far (safetensors), on top of `active`;
            None in a first round, where the method says what to start from.
        code: digest of the coordinator's code; a site with another refuses.
        carried: adapters of `releases` that this site lacks, by digest. Not part of the
            order's identity.
    """

    work: Work
    plan: str
    stage: int
    round: int
    releases: tuple[ReleaseRef, ...]
    active: tuple[int, ...]
    adapter: bytes | None
    code: str
    carried: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))

    def header(self) -> dict[str, Any]:
        """The order without its blobs: what its digest covers."""
        return {
            "work": self.work,
            "plan": self.plan,
            "stage": self.stage,
            "round": self.round,
            "releases": [[ref.stage, ref.sha256] for ref in self.releases],
            "active": list(self.active),
            "adapter": None if self.adapter is None else sha256(self.adapter),
            "code": self.code,
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the header; an answer names it."""
        return sha256(canonical_json(self.header()).encode())

    def to_record(self) -> RecordDict:
        """The order as Flower's content of a message."""
        blobs = dict(self.carried)
        if self.adapter is not None:
            blobs["adapter"] = self.adapter
        return _record(self.header(), blobs)

    @classmethod
    def from_record(cls, record: RecordDict) -> "Order":
        """Read what `to_record` wrote; blobs that don't match their digest are refused."""
        header, blobs = _parts(record)
        adapter = blobs.pop("adapter", None)
        _check_digest("adapter", adapter, header["adapter"])
        for digest, blob in blobs.items():
            _check_digest("release", blob, digest)
        return cls(
            work=Work(header["work"]),
            plan=header["plan"],
            stage=header["stage"],
            round=header["round"],
            releases=tuple(ReleaseRef(stage, digest) for stage, digest in header["releases"]),
            active=tuple(header["active"]),
            adapter=adapter,
            code=header["code"],
            carried=blobs,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What a site learned in one round.

    Attributes:
        order: digest of the order it answers.
        site: the site's pseudonym.
        examples: training examples it used, its weight in the mean.
        steps: optimizer steps it made.
        loss: mean training loss of the round, cross-entropy in nats.
        regularizer: mean value of the regularizer over the round.
        adapter: the improved adapter, safetensors.
        seconds: wall time of the work at the site.
        peak_memory: largest resident memory of the site's process so far, in bytes.
    """

    order: str
    site: str
    examples: int
    steps: int
    loss: float
    regularizer: float
    adapter: bytes
    seconds: float = 0.0
    peak_memory: int = 0

    def to_record(self) -> RecordDict:
        """The update as Flower's content of a message."""
        header = {name: getattr(self, name) for name in _UPDATE_FIELDS}
        return _record({**header, "adapter": sha256(self.adapter)}, {"adapter": self.adapter})

    @classmethod
    def from_record(cls, record: RecordDict) -> "Update":
        """Read what `to_record` wrote; an adapter that doesn't match its digest is refused."""
        header, blobs = _parts(record)
        _check_digest("adapter", blobs.get("adapter"), header["adapter"])
        return cls(adapter=blobs["adapter"], **_typed(header, _UPDATE_FIELDS))


_UPDATE_FIELDS: Mapping[str, type] = {
    "order": str, "site": str, "examples": int, "steps": int, "loss": float,
    "regularizer": float, "seconds": float, "peak_memory": int,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How a model did on one site's test questions: sums and counts, never an answer.

    Attributes:
        order: digest of the order it answers.
        site: the site's pseudonym.
        questions: test questions that were scored.
        metrics: each a fraction of 0 to 1 (common/metrics.py `task_metrics`).
        majority: the same metrics for the most frequent training answer of each question.
    """

    order: str
    site: str
    questions: int
    metrics: Mapping[str, float]
    majority: Mapping[str, float]

    def to_record(self) -> RecordDict:
        """The scores as Flower's content of a message."""
        return _record(
            {
                "order": self.order,
                "site": self.site,
                "questions": self.questions,
                "metrics": dict(self.metrics),
                "majority": dict(self.majority),
            },
            {},
        )

    @classmethod
    def from_record(cls, record: RecordDict) -> "Scores":
        """Read what `to_record` wrote."""
        header, _ = _parts(record)
        for metrics in (header["metrics"], header["majority"]):
            _typed(metrics, dict.fromkeys(metrics, float))
        return cls(**_typed(header, _SCORES_FIELDS))


_SCORES_FIELDS: Mapping[str, type] = {
    "order": str, "site": str, "questions": int, "metrics": dict, "majority": dict,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """What a site says of itself when asked: its pseudonym, its code, the releases it holds."""

    site: str
    code: str
    holds: tuple[str, ...]

    def to_record(self) -> RecordDict:
        """The answer as Flower's content of a message."""
        return _record({"site": self.site, "code": self.code, "holds": list(self.holds)}, {})

    @classmethod
    def from_record(cls, record: RecordDict) -> "Presence":
        """Read what `to_record` wrote."""
        header, _ = _parts(record)
        return cls(site=header["site"], code=header["code"], holds=tuple(header["holds"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A site could not do what was asked: the class of the error, never its text.

    The text may name files or patients, so it stays in the site's own log, under `reference`.
    """

    site: str
    error: str
    reference: str

    def to_record(self) -> RecordDict:
        """The failure as Flower's content of a message."""
        return _record({"failure": self.error, "site": self.site, "ref": self.reference}, {})


#: What a site may answer an order with.
Answer: TypeAlias = Update | Scores


def read_answer(record: RecordDict) -> Update | Scores | Failure:
    """The site's answer to an order, whichever it is.

    Raises:
        SiteFailed: it is none of them, or its adapter doesn't match its digest.
    """
    try:
        header, _ = _parts(record)
        if "failure" in header:
            return Failure(site=header["site"], error=header["failure"], reference=header["ref"])
        return Update.from_record(record) if "adapter" in header else Scores.from_record(record)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        found = type(error).__name__
        raise SiteFailed(f"found a message that can't be read ({found})") from None


def wire_bytes(record: RecordDict) -> int:
    """Bytes of the blobs and the header of a message."""
    header, blobs = _parts(record)
    return len(canonical_json(header)) + sum(map(len, blobs.values()))


def _record(header: Mapping[str, Any], blobs: Mapping[str, bytes]) -> RecordDict:
    # One blob an array: hundreds of small arrays cost four times as long (measured).
    arrays = {
        name: Array("uint8", (len(blob),), "safetensors", blob) for name, blob in blobs.items()
    }
    return RecordDict(
        {
            "header": ConfigRecord({"json": canonical_json(header)}),
            "blobs": ArrayRecord(arrays),
        }
    )


def _parts(record: RecordDict) -> tuple[dict[str, Any], dict[str, bytes]]:
    header = json.loads(str(record.config_records["header"]["json"]))
    return header, {name: array.data for name, array in record.array_records["blobs"].items()}


def _typed(header: Mapping[str, Any], fields: Mapping[str, type]) -> dict[str, Any]:
    """The fields of a header, each of its type; JSON writes some floats as whole numbers."""
    for name, kind in fields.items():
        kinds = (int, float) if kind is float else kind
        if not isinstance(header[name], kinds):
            raise TypeError(name)
    return {name: header[name] for name in fields}


def _check_digest(what: str, blob: bytes | None, expected: str | None) -> None:
    found = None if blob is None else sha256(blob)
    if found != expected:
        raise SiteFailed(f"the {what} of a message has the digest {found}, expected {expected}")
