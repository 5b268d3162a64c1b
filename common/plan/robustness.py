"""How far one site's word goes: bounds of a plan on updates, weights and scores, on by default.

A site's numbers of examples, questions and images are its own word, and its update may be anything.
docs/threat-model.md says what these bounds hold off, and what not.
"""

from typing import Annotated, Final

from pydantic import Field

from common.plan_fields import Count, Strict

#: The largest share of a site by default, in equal shares: of three sites none counts above half.
_EQUAL_SHARES: Final = 1.5


class Robustness(Strict):
    """Bounds on what one site can do to a round's mean and to a task's scores."""

    #: The change that an update makes is scaled down to so many times the sites' lower median,
    #: unless the last round's was larger; null scales none.
    clip: Annotated[float, Field(ge=1)] | None = 2.0
    #: Most that one site counts in a mean of updates, scores or image prototypes; null: one and a
    #: half times an equal share.
    largest_share: Annotated[float, Field(gt=0, le=1)] | None = None
    #: An update counts nothing where its cosine to more than half of the others is below this, if
    #: that is a minority of the round; null leaves none out.
    least_cosine: Annotated[float, Field(gt=-1, le=0)] | None = -0.1
    #: So many of a stage's sites may lie in every round; what the robust rules are told.
    liars: Count = 1

    def share_of(self, sites: int) -> float:
        """Return the most that one of so many sites counts; an equal share is always allowed."""
        equal = 1 / max(1, sites)
        return min(1.0, max(equal, self.largest_share or _EQUAL_SHARES * equal))
