"""The JSON files of a bank: release.json of each release, and the index bank.json.

Their bytes depend on their content alone, not on time or machine: equal runs give equal bytes,
and every changed byte is found.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from common.errors import BankError
from common.identity import canonical_json, sha256
from common.plan_fields import (
    BaseModelPin,
    BodyParts,
    ClassName,
    Modality,
    Questions,
    Slug,
    TaskName,
)
from common.signing import verify_signature

#: The version of the folder's layout; a reader refuses any other.
FORMAT: Literal[1] = 1
INDEX_FILE = "bank.json"
RELEASE_FILE = "release.json"
ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PROTOTYPE_FILE = "prototype.safetensors"
#: Beside an exported adapter: its method's own arrays.
EXTRAS_FILE = "extras.safetensors"

Digest: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Signature: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
Position: TypeAlias = Annotated[int, Field(ge=0)]
_Document = TypeVar("_Document")
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfReported:
    """What a site says of itself with a stage, and nobody else can check.

    Attributes:
        examples: training examples; 0 where no update of it counted.
        questions: test questions; 0 where it gave no scores.
        scores: the task's metrics after this stage, on its own test questions.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    examples: Annotated[int, Field(ge=0)]
    questions: Annotated[int, Field(ge=0)]
    scores: Mapping[str, float]

    def content(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        scores = {metric: float(score) for metric, score in self.scores.items()}
        return {"examples": self.examples, "questions": self.questions, "scores": scores}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A release before the bank appends it: what the coordinator knows of an adapter.

    Attributes:
        stage: 0-based position in the bank.
        parent: hash of the release before, or the bank's genesis.
        plan: the plan's digest; of an imported release, the digest of its source files.
        sums: positions of the releases that are summed to answer this one's task, itself last.
        sites: number of training examples by site.
        rule: name of the aggregation rule, which this version may no longer have.
        error: relative error of the aggregation, |mean - adapter| / |mean| (Frobenius).
        scores: the task's metrics after this stage.
        code: digest of the code that trained it, or that imported it.
        prototype: the stage's image prototype as bytes (common/router/image_prototype.py); None
            where no site sent one.
        classes: the names of the task's classes, in the order of the adapter's rows of them; None
            where answers are free.
        self_reported: what `sites` and `scores` are made of, by site; None where it is not known.
        method: the settings of the method that trained it, by which the bank alone can answer;
            None where the base model with the sum of the adapters does.
        questions: questions like the task's, as the plan lists them; None where it lists none.
        body_parts: what DICOM's BodyPartExamined says of its pictures, likewise.
    """

    stage: int
    name: str
    modality: Modality
    task: str
    parent: str
    plan: str
    sums: tuple[int, ...]
    sites: Mapping[str, int]
    rule: str
    error: float
    scores: Mapping[str, float]
    code: str
    prototype: bytes | None = None
    classes: tuple[str, ...] | None = None
    self_reported: Mapping[str, SelfReported] | None = None
    method: Mapping[str, Any] | None = None
    questions: tuple[str, ...] | None = None
    body_parts: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """An adapter's signed provenance: the fields of its `Draft`, and what the bank adds.

    Attributes:
        base_model: the model that the adapter was trained on.
        adapter: SHA-256 of adapter_model.safetensors.
        config: SHA-256 of adapter_config.json.
        prototype: SHA-256 of prototype.safetensors; None where there is none.
        signer: public key of the coordinator that released it.
        signature: Ed25519, over `signed_bytes` of the hash.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    stage: Position
    name: Slug
    modality: Modality
    task: TaskName
    parent: Digest
    plan: Digest
    base_model: BaseModelPin
    sums: tuple[Position, ...]
    sites: Mapping[Slug, Annotated[int, Field(ge=0)]]
    rule: Slug
    error: Annotated[float, Field(ge=0)]
    scores: Mapping[str, float]
    code: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
    adapter: Digest
    config: Digest
    rank: Annotated[int, Field(ge=0)]
    scale: float
    signer: Digest
    signature: Signature
    prototype: Digest | None = None
    classes: tuple[ClassName, ...] | None = None
    self_reported: Mapping[Slug, SelfReported] | None = None
    method: Mapping[str, Any] | None = None
    questions: Questions | None = None
    body_parts: BodyParts | None = None

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON of every field but the signature."""
        return hash_of(self.content())

    @property
    def folder(self) -> str:
        """The name of its folder in the bank."""
        return release_folder(self.stage, self.name)

    @property
    def is_signed(self) -> bool:
        """Whether the signature is valid for the signer and this content."""
        return verify_signature(self.signer, self.signature, signed_bytes(self.hash))

    def content(self) -> dict[str, Any]:
        """Return every field but the signature, as JSON values.

        What is None is left out, as in releases from before there was the field.
        """
        prototype = {} if self.prototype is None else {"prototype": self.prototype}
        reported = {site: one.content() for site, one in (self.self_reported or {}).items()}
        return {
            **prototype,
            **({} if self.self_reported is None else {"self_reported": reported}),
            **({} if self.classes is None else {"classes": list(self.classes)}),
            **({} if self.method is None else {"method": dict(self.method)}),
            **({} if self.questions is None else {"questions": list(self.questions)}),
            **({} if self.body_parts is None else {"body_parts": list(self.body_parts)}),
            **draft_content(self),
            "base_model": self.base_model.model_dump(),
            "adapter": self.adapter,
            "config": self.config,
            "rank": self.rank,
            "scale": self.scale,
            "signer": self.signer,
        }

    def to_bytes(self) -> bytes:
        """Return the bytes of release.json."""
        return text_of({**self.content(), "signature": self.signature})

    @classmethod
    def from_bytes(cls, blob: bytes, source: str) -> "Release":
        """Read what `to_bytes` wrote; `source` names it in an error.

        Raises:
            BankError: it is not what `to_bytes` would write, to the last space.
        """
        release = _parse(_RELEASE, blob, source)
        if release.to_bytes() != blob:
            raise BankError(f"{source}: its layout was changed, though no value in it")
        sums = [stage for stage in sorted({*release.sums, release.stage}) if stage <= release.stage]
        if list(release.sums) != sums:
            raise BankError(
                f"{source}: field sums: found {list(release.sums)}, expected rising positions "
                f"that end with its own, {release.stage}"
            )
        return release


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """An entry of the index: a release's folder and its hash."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    # Checked before it becomes part of a path: a bank may come from a stranger.
    folder: Annotated[str, Field(pattern=r"^[0-9]{3,}-[a-z0-9][a-z0-9_-]{0,39}$")]
    hash: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The content of bank.json: the releases in their order, and the hash of the last one."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    base_model: BaseModelPin
    releases: tuple[IndexEntry, ...]
    genesis: Digest
    head: Digest
    format: Literal[1] = FORMAT

    @classmethod
    def over(cls, base_model: BaseModelPin, releases: tuple[Release, ...]) -> "Index":
        """Make the index of these releases."""
        entries = tuple(IndexEntry(release.folder, release.hash) for release in releases)
        genesis = genesis_of(base_model)
        head = entries[-1].hash if entries else genesis
        return cls(base_model=base_model, releases=entries, genesis=genesis, head=head)

    def to_bytes(self) -> bytes:
        """Return the bytes of bank.json."""
        entries = [{"folder": entry.folder, "hash": entry.hash} for entry in self.releases]
        return text_of(
            {
                "format": self.format,
                "base_model": self.base_model.model_dump(),
                "genesis": self.genesis,
                "releases": entries,
                "head": self.head,
            }
        )

    @classmethod
    def from_bytes(cls, blob: bytes, source: str) -> "Index":
        """Read what `to_bytes` wrote; `source` names it in an error.

        Raises:
            BankError: it is not what `to_bytes` would write, or its hashes are inconsistent.
        """
        index = _parse(_INDEX, blob, source)
        if index.to_bytes() != blob:
            raise BankError(f"{source}: its layout was changed, though no value in it")
        genesis = genesis_of(index.base_model)
        if index.genesis != genesis:
            raise BankError(
                f"{source}: field genesis: found {index.genesis}, expected {genesis}, which "
                f"follows from the base model {index.base_model.name}"
            )
        head = index.releases[-1].hash if index.releases else genesis
        if index.head != head:
            raise BankError(
                f"{source}: field head: found {index.head}, expected {head}, the last hash in it"
            )
        return index


def draft_content(draft: Draft | Release) -> dict[str, Any]:
    """Return the fields of a draft as JSON values."""
    return {
        "stage": draft.stage,
        "name": draft.name,
        "modality": draft.modality.value,
        "task": draft.task,
        "parent": draft.parent,
        "plan": draft.plan,
        "sums": list(draft.sums),
        "sites": dict(draft.sites),
        "rule": draft.rule,
        # An int would be written as 1, not 1.0.
        "error": float(draft.error),
        "scores": {metric: float(score) for metric, score in draft.scores.items()},
        "code": draft.code,
    }


def release_folder(stage: int, name: str) -> str:
    """Return the name of a release's folder in its bank; `stage` is its position, from 0."""
    return f"{stage:03d}-{name}"


def genesis_of(base_model: BaseModelPin) -> str:
    """Return the parent hash of the first release of a bank for `base_model`."""
    return hash_of({"format": FORMAT, "base_model": base_model.model_dump()})


def hash_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the canonical JSON of `content`."""
    return sha256(canonical_json(content).encode())


def signed_bytes(release_hash: str) -> bytes:
    """Return the bytes that are signed: a release's hash, with a prefix for this purpose alone."""
    return f"fedmslora release {release_hash}".encode()


def text_of(document: Mapping[str, Any]) -> bytes:
    """Return a document as indented JSON; equal documents give equal bytes."""
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()


def _parse(adapter: TypeAdapter[_Document], blob: bytes, source: str) -> _Document:
    try:
        return adapter.validate_json(blob)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        where = f"{source}: field {field}" if field else source
        raise BankError(f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None


_RELEASE: TypeAdapter[Release] = TypeAdapter(Release)
_INDEX: TypeAdapter[Index] = TypeAdapter(Index)
