"""A site's own file: where its data, base model and store are, and its policy. It never leaves."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from common.documents.yaml_text import load_yaml
from common.errors import EMPTY_PATH, SiteFailed
from common.network.address import address_fault
from common.plan.file import MOST_MISTAKES
from common.plan_fields import TYPES, Count, Modality, Positive, Slug, Strict


class Device(StrEnum):
    """Where a site computes; `auto` takes a GPU where there is one."""

    CPU = "cpu"
    CUDA = "cuda"
    AUTO = "auto"


class Plans(StrEnum):
    """Which plans a site works for: those that its admin has approved, or any."""

    APPROVED = "approved"
    ANY = "any"


class Policy(Strict):
    """What the site does for a coordinator; an order beyond it is refused, whoever sends it.

    Attributes:
        modalities: of the stages in which it takes part.
        plans: whether a plan must have been approved here.
        rounds: most rounds of a stage; null sets no limit.
        examples: fewest training examples of a task that it trains on.
        images: fewest different images of which a mean of features may leave, or the Fisher
            information, where a plan has a router or a method that asks for them.
        train_alone: whether it trains a stage alone, too, where the plan asks for that; the
            adapter is dropped and only its scores leave.
        test_questions: fewest test questions of a figure that leaves; also of each kind of
            question and of each class, where the figure is of one or a mean over them.
        evaluations: most orders by which a task is scored at one state of the bank.
    """

    modalities: Annotated[tuple[Modality, ...], Field(min_length=1)]
    plans: Plans
    rounds: Count | None
    examples: Count
    images: Count = 50
    train_alone: bool = False
    test_questions: Count = 20
    evaluations: Count = 2


#: Threads or processes of one machine: with far more the libraries that start them end the process.
Parallel: TypeAlias = Annotated[int, Field(ge=1, le=1024)]
#: Disk space in GiB.
GiB: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _address(text: str) -> str:
    if (fault := address_fault(text)) is not None:
        raise ValueError(fault)
    return text


#: A host name or address (IPv6 in brackets) and a port.
Address: TypeAlias = Annotated[str, AfterValidator(_address)]


def _named(path: object) -> object:
    if path == "":
        raise ValueError(EMPTY_PATH)
    return path


#: A path in a site file.
NamedPath: TypeAlias = Annotated[Path, BeforeValidator(_named)]


class Federation(Strict):
    """How the site reaches its coordinator, and which plans it has approved.

    Attributes:
        address: the coordinator's, as `host:port`.
        ca: certificate of the authority that has signed the coordinator's.
        key: the site's private node key (OpenSSH, EC P-384); it never leaves.
        approved: folder with `<plan digest>.json` for each plan that the site has approved.
    """

    address: Address
    ca: NamedPath
    key: NamedPath
    approved: NamedPath


class Site(Strict):
    """One site. Paths in a site file are relative to the file.

    Attributes:
        name: its pseudonym, the only field that others learn.
        data: folder with one folder for each task.
        base_model: folder of the frozen model.
        store: folder for releases, jobs, answers and logs; made where it is missing.
        threads: CPU threads of the training; the results' last bits depend on it.
        workers: processes that train together, one for each GPU; more than one use DeepSpeed.
        zero: DeepSpeed's ZeRO stage: how much of the training's state the workers partition.
        checkpoint_seconds: time between checkpoints: about the most that a crash loses.
        feature_cache_gib: most that cached image features take in the store; 0 caches none.
        keep_answers: whether the last answers to each task's test questions stay in the store of
            a site that has a coordinator; a simulated site always keeps them.
        policy: what it does for a coordinator.
        reference: folder of public reference pairs, for a method that trains on them, too.
        federation: how it reaches its coordinator; None in a simulation, where each order is
            done in the process that receives it.
    """

    name: Slug
    data: NamedPath
    base_model: NamedPath
    store: NamedPath
    device: Device
    threads: Parallel
    workers: Parallel = 1
    zero: Literal[1, 2, 3] = 2
    checkpoint_seconds: Positive = 300.0
    feature_cache_gib: GiB = 8.0
    keep_answers: bool = False
    policy: Policy
    reference: NamedPath | None = None
    federation: Federation | None = None

    @model_validator(mode="after")
    def _approval_needs_a_folder(self) -> "Site":
        if self.policy.plans is Plans.APPROVED and self.federation is None:
            raise ValueError(
                "policy.plans: found 'approved', expected a federation with a folder "
                "`approved` for them"
            )
        return self


_SITE_PATHS = ("data", "base_model", "store", "reference")
_FEDERATION_PATHS = ("ca", "key", "approved")
_PATHS = (*_SITE_PATHS, *_FEDERATION_PATHS)
_PSEUDONYM = "a pseudonym of a-z, 0-9, - and _, at most 40 long"


def load_site(file: Path) -> Site:
    """Read and check a site file.

    Raises:
        SiteFailed: one sentence for each mistake.
    """
    try:
        document: Any = load_yaml(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SiteFailed(f"{file}: can't be read as a site file ({reason})") from None
    except yaml.YAMLError as error:
        raise SiteFailed(f"{file}: {error}") from None
    if not isinstance(document, dict):
        raise SiteFailed(f"{file}: found {repr(document)[:80]}, expected the fields of a site")
    fields = _resolved(cast(dict[str, Any], document), _SITE_PATHS, file.parent)
    if isinstance(federation := fields.get("federation"), dict):
        inner = cast(dict[str, Any], federation)
        fields["federation"] = _resolved(inner, _FEDERATION_PATHS, file.parent)
    return _validated(fields, file)


def _resolved(fields: dict[str, Any], names: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Return the fields with these paths relative to `folder`; other types stay as they are."""
    paths = {name: fields[name] for name in names if isinstance(fields.get(name), str)}
    # An empty one is refused, and not the folder itself.
    paths = {name: path for name, path in paths.items() if path}
    return fields | {name: str(folder / Path(path).expanduser()) for name, path in paths.items()}


