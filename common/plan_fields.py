"""The types of a plan's fields: what plans, methods and site files are made of."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Final, TypeAlias

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """A frozen pydantic model: no unknown field, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


#: Of a pseudonym, and of the names of plans and stages.
SLUG: Final = r"^[a-z0-9][a-z0-9_-]{0,39}$"
_TASK_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$"
_CLASS_NAME: Final = r"^[^\s\p{C}]([^\p{C}\p{Zl}\p{Zp}]{0,78}[^\s\p{C}])?$"
_QUESTION: Final = r"^[^\s\p{C}]([^\p{C}\p{Zl}\p{Zp}]*[^\s\p{C}])?$"
_BODY_PART: Final = r"^[A-Z][A-Z0-9 _]{0,15}$"
_SHA256: Final = r"^[0-9a-f]{64}$"
#: What a text of each pattern is, for whoever wrote another one.
PATTERNS: Final[Mapping[str, str]] = MappingProxyType(
    {
        SLUG: "at most 40 small letters, digits, `_` and `-`, a letter or a digit first",
        _TASK_NAME: "at most 40 letters, digits, `_` and `-`, a letter or a digit first",
        _CLASS_NAME: "one line of at most 80 visible letters, no space at its ends",
        _QUESTION: "one line of visible letters, no space at its ends",
        _BODY_PART: "at most 16 capital letters and digits, as CHEST",
        _SHA256: "64 hexadecimal digits",
    }
)

#: What a value of a type is, for whoever gave another one; by pydantic's name of the error.
TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "bool_type": "true or false",
        "dict_type": "names with a value each",
        "finite_number": "a finite number",
        "float_type": "a number",
        "int_type": "a whole number",
        "list_type": "a list",
        "model_type": "fields of its own",
        "string_type": "text",
        "tuple_type": "a list",
    }
)

#: Most of anything: with more, sizes leave what arrays and files can say.
MOST: Final = 10**9
Count: TypeAlias = Annotated[int, Field(ge=1, le=MOST)]
#: Rounds of a stage: each is listed when a plan is checked and its cost is estimated.
Rounds: TypeAlias = Annotated[int, Field(ge=1, le=10_000)]
#: Most passes over a site's examples in a round: the order of all of them is drawn at its begin.
MOST_EPOCHS: Final = 10_000
Epochs: TypeAlias = Annotated[float, Field(gt=0, le=MOST_EPOCHS)]
#: The width of the widest open language models (Llama 3.1 405B): no wider LoRA is of low rank.
MOST_RANK: Final = 16_384
Rank: TypeAlias = Annotated[int, Field(ge=1, le=MOST_RANK)]
#: Every task may be scored after every stage, so that the orders grow with the square.
MOST_STAGES: Final = 1000
#: Most of what a plan names one by one, such as its sites: more are a mistake, and take long.
MOST_NAMED: Final = 10_000
#: Tokens of an answer: each row of a batch has a position for every one from the start.
NewTokens: TypeAlias = Annotated[int, Field(ge=1, le=10_000)]
#: Longest deadline, eleven years: calendars end.
MOST_HOURS: Final = 100_000
#: fp32 ends at 3.4e38, and what these are multiplied by has to stay below that.
Positive: TypeAlias = Annotated[float, Field(gt=0, le=1e30)]
#: Of a Dirichlet; beyond, the logarithms of its draws leave what numbers can say.
Concentration: TypeAlias = Annotated[float, Field(ge=1 / MOST, le=MOST)]
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Slug: TypeAlias = Annotated[str, Field(pattern=SLUG)]
#: The name of a task's folder; the paper's have capitals.
TaskName: TypeAlias = Annotated[str, Field(pattern=_TASK_NAME)]

#: The name of a class: what its questions' answers are, and what a text tower reads. It is shown on
#: terminals, so nothing in it controls one.
ClassName: TypeAlias = Annotated[str, Field(pattern=_CLASS_NAME)]

#: Questions as a stage lists them, each on one line.
Questions: TypeAlias = Annotated[
    tuple[
        Annotated[str, Field(max_length=300, pattern=_QUESTION)],
        ...,
    ],
    Field(min_length=1, max_length=100),
]

#: Values of DICOM's BodyPartExamined, as a stage lists them.
BodyParts: TypeAlias = Annotated[
    tuple[Annotated[str, Field(pattern=_BODY_PART)], ...],
    Field(min_length=1, max_length=40),
]


class Modality(StrEnum):
    """A kind of image: the same attracts, another repels in the contrastive regularizer."""

    PATHOLOGY = "pathology"
    RADIOLOGY = "radiology"
    DERMATOLOGY = "dermatology"
    FUNDUS = "fundus"
    MICROSCOPY = "microscopy"
    CT = "ct"
    MR = "mr"
    XRAY = "xray"
    ULTRASOUND = "ultrasound"
    ENDOSCOPY = "endoscopy"
    OCT = "oct"


class Precision(StrEnum):
    """A number format: of the base model and its forward pass, or of adapters on the wire."""

    FP32 = "fp32"
    BF16 = "bf16"


class Composition(StrEnum):
    """How the frozen adapters of earlier stages are held in memory; both are exact.

    `fold` adds them to the weights; `stack` keeps them as one wide low-rank product.
    """

    FOLD = "fold"
    STACK = "stack"


class ClassScope(StrEnum):
    """Among which classes a stage asks: all that were learned so far, or its own."""

    SEEN = "seen"
    OWN = "own"


class BaseModelPin(Strict):
    """The frozen model that everything is added to, pinned by the digest of its files."""

    name: Slug
    sha256: Annotated[str, Field(pattern=_SHA256)]


class ReferencePin(Strict):
    """A list of public reference pairs, pinned by the digest of its file."""

    name: Slug
    sha256: Annotated[str, Field(pattern=_SHA256)]
