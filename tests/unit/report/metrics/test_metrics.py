"""A run's numbers as CSV, and for TensorBoard and MLflow where these are installed."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import StateError
from report.learned.intervals import wilson
from report.metrics.rows import metrics_csv
from report.metrics.trackers import log_mlflow, scalars, write_tensorboard
from report.model import LossPoint, RunReport
from report.sites.model import SiteScores
from report.write import write_document
from tests.unit.report.test_report import run

LOSSES = tuple(
    LossPoint(stage=name, round=number, site="a", loss=1.5)
    for name in ("tissue", "quadrant", "plane")
    for number in (1, 2)
)


def told() -> RunReport:
    one = SiteScores(
        site="a",
        questions=(40, 40, None),
        zero_shot=(0.1, 0.2, None),
        majority=(0.5, 0.1, None),
        scores=((0.75, None, None), (0.5, 0.25, None), (None, None, None)),
    )
    return replace(run(), by_site=(one,), curves=LOSSES)


def rows(**which: str) -> list[dict[str, str]]:
    found = csv.DictReader(io.StringIO(metrics_csv([told(), replace(told(), seed=1)])))
    return [row for row in found if all(row[name] == value for name, value in which.items())]


def test_every_score_is_a_row_with_its_interval_where_it_has_one():
    (learned,) = rows(kind="score", task="tissue", after="tissue", site="", seed="0")
    assert (learned["metric"], learned["value"], learned["questions"]) == ("accuracy", "0.8", "40")
    assert float(learned["low"]) == pytest.approx(wilson(0.8, 40).low)
    (between,) = rows(kind="score", task="tissue", after="quadrant", site="", seed="1")
    assert (between["value"], between["low"]) == ("0.8", "")
    (own,) = rows(kind="score", task="tissue", after="quadrant", site="a", seed="0")
    assert (own["value"], own["questions"]) == ("0.5", "40")


def test_baselines_losses_and_bytes_are_rows_too():
    (base,) = rows(kind="zero_shot", task="plane", seed="0")
    assert (base["value"], base["after"]) == ("0.3", "")
    assert rows(kind="majority", task="plane") == []
    assert [row["round"] for row in rows(kind="loss", after="plane", seed="0")] == ["1", "2"]
    (sent,) = rows(kind="bytes_up", after="plane", site="a", seed="0")
    assert sent["value"] == "1000"
    assert rows(kind="measure", task="tissue", metric="f1", seed="0")[0]["value"] == "0.85"


def test_the_file_lies_beside_report_json(tmp_path: Path):
    write_document(tmp_path, [told()])
    assert (tmp_path / "metrics.csv").read_text(encoding="utf-8") == metrics_csv([told()])


def test_steps_count_stages_for_scores_and_rounds_for_losses():
    found = {(one.name, one.step): one.value for one in scalars(told())}
    assert found["zero_shot/tissue/accuracy", 0] == 0.1
    assert found["score/tissue/accuracy", 1] == 0.8
    assert found["score/plane/accuracy", 3] == 1.0
    assert found["site_score/tissue/accuracy/a", 2] == 0.5
    assert found["loss/a", 1] == 1.5 and found["loss/a", 6] == 1.5


def test_tensorboard_reads_what_was_written(tmp_path: Path):
    pytest.importorskip("tensorboard", reason="found no tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore
        EventAccumulator,  # pyright: ignore
    )

    write_tensorboard(tmp_path, [told()])
    read = EventAccumulator(str(tmp_path / "mslora_cr-seed0"))  # pyright: ignore
    read.Reload()  # pyright: ignore
    points = read.Scalars("score/plane/accuracy")  # pyright: ignore
    assert [(one.step, one.value) for one in points] == [  # pyright: ignore
        (1, pytest.approx(0.2)), (2, pytest.approx(0.4)), (3, pytest.approx(1.0)),
    ]  # fmt: skip


def test_mlflow_reads_what_was_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # A folder needs no server; MLflow 3 keeps it for tests like this one.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="found no mlflow")
    uri = (tmp_path / "mlruns").as_uri()
    log_mlflow(uri, [told(), replace(told(), seed=1)])
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("demo")
    runs = client.search_runs([experiment.experiment_id])
    assert {one.data.params["seed"] for one in runs} == {"0", "1"}
    assert runs[0].data.metrics["score/plane/accuracy"] == pytest.approx(1.0)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "false")
    with pytest.raises(StateError, match="MLflow does not take the run"):
        log_mlflow((tmp_path / "other").as_uri(), [told()])
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    history = client.get_metric_history(runs[0].info.run_id, "score/tissue/accuracy")
    assert [(one.step, one.value) for one in history] == [(1, 0.8), (2, 0.8), (3, 0.8)]
