"""The means of what sites report of a task, where no site counts more than the plan says."""

from collections.abc import Iterable, Mapping

from common.plan.robustness import Robustness
from server.aggregation.shares import capped


def pooled(
    by_site: Iterable[tuple[int, Mapping[str, float]]], robustness: Robustness
) -> dict[str, float]:
    """Return each metric's mean over sites, weighted by their test questions.

    A site that has no questions of a kind does not report that kind's metric, and does
    not count in its mean. The numbers of questions are the sites' own word: none counts more
    than the plan's largest share.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for questions, metrics in by_site:
        for name, value in metrics.items():
            found.setdefault(name, []).append((questions, value))
    return {name: _mean(values, robustness) for name, values in found.items()}


def _mean(values: list[tuple[int, float]], robustness: Robustness) -> float:
    counts = capped([count for count, _ in values], robustness.share_of(len(values)))
    total = 0.0
    # Not `sum`, which rounds otherwise: a mean that no bound concerns keeps its bits.
    for count, (_, value) in zip(counts, values, strict=True):
        total += count * value
    return total / sum(counts)
