"""The messages between coordinator and sites: orders, updates, scores and a few others.

Each is a JSON header and named blobs of bytes (common/wire.py). An order names every blob that it
needs by its digest; a blob is sent only to a site that lacks it, so a plan and a release go to
each site once. What a site sends is numbers, its pseudonym, digests and a prototype, and no free
text: no patient data, no file name, no image path.
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
from common.work import Work


class Reason(StrEnum):
    """Why a site refuses an order. Only the member's name is sent."""

    CODE = "its code is not the coordinator's"
    BASE_MODEL = "its base model is not the plan's"
    PLAN = "it has not approved this plan"
    MODALITY = "its policy does not allow this modality"
    ALONE = "its policy does not allow training alone"
    ROUNDS = "its policy does not allow so many rounds"
    EXAMPLES = "it has fewer examples than its policy asks for"
    RELEASED = "the stage is already released"
    BANK = "the order's bank does not continue the bank that it knows"
    SEEN = "it has begun this order with another start or candidate"
    SCORED = "its policy does not allow to score a task so often"
    LAYOUT = "an adapter of the order is not laid out as the plan says"
    QUESTIONS = "it has fewer test questions than its policy asks for"
    FORMAT = "the order can't be read"
    DISK = "its disk is full"


@dataclass(frozen=True, slots=True)
class ReleaseRef:
    """A reference to a release: its stage, and the digest of its adapter or its prototype."""

    stage: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a site is asked to do. An order may be repeated: equal orders have equal answers.

    Attributes:
        plan: digest of the plan's canonical JSON.
        stage: the stage (0-based) whose task is trained or scored.
        round: 1-based round of the stage; 0 in an evaluation, and where a site trains alone.
        releases: the bank so far, oldest first.
        active: the stages of `releases` that are summed into the model.
        adapter: digest of the stage's adapter so far (safetensors), on top of `active`;
            None in a first round, where the method says what to start from. It may be a part.
        base: digest of the stage's whole adapter, where the part is the R of its layers.
        code: digest of the coordinator's code; a site with another one refuses.
        prototypes: image prototypes by stage. If not empty, each question is answered with the
            releases that the stage of the nearest prototype sums, and `active` is not used.
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
    base: str | None = None

    def header(self) -> dict[str, Any]:
        """Return the order as JSON values, which its digest covers."""
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
            **({"base": self.base} if self.base else {}),
        }

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> "Order":
        """Read what `header` returned.

        Raises:
            KeyError, TypeError, ValueError: it is no order.
        """
        fields = typed({"prototypes": [], "base": None, **header}, _ORDER_FIELDS)
        fields["work"] = Work(fields["work"])
        for name in ("releases", "prototypes"):
            fields[name] = tuple(ReleaseRef(stage, digest) for stage, digest in fields[name])
        fields["active"] = tuple(fields["active"])
        return cls(**fields)

    @property
    def digest(self) -> str:
        """SHA-256 of the header; replies refer to the order by it."""
        return sha256(canonical_json(self.header()).encode())

    @property
    def needs(self) -> tuple[str, ...]:
        """The digests of all blobs that the work needs: plan, releases, prototypes, adapter."""
        adapters = (digest for digest in (self.base, self.adapter) if digest is not None)
        refs = (*self.releases, *self.prototypes)
        return (self.plan, *(ref.sha256 for ref in refs), *adapters)


