"""What a report says of the router: each task as the router left it, beside the oracle's."""

from collections.abc import Sequence
from dataclasses import dataclass

from report.model import Routed, RunReport, StageFacts


@dataclass(frozen=True, slots=True)
class RoutedRow:
    """One task after the last stage whose model was scored by both.

    Attributes:
        told: its score where the task is told, a fraction.
        chosen: where each picture chose its stage.
        right_stage: share of the task's test pictures that chose its own stage.
        right_modality: share that chose a stage of its modality.
    """

    stage: StageFacts
    told: float | None
    chosen: float | None
    right_stage: float | None
    right_modality: float | None


def routed_rows(report: RunReport) -> list[RoutedRow]:
    """A row for each task that had arrived; empty where there is no router."""
    routed = report.routed
    if routed is None or (last := _last(routed)) is None:
        return []
    return [
        RoutedRow(
            stage,
            report.scores[last][task],
            routed.scores[last][task],
            routed.stage[last][task],
            routed.modality[last][task],
        )
        for task, stage in enumerate(report.stages[: last + 1])
    ]


def routing_of(routed: Routed) -> str:
    """What the router came to, in one sentence."""
    last = _last(routed)
    if last is None:
        return "No picture was asked for its stage"
    stage, modality = (
        _mean(matrix[last][: last + 1]) for matrix in (routed.stage, routed.modality)
    )
    return (
        f"By the picture alone {100 * stage:.0f} % of a task's test pictures reach its own stage, "
        f"and {100 * modality:.0f} % one of its modality (mean of the tasks)"
    )


def _last(routed: Routed) -> int | None:
    """The last stage after which something was routed."""
    known = [number for number, row in enumerate(routed.stage) if any(v is not None for v in row)]
    return max(known, default=None)


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0
