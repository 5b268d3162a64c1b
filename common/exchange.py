"""Order, Update and Scores, and what else a message can be: nothing else travels.

Each is a JSON header and named blobs of bytes (common/wire.py). An order names every blob it
needs by its digest; a blob travels only to a site that lacks it, so a plan and a release go to
each site once. No text that a site wrote is among them but numbers, its pseudonym and digests:
no patient data, no file name, no image path.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, TypeAlias

from flwr.app import RecordDict

from common.errors import SiteFailed
from common.identity import canonical_json, sha256
from common.wire import UNREADABLE, check_digest, from_record, texts, to_record, typed

#: The shares of the test's pictures that a router sent to the task's own stage, and to a stage
#: of its modality.
ROUTER_STAGE, ROUTER_MODALITY = "router_stage", "router_modality"


class Work(StrEnum):
    """What an order asks for."""

    TRAIN = "train"
    EVALUATE = "evaluate"


class Reason(StrEnum):
    """Why a site refuses an order, in words that may leave it."""

    CODE = "its code is not the coordinator's"
    BASE_MODEL = "its base model is not the plan's"
    PLAN = "it has not approved this plan"
    MODALITY = "its policy does not allow this modality"
    ROUNDS = "its policy does not allow so many rounds"
    EXAMPLES = "it has fewer examples than its policy asks for"
    RELEASED = "the stage is already released"
    BANK = "the order's bank does not continue the bank that it knows"
    FORMAT = "the order can't be read"


@dataclass(frozen=True, slots=True)
class ReleaseRef:
    """A release that an order builds on: which stage it was, and its adapter's digest."""

    stage: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a site is asked to do. Equal orders have equal answers, so it may be asked twice.

    Attributes:
        plan: digest of the plan's canonical JSON.
        stage: the stage (0-based) whose task is trained or scored.
        round: 1-based round of the stage; 0 in an evaluation.
        releases: the bank so far, oldest first.
        active: the stages of `releases` that are summed into the model.
        adapter: digest of the stage's adapter so far (safetensors), on top of `active`;
            None in a first round, where the method says what to start from.
        code: digest of the coordinator's code; a site with another refuses.
        prototypes: where not empty, each question is answered by the stage, of these, whose
            prototype its picture is nearest to, with all that this stage sums; `active` is
            not used.
    """

    work: Work
    plan: str
    stage: int
    round: int
    releases: tuple[ReleaseRef, ...]
    active: tuple[int, ...]
    adapter: str | None
    code: str
    prototypes: tuple[ReleaseRef, ...] = ()

    def header(self) -> dict[str, Any]:
        """The order as JSON: what its digest covers."""
        routed = [[ref.stage, ref.sha256] for ref in self.prototypes]
        return {
            "work": self.work,
            "plan": self.plan,
            "stage": self.stage,
            "round": self.round,
            "releases": [[ref.stage, ref.sha256] for ref in self.releases],
            "active": list(self.active),
            "adapter": self.adapter,
            "code": self.code,
            **({"prototypes": routed} if routed else {}),
        }

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> "Order":
        """The order whose `header` this is.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        fields = typed({"prototypes": [], **header}, _ORDER_FIELDS)
        fields["work"] = Work(fields["work"])
        for name in ("releases", "prototypes"):
            fields[name] = tuple(ReleaseRef(stage, digest) for stage, digest in fields[name])
        fields["active"] = tuple(fields["active"])
        return cls(**fields)

    @property
    def digest(self) -> str:
        """SHA-256 of the header; an answer names it."""
        return sha256(canonical_json(self.header()).encode())

    @property
    def needs(self) -> tuple[str, ...]:
        """The digests of all blobs that its work needs: the plan, the bank, the adapter."""
        adapter = () if self.adapter is None else (self.adapter,)
        refs = (*self.releases, *self.prototypes)
        return (self.plan, *(ref.sha256 for ref in refs), *adapter)


