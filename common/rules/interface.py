"""What an aggregation rule is: the traits that both sides ask for, and how it merges a layer.

A rule is one file of this package, which makes one `Rule` and calls it RULE; the registry
finds it there. Nothing else names a rule.

Target of every rule: a layer's mean product sum_i w_i s_i B_i A_i, where w_i is site i's share
of the examples. Sums run in float64, in the order of the sites' names. A layer is read part by
part, so that what is held of it does not grow with the number of sites.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from common.adapter import Pair
from common.array_reader import ArrayReader
from common.linear_algebra.layer_factors import Factors, SiteFactors
from common.partial_adapter import AdapterPart
from common.tensors import Array


class Factor(StrEnum):
    """The factors of a layer that are trained."""

    A = "a"
    B = "b"
    BOTH = "both"
    #: R of U R A, between two fixed factors (common/partial_adapter.py).
    CORE = "core"

    @property
    def frozen(self) -> "Factor | None":
        """The factor that nobody changes and that travels; None where there is none."""
        return {Factor.A: Factor.B, Factor.B: Factor.A}.get(self)


class FirstA(StrEnum):
    """How the A of a stage's first adapter is drawn; its B is zero.

    `uniform`: as PEFT draws it. `orthonormal`: its rows are orthonormal and, where there is
    room, orthogonal to the A's of earlier adapters.
    """

    UNIFORM = "uniform"
    ORTHONORMAL = "orthonormal"


class MaskedSums(StrEnum):
    """What a server finds that sees only the weighted sum of all that the sites send.

    Secure aggregation shows it sum_i w_i A_i and sum_i w_i B_i, and no site's own factors.
    `exact`: the rule's result, and its error. `error_unknown`: the result alone. `impossible`:
    neither.
    """

    EXACT = "exact"
    ERROR_UNKNOWN = "error_unknown"
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a round's updates.

    Attributes:
        sites: each site's factors, in the order of their names.
        previous: the factors that the sites started from; None in a stage's first round.
        rank: of the new factors, as the plan has it.
        scale: of the new factors' product.
        liars: so many of the sites may have sent anything; only a robust rule is told.
    """

    name: str
    sites: tuple[SiteFactors, ...]
    previous: Factors | None
    rank: int
    scale: float
    liars: int = 0

    @property
    def all_a(self) -> list[ArrayReader]:
        """Every site's A."""
        return [site.factors.a for site in self.sites]

    @property
    def all_b(self) -> list[ArrayReader]:
        """Every site's B."""
        return [site.factors.b for site in self.sites]

    @property
    def weights(self) -> list[float]:
        """Every site's share of the examples; they sum to 1."""
        return [site.weight for site in self.sites]


@dataclass(frozen=True, slots=True)
class LayerError:
    """Squared Frobenius norms of what a layer's new factors discard, and of its mean product."""

    discarded: float
    energy: float


#: Finds the error of a layer by reading it once more, where merging it does not.
FindError: TypeAlias = Callable[[Layer], LayerError]

#: The error of a layer whose new factors have exactly the mean product. Nobody divides by the
#: energy then, so it is not computed.
EXACT: Final = LayerError(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class MergedLayer:
    """One layer's new factors, in float32, and their error or how it is found."""

    pair: Pair
    error: LayerError | FindError


#: Merges the arrays of all sites that are no factors of a layer, of whom so many may lie.
MergeArrays: TypeAlias = Callable[[Sequence[ArrayReader], int], Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Robust:
    """What a rule withstands by itself: sites that send anything at all, and collude.

    Attributes:
        least_sites: gives the fewest sites of a round that withstand so many liars.
        promise: says in a clause what holds for so many sites, of which so many lie.
        chosen: gives the places of the sites that are merged, from the squared distances between
            all sites' changes, (n, n), and the number of liars; None where all of them are.
        merge_arrays: merges arrays that are no factors of a layer; None takes the weighted mean.
        alone: the name of the rule that it is where a stage has one site, which nobody outvotes.
    """

    least_sites: Callable[[int], int]
    promise: Callable[[int, int], str]
    alone: str
    chosen: Callable[[Array, int], Sequence[int]] | None = None
    merge_arrays: MergeArrays | None = None


def whole(round: int, rounds: int) -> AdapterPart:
    """Return that all of an adapter travels, in every round."""
    return AdapterPart.WHOLE


#: Gives the factors of a layer that a site sends, from those that it has trained and those that
#: its round began with.
BeforeSending: TypeAlias = Callable[[Pair, Pair], Pair]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """An aggregation rule: how a round's updates become one adapter, and what follows from it.

    Attributes:
        name: a plan's `aggregation`, and the name of the rule's file.
        trained_factors: gives the factors that sites train in a round (1-based).
        first_a: how the first A of a stage is drawn.
        starts_may_differ: sites may begin a stage with different adapters.
        layouts_may_differ: ranks and scales may differ between sites; the result has the plan's.
        masked_sums: what of the rule is left under secure aggregation.
        merge: gives a layer's new factors.

            AggregationError: the sites' factors can't be merged by this rule.
            LinAlgError: the numbers are too large for float64.
        before_sending: what a site does with the factors of a layer before it sends them; None
            where it sends them as they were trained.
        part: gives what of an adapter a site sends in a round (1-based) of a stage's so many; the
            arrays of a part are averaged, without `merge`. In the last round of a stage the sum of
            what the coordinator has must be whole: all of it is sent, or R of it.
        own_b: each site trains on with the B that it had, and answers with it where the stage is
            its own; the released B is the sites' mean.
        on_products: the result depends on the products B @ A alone, so that factors which are
            large beside a small product don't matter.
        robust: what the rule withstands by itself; None where a site's update is bounded by the
            plan's `robustness` alone.
        liars: how many sites a robust rule is to withstand; a plan says so.
    """

    name: str
    trained_factors: Callable[[int], Factor]
    first_a: FirstA
    starts_may_differ: bool
    layouts_may_differ: bool
    masked_sums: MaskedSums
    merge: Callable[[Layer], MergedLayer]
    before_sending: BeforeSending | None = None
    part: Callable[[int, int], AdapterPart] = whole
    own_b: bool = False
    on_products: bool = False
    robust: Robust | None = None
    liars: int = 0

    @property
    def merges_whole_weights(self) -> bool:
        """Whether it means something where an adapter has no factors, but whole arrays.

        A robust rule merges arrays by itself; of the others one that keeps no factor apart takes
        their mean.
        """
        by_mean = self.trained_factors(1) is Factor.BOTH and not self.own_b
        return self.robust is not None or by_mean