def _validated(document: dict[str, Any], file: Path) -> Site:
    try:
        # JSON mode: enums, tuples and paths come from text and lists, nothing else is converted.
        return Site.model_validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as error:
        # A list whose every item is wrong is called empty, too; that one is not true.
        details = [d for d in error.errors() if not (d["type"] == "too_short" and d["input"])]
        sentences = [_sentence(detail, file) for detail in details[:MOST_MISTAKES]]
    raise SiteFailed("\n".join(sentences))


def _sentence(detail: ErrorDetails, file: Path) -> str:
    if not detail["loc"]:
        return f"{file}: {detail['ctx']['error'] if 'ctx' in detail else detail['msg']}"
    return f"{file}, {'.'.join(map(str, detail['loc']))}: {_found_and_expected(detail)}"


def _found_and_expected(detail: ErrorDetails) -> str:
    kind, place, limits = detail["type"], detail["loc"], detail.get("ctx", {})
    if kind == "value_error":
        return str(limits["error"])
    if kind == "extra_forbidden":
        known = {"policy": Policy, "federation": Federation}.get(str(place[0]), Site).model_fields
        return f"found an unknown field, expected only {', '.join(known)}"
    if kind == "missing":
        return "found nothing, expected a value (it has no default)"
    expected = {
        **TYPES,
        "enum": f"one of {limits.get('expected')}",
        "literal_error": f"one of {limits.get('expected')}",
        "string_type": "a path" if place[-1] in _PATHS else "text",
        "string_pattern_mismatch": _PSEUDONYM,
        "greater_than_equal": f"at least {limits.get('ge')}",
        "less_than_equal": f"at most {limits.get('le')}",
        "greater_than": f"more than {limits.get('gt')}",
        "too_short": "at least one",
    }.get(kind, detail["msg"])
    return f"found {repr(detail['input'])[:80]}, expected {expected}"
