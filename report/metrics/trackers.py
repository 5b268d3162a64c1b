"""A run's numbers for TensorBoard and MLflow: optional, each with a package of its own.

`pip install '.[tensorboard]'` and `pip install '.[mlflow]'`. What is sent are the numbers of
metrics.csv and the run's digests; no answer and no picture.
"""
# Both packages are optional, and untyped in part.
# pyright: reportMissingImports=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import StateError
from common.printable import one_line
from report.metrics.rows import MetricRow, metric_rows
from report.model import RunReport

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number with its name (parts divided by slashes) and its step.

    The step of a score is the number of stages that were learned, 0 for the base model; that of a
    loss or of bytes is the number of rounds so far.
    """

    name: str
    step: int
    value: float


def scalars(report: RunReport) -> Iterator[Scalar]:
    """Yield a run's numbers as trackers take them."""
    stages = {stage.name: number for number, stage in enumerate(report.stages)}
    before = _rounds_before(report)
    for row in metric_rows(report):
        if isinstance(row.round, int):
            step = before.get(row.after, 0) + row.round
        else:
            step = stages.get(row.after, -1) + 1
        yield Scalar("/".join(filter(None, _parts(row))), step, row.value)


def _parts(row: MetricRow) -> tuple[str, ...]:
    # Not below the score itself: a name is a file or a folder to some trackers.
    kind = "site_score" if row.kind == "score" and row.site else row.kind
    return (kind, row.task, row.metric, row.site)


def _rounds_before(report: RunReport) -> dict[str, int]:
    """Return the number of rounds of all earlier stages, by stage."""
    found: dict[str, int] = {}
    total = 0
    for stage in report.stages:
        found[stage.name] = total
        rounds = [point.round for point in report.curves if point.stage == stage.name]
        total += max(rounds, default=0)
    return found


def write_tensorboard(folder: Path, reports: Sequence[RunReport]) -> None:
    """Write event files that `tensorboard --logdir FOLDER` shows, a folder for each run.

    Raises:
        ModuleNotFoundError: the package tensorboard is not installed.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for report in reports:
        writer = EventFileWriter(str(folder / f"{report.method}-seed{report.seed}"))
        for one in scalars(report):
            value = Summary.Value(tag=one.name, simple_value=one.value)
            writer.add_event(Event(step=one.step, summary=Summary(value=[value])))
        writer.close()


def log_mlflow(uri: str, reports: Sequence[RunReport]) -> None:
    """Log each run to the MLflow server at `uri`; the plan is the experiment.

    Raises:
        ModuleNotFoundError: the package mlflow is not installed.
        StateError: MLflow does not take it.
    """
    # MLflow 3 reports its use to its makers otherwise.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(reports[0].plan.name)
        name = reports[0].plan.name
        place = client.create_experiment(name) if found is None else found.experiment_id
        for report in reports:
            _log_run(client, place, report)
    except MlflowException as error:
        raise StateError(f"{uri}: MLflow does not take the run ({one_line(error)})") from None


def _log_run(client: "MlflowClient", experiment: str, report: RunReport) -> None:
    from mlflow.entities import Metric, Param

    run = client.create_run(experiment, run_name=f"{report.method}-seed{report.seed}").info.run_id
    numbers = [Metric(one.name, one.value, 0, one.step) for one in scalars(report)]
    # A server takes so many at once.
    for start in range(0, len(numbers), _AT_ONCE):
        client.log_batch(run, metrics=numbers[start : start + _AT_ONCE])
    client.log_batch(run, params=[Param(name, value) for name, value in _params(report)])
    client.set_terminated(run)


_AT_ONCE = 500


def _params(report: RunReport) -> Iterator[tuple[str, str]]:
    yield "method", report.method
    yield "seed", str(report.seed)
    yield "plan", report.plan.hash
    yield "base_model", report.provenance.base_model
    yield "code", report.provenance.code
    yield "bank_head", report.provenance.bank_head or ""
