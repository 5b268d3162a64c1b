"""Settings of MSLoRA-CR's contrastive regularizer (client/training/regularizer.py)."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from common.plan_fields import Positive, Strict


class Similarity(StrEnum):
    """How similar two adapters are to the contrastive regularizer."""

    EXP = "exp"
    GRASSMANN = "grassmann"
    #: No repulsion: a pull to the mean of the modality's own prototypes.
    ATTRACT = "attract"
    NONE = "none"


class Prototypes(StrEnum):
    """What the regularizer compares with: every earlier task, or a mean per modality."""

    TASK = "task"
    MODALITY = "modality"


class Contrast(Strict):
    """MSLoRA-CR's regularizer (arXiv 2508.11673); `weight` is its alpha."""

    similarity: Similarity = Similarity.EXP
    weight: Annotated[float, Field(ge=0)] = 0.1
    temperature: Positive = 0.1
    prototypes: Prototypes = Prototypes.TASK
    #: The paper's beta; null turns the orthogonality term off.
    orthogonality: Positive | None = 0.01