_ORDER_FIELDS: Mapping[str, Any] = {
    "work": str, "plan": str, "stage": int, "round": int, "releases": list, "active": list,
    "adapter": (str, type(None)), "code": str, "prototypes": list,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """An order on its way to one site.

    Attributes:
        blobs: what the site is thought to lack of `order.needs`, by digest.
        wait_s: how long the site may wait for its own answer before it says that it is
            still working. 0 asks without waiting.
    """

    order: Order
    blobs: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    wait_s: float = 0.0

    def to_record(self) -> RecordDict:
        """The delivery as Flower's content of a message."""
        return to_record({"order": self.order.header(), "wait_s": self.wait_s}, self.blobs)

    @classmethod
    def from_record(cls, record: RecordDict) -> "Delivery":
        """Read what `to_record` wrote.

        Raises:
            SiteFailed: it can't be read, or a blob doesn't match its digest.
        """
        try:
            header, blobs = from_record(record)
            order, wait_s = Order.from_header(header["order"]), float(header["wait_s"])
        except UNREADABLE as error:
            raise SiteFailed(f"found an order that can't be read ({error!r})") from None
        for digest, blob in blobs.items():
            check_digest("a blob", blob, digest)
        return cls(order=order, blobs=blobs, wait_s=wait_s)


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
        prototype: of the stage's pictures (common/image_prototype.py), where the plan wants one and
            the site has pictures enough; None otherwise.
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
    prototype: bytes | None = None

    def blobs(self) -> dict[str, bytes]:
        """What travels beside the header, by the name under which the header has its digest."""
        prototype = {} if self.prototype is None else {"prototype": self.prototype}
        return {"adapter": self.adapter, **prototype}

    def header(self) -> dict[str, Any]:
        """The update without its blobs, whose digests it has."""
        fields = {name: getattr(self, name) for name in _UPDATE_FIELDS}
        return fields | {name: sha256(blob) for name, blob in self.blobs().items()}

    def to_record(self) -> RecordDict:
        """The update as Flower's content of a message."""
        return to_record({"kind": "update", **self.header()}, self.blobs())

    @classmethod
    def from_parts(
        cls, header: Mapping[str, Any], adapter: bytes | None, prototype: bytes | None = None
    ) -> "Update":
        """The update of this `header`.

        Raises:
            SiteFailed: the adapter or the prototype is not the one that the header names.
        """
        check_digest("the adapter", adapter, header["adapter"])
        check_digest("the prototype", prototype, header.get("prototype"))
        fields = typed(header, _UPDATE_FIELDS)
        return cls(adapter=adapter or b"", prototype=prototype, **fields)


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
            Where pictures chose their stage, `ROUTER_STAGE` and `ROUTER_MODALITY` among them.
        majority: the same metrics for the most frequent training answer of each question.
    """

    order: str
    site: str
    questions: int
    metrics: Mapping[str, float]
    majority: Mapping[str, float]

    def header(self) -> dict[str, Any]:
        """The scores as JSON."""
        fields = {name: getattr(self, name) for name in _SCORES_FIELDS}
        return fields | {"metrics": dict(self.metrics), "majority": dict(self.majority)}

    def to_record(self) -> RecordDict:
        """The scores as Flower's content of a message."""
        return to_record({"kind": "scores", **self.header()})

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> "Scores":
        """Read what `header` wrote."""
        for metrics in (header["metrics"], header["majority"]):
            typed(metrics, dict.fromkeys(metrics, float))
        return cls(**typed(header, _SCORES_FIELDS))


_SCORES_FIELDS: Mapping[str, type] = {
    "order": str, "site": str, "questions": int, "metrics": dict, "majority": dict,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Working:
    """The site has the order and is not done: ask again.

    Attributes:
        step: optimizer steps done of `steps`; both 0 before the first.
    """

    order: str
    site: str
    step: int
    steps: int

    def to_record(self) -> RecordDict:
        """The news as Flower's content of a message."""
        return to_record({"kind": "working", **{name: getattr(self, name) for name in _WORKING}})


_WORKING: Mapping[str, type] = {"order": str, "site": str, "step": int, "steps": int}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacks:
    """The site can't begin the order without the blobs of these digests."""

    order: str
    site: str
    digests: tuple[str, ...]

    def to_record(self) -> RecordDict:
        """The question as Flower's content of a message."""
        header = {"order": self.order, "site": self.site, "digests": list(self.digests)}
        return to_record({"kind": "lacks", **header})


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A site could not or would not do what was asked: the class of the error, never its text.

    The text may name files or patients, so it stays in the site's own log, under `reference`.

    Attributes:
        reason: why, where the site refuses the order itself; None where its work failed.
    """

    site: str
    error: str
    reference: str
    reason: Reason | None = None

    def to_record(self) -> RecordDict:
        """The failure as Flower's content of a message."""
        return to_record({"kind": "failure", **self.header()})

    def header(self) -> dict[str, Any]:
        """The failure as JSON."""
        reason = None if self.reason is None else self.reason.name
        return {"error": self.error, "site": self.site, "ref": self.reference, "reason": reason}

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> "Failure":
        """Read what `header` wrote."""
        text = typed(header, {"site": str, "error": str, "ref": str})
        reason = None if header["reason"] is None else Reason[header["reason"]]
        return cls(site=text["site"], error=text["error"], reference=text["ref"], reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """What a site says of itself when asked: its pseudonym, its code, the blobs it holds."""

    site: str
    code: str
    holds: tuple[str, ...]

    def to_record(self) -> RecordDict:
        """The answer as Flower's content of a message."""
        return to_record({"site": self.site, "code": self.code, "holds": list(self.holds)})

    @classmethod
    def from_record(cls, record: RecordDict) -> "Presence":
        """Read what `to_record` wrote.

        Raises:
            SiteFailed: it is something else.
        """
        try:
            header, _ = from_record(record)
            fields = typed(header, {"site": str, "code": str, "holds": list})
            holds = texts(fields["holds"])
        except UNREADABLE as error:
            found = type(error).__name__
            raise SiteFailed(f"found a message that can't be read ({found})") from None
        return cls(site=fields["site"], code=fields["code"], holds=holds)


#: What ends an order.
Answer: TypeAlias = Update | Scores
#: What a site may reply to a delivery.
Reply: TypeAlias = Update | Scores | Working | Lacks | Failure


def read_reply(record: RecordDict) -> Reply:
    """The site's reply to a delivery, whichever it is.

    Raises:
        SiteFailed: it is none, or a blob of it doesn't match its digest.
    """
    try:
        header, blobs = from_record(record)
        match header["kind"]:
            case "update":
                return Update.from_parts(header, blobs.get("adapter"), blobs.get("prototype"))
            case "scores":
                return Scores.from_header(header)
            case "working":
                return Working(**typed(header, _WORKING))
            case "lacks":
                told = typed(header, {"order": str, "site": str, "digests": list})
                digests = texts(told["digests"])
                return Lacks(order=told["order"], site=told["site"], digests=digests)
            case "failure":
                return Failure.from_header(header)
            case kind:
                raise ValueError(kind)
    except UNREADABLE as error:
        found = type(error).__name__
        raise SiteFailed(f"found a message that can't be read ({found})") from None
