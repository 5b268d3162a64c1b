"""Each site's part in a run: what it says of itself, and what its updates did."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteClaim:
    """What a site says of itself with a stage's release, and nobody else can check.

    Attributes:
        examples: training examples; 0 where no update of it counted.
        questions: test questions; 0 where it gave no scores.
        scores: the stage's task in every measure, on its own questions.
    """

    examples: int
    questions: int
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatePart:
    """What a site's update did in one round, by the coordinator's measure.

    Attributes:
        norm: Frobenius norm of the change of the model that it makes, as it was sent.
        cosine: to the mean direction of the other sites' changes; None where there is none.
        scaled: by what the change was multiplied before it counted.
        share: of the round's mean; 0 where it did not count.
        outlier: in what it differs from the others; None where it does not.
    """

    stage: str
    round: int
    site: str
    norm: float
    cosine: float | None
    scaled: float
    share: float
    outlier: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteParts:
    """Every site's part in a run.

    Attributes:
        self_reported: by stage and site, the site's own word.
        updates: of every site, round after round.
    """

    self_reported: Mapping[str, Mapping[str, SiteClaim]]
    updates: tuple[UpdatePart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteScores:
    """One site's scores on its own test questions, by its own word. T is the number of stages.

    Attributes:
        questions: its test questions of each task; None where it has not been asked. Length T.
        zero_shot: the base model's score in each task's measure; `majority`: the score of each
            question's commonest training answer. Length T.
        scores: `scores[i][j]` is task j's score after stage i; None where it was not evaluated.
    """

    site: str
    questions: tuple[int | None, ...]
    zero_shot: tuple[float | None, ...]
    majority: tuple[float | None, ...]
    scores: tuple[tuple[float | None, ...], ...]