_ORDER_FIELDS: Mapping[str, Any] = {
    "work": str, "plan": str, "stage": int, "round": int, "releases": list, "active": list,
    "adapter": (str, type(None)), "code": str, "prototypes": list, "base": (str, type(None)),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """An order as it is sent to one site.

    Attributes:
        blobs: those of `order.needs` that the site seems to lack, by digest.
        wait_s: how long the site may take for its answer before it replies that it is still
            working; 0 asks for a reply at once.
    """

    order: Order
    blobs: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    wait_s: float = 0.0

    def to_record(self) -> RecordDict:
        """Return the delivery as the content of a Flower message."""
        return to_record({"order": self.order.header(), "wait_s": self.wait_s}, self.blobs)

    @classmethod
    def from_record(cls, record: RecordDict) -> "Delivery":
        """Read what `to_record` returned.

        Raises:
            SiteFailed: it can't be read, or a blob doesn't match its digest.
        """
        try:
            header, blobs = from_record(record)
            order, times = Order.from_header(header["order"]), typed(header, {"wait_s": float})
        except UNREADABLE as error:
            raise SiteFailed(f"found an order that can't be read ({error!r})") from None
        for digest, blob in blobs.items():
            check_digest("a blob", blob, digest)
        return cls(order=order, blobs=blobs, **times)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """The result of a site's training in one round.

    Attributes:
        order: digest of the order that it answers.
        site: the site's pseudonym.
        examples: number of training examples, its weight in the mean.
        steps: number of optimizer steps.
        loss: mean training loss of the round, cross-entropy in nats.
        regularizer: mean value of the regularizer over the round, with the proximal term.
        adapter: the improved adapter, safetensors.
        seconds: wall time of the work at the site.
        peak_memory: largest resident memory of the site's process so far, in bytes.
        prototype: image prototype (common/router/image_prototype.py), where the plan has a router
            and the site has enough images; None otherwise.
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
        """Return the blobs by the names under which the header has their digests."""
        prototype = {} if self.prototype is None else {"prototype": self.prototype}
        return {"adapter": self.adapter, **prototype}

    def header(self) -> dict[str, Any]:
        """Return the update as JSON values, with the digests of its blobs."""
        fields = {name: getattr(self, name) for name in _UPDATE_FIELDS}
        return fields | {name: sha256(blob) for name, blob in self.blobs().items()}

    def to_record(self) -> RecordDict:
        """Return the update as the content of a Flower message."""
        return to_record({"kind": "update", **self.header()}, self.blobs())

    @classmethod
    def from_parts(
        cls, header: Mapping[str, Any], adapter: bytes | None, prototype: bytes | None = None
    ) -> "Update":
        """Make the update of this header and these blobs.

        Raises:
            SiteFailed: the adapter or the prototype does not match the header's digest.
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
    """A model's metrics on one site's test questions; they hold no single answer.

    Attributes:
        order: digest of the order that it answers.
        site: the site's pseudonym.
        questions: number of test questions.
        metrics: each a fraction of 0 to 1: `task_metrics` and, if asked for, `OPTION_METRICS`
            (common/metrics.py); with a router, `ROUTER_METRICS`.
        majority: the same metrics of the majority baseline: each question's most frequent
            training answer.
    """

    order: str
    site: str
    questions: int
    metrics: Mapping[str, float]
    majority: Mapping[str, float]

    def header(self) -> dict[str, Any]:
        """Return the scores as JSON values."""
        fields = {name: getattr(self, name) for name in _SCORES_FIELDS}
        return fields | {"metrics": dict(self.metrics), "majority": dict(self.majority)}

    def to_record(self) -> RecordDict:
        """Return the scores as the content of a Flower message."""
        return to_record({"kind": "scores", **self.header()})

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> "Scores":
        """Read what `header` returned."""
        for metrics in (header["metrics"], header["majority"]):
            typed(metrics, dict.fromkeys(metrics, float))
        return cls(**typed(header, _SCORES_FIELDS))


_SCORES_FIELDS: Mapping[str, type] = {
    "order": str, "site": str, "questions": int, "metrics": dict, "majority": dict,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Working:
    """A reply: the site is working on the order; ask again.

    Attributes:
        step: optimizer steps done, of `steps`; both are 0 before the first.
    """

    order: str
    site: str
    step: int
    steps: int

    def to_record(self) -> RecordDict:
        """Return the reply as the content of a Flower message."""
        return to_record({"kind": "working", **{name: getattr(self, name) for name in _WORKING}})


_WORKING: Mapping[str, type] = {"order": str, "site": str, "step": int, "steps": int}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacks:
    """A reply: the site needs the blobs of these digests to begin."""

    order: str
    site: str
    digests: tuple[str, ...]

    def to_record(self) -> RecordDict:
        """Return the reply as the content of a Flower message."""
        header = {"order": self.order, "site": self.site, "digests": list(self.digests)}
        return to_record({"kind": "lacks", **header})


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A reply: the site refuses the order, or its work failed.

    It has the class of the error, and never its text, which may name files or patients: that stays
    in the site's own log, under `reference`.

    Attributes:
        reason: why the site refuses the order; None where its work failed.
    """

    site: str
    error: str
    reference: str
    reason: Reason | None = None

    def to_record(self) -> RecordDict:
        """Return the failure as the content of a Flower message."""
        return to_record({"kind": "failure", **self.header()})

    def header(self) -> dict[str, Any]:
        """Return the failure as JSON values."""
        reason = None if self.reason is None else self.reason.name
        return {"error": self.error, "site": self.site, "ref": self.reference, "reason": reason}

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> "Failure":
        """Read what `header` returned."""
        fields = typed(header, {"site": str, "error": str, "ref": str})
        reason = None if header["reason"] is None else Reason[header["reason"]]
        return cls(
            site=fields["site"], error=fields["error"], reference=fields["ref"], reason=reason
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """A site's introduction: its pseudonym, its code's digest, and the blobs that it has."""

    site: str
    code: str
    holds: tuple[str, ...]

    def to_record(self) -> RecordDict:
        """Return the introduction as the content of a Flower message."""
        return to_record({"site": self.site, "code": self.code, "holds": list(self.holds)})

    @classmethod
    def from_record(cls, record: RecordDict) -> "Presence":
        """Read what `to_record` returned.

        Raises:
            SiteFailed: it is no introduction.
        """
        try:
            header, _ = from_record(record)
            fields = typed(header, {"site": str, "code": str, "holds": list})
            holds = texts(fields["holds"])
        except UNREADABLE as error:
            found = type(error).__name__
            raise SiteFailed(f"found a message that can't be read ({found})") from None
        return cls(site=fields["site"], code=fields["code"], holds=holds)


#: A reply that completes an order.
Answer: TypeAlias = Update | Scores
#: A site's reply to a delivery.
Reply: TypeAlias = Update | Scores | Working | Lacks | Failure


def read_reply(record: RecordDict) -> Reply:
    """Read a site's reply to a delivery, of whichever kind.

    Raises:
        SiteFailed: it can't be read, or a blob doesn't match its digest.
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
                fields = typed(header, {"order": str, "site": str, "digests": list})
                digests = texts(fields["digests"])
                return Lacks(order=fields["order"], site=fields["site"], digests=digests)
            case "failure":
                return Failure.from_header(header)
            case kind:
                raise ValueError(kind)
    except UNREADABLE as error:
        found = type(error).__name__
        raise SiteFailed(f"found a message that can't be read ({found})") from None
