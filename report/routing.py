"""The router's part of a report: each task's score as routed, beside that with the task given."""

from collections.abc import Sequence
from dataclasses import dataclass

from report.model import Routed, RunReport, StageFacts


@dataclass(frozen=True, slots=True)
class RoutedRow:
    """One task after the last stage that was scored both ways.

    Attributes:
        given: its score where the question comes with its task, a fraction.
        routed: its score where the router chooses a stage for each image.
        right_stage: share of the task's test images that were routed to its own stage.
        right_modality: share that were routed to a stage of its modality.
        known: share that the router calls known; of pictures that are the task's own.
        confidence: the router's mean confidence, which is calibrated where it is `right_stage`.
    """

    stage: StageFacts
    given: float | None
    routed: float | None
    right_stage: float | None
    right_modality: float | None
    known: float | None
    confidence: float | None


def routed_rows(report: RunReport) -> list[RoutedRow]:
    """Return a row for each task that had arrived; none without a router."""
    routed = report.routed
    if routed is None or (last := _last_stage(routed)) is None:
        return []
    return [
        RoutedRow(
            stage,
            report.scores[last][task],
            routed.scores[last][task],
            routed.stage[last][task],
            routed.modality[last][task],
            None if routed.known is None else routed.known[last][task],
            None if routed.confidence is None else routed.confidence[last][task],
        )
        for task, stage in enumerate(report.stages[: last + 1])
    ]


def routing_headline(routed: Routed) -> str:
    """Return one sentence: how often the router was right."""
    last = _last_stage(routed)
    if last is None:
        return "No image was routed"
    stage, modality = (
        _mean(matrix[last][: last + 1]) for matrix in (routed.stage, routed.modality)
    )
    return (
        f"The router takes {100 * stage:.0f} % of a task's test images to its own stage, and "
        f"{100 * modality:.0f} % to one of its modality (mean over tasks)"
    )


def _last_stage(routed: Routed) -> int | None:
    """Return the last stage after which something was routed."""
    known = [number for number, row in enumerate(routed.stage) if any(v is not None for v in row)]
    return max(known, default=None)


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0
