"""Tasks with classes: each measure at the end of a run and over it, and what knows nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

from common.metrics import CLASS_METRICS
from report.continual_metrics import MatrixMetrics, matrix_metrics
from report.model import RunReport, judged_when_learned


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFigure:
    """One measure of a task: the model's, the base model's among the same classes, the majority's.

    Fractions; None where it was not measured.
    """

    model: float | None
    zero_shot: float | None
    majority: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """A task with classes, after the last stage after which it was scored.

    Attributes:
        after: that stage's name.
        figures: by measure.
        auc_by_site: each site's own AUC.
    """

    task: str
    after: str
    figures: Mapping[str, ClassFigure]
    auc_by_site: Mapping[str, float | None]


def class_rows(report: RunReport) -> list[ClassRow]:
    """Return a row for each task with classes that was scored."""
    rows = [_row(report, task) for task in range(len(report.stages))]
    return [row for row in rows if row is not None]


def class_metrics(report: RunReport) -> dict[str, MatrixMetrics]:
    """Return the continual-learning metrics of each class measure, over the tasks with classes.

    They are MGTIL's (PRIMED, arXiv 2512.13072): Transfer, Avg and Last of the accuracy; for its
    hard tasks ACC (`last` of the accuracy), AUC (`last` of the AUC), BWT (`bwt` of the accuracy).
    The base model's scores are those among the classes of the task's own stage. Empty for joint
    training, and without such tasks.
    """
    found = report.classes
    if found is None or not judged_when_learned(report):
        return {}
    count = range(len(report.stages))
    tasks = [
        task for task in count if any(row[task] is not None for row in found.scores["accuracy"])
    ]
    if not tasks:
        return {}
    return {
        name: matrix_metrics(
            found.scores[name],
            [found.zero_shot[name][task][task] for task in count],
            None,
            tasks,
        )
        for name in CLASS_METRICS
    }


def _row(report: RunReport, task: int) -> ClassRow | None:
    found = report.classes
    if found is None:
        return None
    scored = [
        stage
        for stage in range(len(report.stages))
        if found.scores["accuracy"][stage][task] is not None
    ]
    if not scored:
        return None
    last = scored[-1]
    return ClassRow(
        task=report.stages[task].name,
        after=report.stages[last].name,
        figures={
            name: ClassFigure(
                model=found.scores[name][last][task],
                zero_shot=found.zero_shot[name][last][task],
                majority=found.majority[name][task],
            )
            for name in CLASS_METRICS
        },
        auc_by_site={
            site: matrix[last][task]
            for site, matrix in found.auc_by_site.items()
            if matrix[last][task] is not None
        },
    )
