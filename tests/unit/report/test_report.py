import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from common.errors import DataError, StateError
from common.metrics import CLASS_METRICS
from common.plan.plan import Metric
from common.plan_fields import Modality
from report.continual_metrics import METRICS
from report.headlines import (
    comparison_headline,
    drops,
    forgetting_headline,
    gains,
    learning_headline,
    scores_by_method,
    tasks_led,
)
from report.html import render_page
from report.json_file import from_document, read_report, to_document
from report.learned.verdict import gains_when_learned
from report.model import (
    LossPoint,
    PlanFacts,
    Provenance,
    RoundCost,
    RunCost,
    RunReport,
    SiteCost,
    StageFacts,
)
from report.spread import Spread
from report.write import write_report

SCORES = ((0.8, 0.3, 0.2), (0.8, 0.9, 0.4), (0.8, 0.9, 1.0))


UNSEEN = {"hospital": "u", "questions": [4] * 3, "zero_shot": [None] * 3, "last": [None] * 3}
CLASSES = {
    "scores": dict.fromkeys(CLASS_METRICS, [[None] * 3] * 3),
    "zero_shot": dict.fromkeys(CLASS_METRICS, [[None] * 3] * 3),
    "majority": dict.fromkeys(CLASS_METRICS, [None] * 3),
    "auc_by_site": {},
}
TABLE = {"question": None, "truths": ["a", "b"], "answers": ["a", "b"]}
TASK: dict[str, object] = {
    "task": "tissue", "questions": 4, "pictures": 4, "scores": {}, "gains": {}, "by_site": [],
}  # fmt: skip


def run(
    scores: Sequence[Sequence[float | None]] = SCORES,
    names: Sequence[str] = ("tissue", "quadrant", "plane"),
    metrics: Sequence[Metric] = (Metric.ACCURACY,) * 3,
    method: str = "mslora_cr",
    seed: int = 0,
) -> RunReport:
    modalities = (Modality.PATHOLOGY, Modality.FUNDUS, Modality.MR)
    stages = tuple(
        StageFacts(name=name, modality=modality, task=name, sites=("a", "b"), metric=metric)
        for name, modality, metric in zip(names, modalities, metrics, strict=True)
    )
    rounds = tuple(RoundCost(stage=name, round=1, bytes_up=1000, bytes_down=2000) for name in names)
    site = SiteCost(bytes_up=3000, bytes_down=6000, by_round=rounds)
    return RunReport(
        plan=PlanFacts(name="demo", hash="ab" * 32),
        method=method,
        seed=seed,
        stages=stages,
        scores=tuple(tuple(row) for row in scores),
        zero_shot=(0.1, 0.2, 0.3),
        majority=(0.5, 0.1, None),
        task_metrics=({"accuracy": 0.8, "f1": 0.85},) * 3,
        cost=RunCost(sites={"a": site, "b": site}, seconds=61.5, peak_memory_bytes=2_000_000_000),
        aggregation_error=(0.0, 0.012, None),
        curves=tuple(
            LossPoint(stage=name, round=1, site=site, loss=1.5) for name in names for site in "ab"
        ),
        provenance=Provenance(base_model="cd" * 32, bank_head="ef" * 32, code="0123"),
        versions={"flwr": "1.41.0"},
    )


class Links(HTMLParser):
    """Collects every address and script of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one written run."""
    folder = tmp_path_factory.mktemp("written")
    write_report(folder, [run()])
    return folder


def parsed(html: str) -> Links:
    links = Links()
    links.feed(html)
    return links


def test_a_report_survives_the_way_through_json():
    report = run()
    document = json.loads(json.dumps(to_document(report)))
    assert from_document(document, "here") == report


def test_the_document_has_the_keys_that_others_read():
    document = to_document(run())
    assert list(document)[:6] == ["plan", "method", "seed", "stages", "scores", "zero_shot"]
    assert document["plan"] == {"name": "demo", "hash": "ab" * 32}
    assert document["stages"][1] == {
        "name": "quadrant",
        "modality": "fundus",
        "task": "quadrant",
        "sites": ["a", "b"],
        "metric": "accuracy",
    }
    assert set(document["metrics"]) == set(METRICS)
    assert document["metrics"]["forgetting"] == 0.0
    assert document["metrics"]["last"] == pytest.approx(0.9)
    assert document["metrics_missing"] == {"accuracy": {"learning_gain": "single_task"}}
    assert document["cost"]["sites"]["a"]["by_round"][0]["bytes_up"] == 1000


def test_unlike_measures_are_never_averaged():
    document = to_document(run(metrics=(Metric.ACCURACY, Metric.ACCURACY, Metric.RECALL)))
    assert document["metrics"] == dict.fromkeys(METRICS)
    assert document["metrics_by_kind"]["accuracy"]["last"] == pytest.approx((0.8 + 0.9) / 2)
    assert document["metrics_by_kind"]["recall"]["last"] == 1.0


def test_a_loss_that_is_not_finite_becomes_null():
    lost = replace(run(), curves=(LossPoint(stage="tissue", round=1, site="a", loss=math.nan),))
    document = json.loads(json.dumps(to_document(lost), allow_nan=False))
    assert document["curves"][0]["loss"] is None
    assert from_document(document, "here").curves[0].loss is None


def test_one_run_writes_itself_and_equal_runs_write_equal_bytes(written: Path, tmp_path: Path):
    write_report(tmp_path, [run()])
    names = sorted(file.name for file in written.iterdir())
    assert names == [
        "comparison.svg",
        "losses.svg",
        "matrix.svg",
        "memory.svg",
        "metrics.csv",
        "moments.svg",
        "report.html",
        "report.json",
        "traffic.svg",
    ]
    for name in names:
        assert (written / name).read_bytes() == (tmp_path / name).read_bytes()
    assert "comparison" not in json.loads((written / "report.json").read_text())


def test_several_runs_are_compared_and_read_back(tmp_path: Path):
    runs = [run(), run(seed=1), run(method="sequential")]
    write_report(tmp_path, runs)
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["method"] == "mslora_cr" and len(document["comparison"]) == 3
    assert read_report(tmp_path) == runs
    text = parsed((tmp_path / "report.html").read_text()).text
    assert "Comparison of methods" in text and "90.0 ± 0.0" in text


def test_the_page_is_one_file_without_network_or_script(written: Path):
    html = (written / "report.html").read_text()
    links = parsed(html)
    assert "script" not in links.tags and "link" not in links.tags
    assert links.tags.count("figure") == links.tags.count("svg") == 5
    for link in [*links.addresses, *re.findall(r"url\((.*?)\)", html)]:
        assert link.startswith("#") and html.count(f'id="{link[1:]}"') == 1
    ids = re.findall(r' id="(.*?)"', html)
    assert len(ids) == len(set(ids))
    assert "no medical device" in links.text
    assert not re.search(r"https?://|@import", html)
    assert "Mean score at the end 90.0 %" in links.text and "ef" * 32 in links.text


def test_charts_are_svg_whose_texts_are_texts(written: Path):
    charts = [ElementTree.parse(file).getroot() for file in sorted(written.glob("*.svg"))]
    assert {chart.tag for chart in charts} == {"{http://www.w3.org/2000/svg}svg"}
    label = charts[-1].get("aria-label")
    assert label is not None and label.startswith("The sites sent 0.006 MB together: adapters")
    texts = [text for chart in charts for text in chart.itertext()]
    assert "quadrant" in texts and "sent by the site" in texts
    assert not any("Matplotlib" in text for text in texts)


def test_names_with_a_dollar_or_markup_are_drawn_as_they_are(tmp_path: Path):
    write_report(tmp_path, [run(names=("$x$", "$_", "<i>&"))])
    texts = list(ElementTree.parse(tmp_path / "comparison.svg").getroot().itertext())
    assert {"$x$", "$_", "<i>&"} <= set(texts)
    assert "i" not in parsed((tmp_path / "report.html").read_text()).tags


def test_names_are_escaped_in_the_page():
    names = ("<b>tissue</b>", '"quadrant"', "plane_&_side")
    links = parsed(render_page([run(names=names)]))
    assert "b" not in links.tags[: links.tags.index("table")]
    assert "<b>tissue</b>" in links.text and "plane_&_side" in links.text


def test_a_run_cut_short_still_makes_a_report(tmp_path: Path):
    partial = run(scores=((0.8, None, None), (None, None, None), (None, None, None)))
    bare = RunCost(sites={}, seconds=None, peak_memory_bytes=None)
    partial = replace(partial, curves=(), cost=bare, aggregation_error=(0.0,), task_metrics=())
    write_report(tmp_path, [partial])
    assert not (tmp_path / "losses.svg").exists() and not (tmp_path / "traffic.svg").exists()
    assert read_report(tmp_path) == [partial]


def test_a_method_that_learns_nothing_has_its_losses_drawn_too(tmp_path: Path):
    nothing = [replace(point, loss=0.0) for point in run().curves]
    write_report(tmp_path, [replace(run(method="zero_shot"), curves=tuple(nothing))])
    assert (tmp_path / "losses.svg").exists()


def test_findings_by_hand():
    fallen = run(scores=((0.8, 0.3, 0.2), (0.9, 0.9, 0.4), (0.6, 0.9, 1.0)))
    assert drops(fallen) == [("tissue", pytest.approx(0.3)), ("quadrant", 0.0)]
    # What a task scored before it was learned can't be forgotten.
    earlier = run(scores=((0.8, 0.95, 0.2), (0.8, 0.9, 0.4), (0.8, 0.9, 1.0)))
    assert drops(earlier) == [("tissue", 0.0), ("quadrant", 0.0)]
    # over the better of zero-shot (.1 .2 .3) and majority (.5 .1 none), when learned
    assert [more for _, more in gains(fallen)] == pytest.approx([0.3, 0.7, 0.7])
    assert (
        forgetting_headline(fallen) == "1 of 2 earlier tasks loses score, tissue most: 30.0 points"
    )
    assert comparison_headline([fallen]).endswith("tissue least: +10.0 points")
    assert [more.gain for more in gains_when_learned(fallen)] == pytest.approx([0.3, 0.7, 0.7])
    other = run(method="sequential")
    assert (
        comparison_headline([fallen, other])
        == "After the last stage sequential has the highest mean score on 1 of 3 tasks"
    )
    assert tasks_led(scores_by_method([fallen, other])) == [0, 1]  # ties count for nobody


NOT_AGAIN = ((0.8, None, None), (None, 0.9, None), (None, None, 1.0))


def test_what_was_not_scored_again_is_neither_forgotten_nor_kept():
    once = run(scores=NOT_AGAIN)
    why = "earlier tasks were not scored at the end"
    assert forgetting_headline(once) == f"Forgetting is not known: {why}"
    assert why in render_page([once])
    assert learning_headline(once).startswith("3 of 3 tasks score above both zero-shot and")
    unknown = replace(once, zero_shot=(None,) * 3, majority=(None,) * 3)
    assert learning_headline(unknown) == "The score of each task, stage by stage"
    other = run(scores=((0.8, None, None), (None, 0.9, None), (None, None, 0.7)), method="x")
    told = comparison_headline([once, other])
    assert told == "After the last stage mslora_cr has the highest mean score on 1 of 1 task"
    equal = comparison_headline([once, replace(once, method="x")])
    assert equal == (
        "After the last stage no method alone has the highest mean score on any of 1 task"
    )


def test_joint_training_has_no_score_when_learned():
    joint = replace(run(method="joint"), single_task=(0.5, 0.5, 0.5), all_tasks_at_once=True)
    document = to_document(joint)
    known = {name for name, value in document["metrics"].items() if value is not None}
    assert known == {"last", "avg"}
    assert "joint has not" in document["metrics_missing"]["accuracy"]["learning_gain"]
    assert drops(joint) == gains(joint) == []
    assert scores_by_method([joint])[0].learned == (None, None, None)
    assert forgetting_headline(joint).endswith("all tasks were learned at once")
    assert from_document(document, "here") == joint


def test_the_spread_over_seeds_is_the_sample_deviation():
    low, high = run(), run(scores=(SCORES[0], SCORES[1], (0.6, 0.9, 1.0)), seed=1)
    (method,) = scores_by_method([low, high])
    assert method.seeds == (0, 1)
    # mean of .8 and .6; deviation sqrt((.1^2 + .1^2) / 1)
    assert method.last[1] == Spread(0.9, 0.0, 2)
    tissue = method.last[0]
    assert tissue is not None and tissue.deviation is not None
    assert (tissue.mean, tissue.deviation) == pytest.approx((0.7, math.sqrt(0.02)))


def test_runs_of_other_stages_are_not_compared(tmp_path: Path):
    other = run(names=("tissue", "quadrant", "side"), method="sequential")
    with pytest.raises(DataError, match=r"sequential \(seed 0\) ran the stages .*side"):
        write_report(tmp_path, [run(), other])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scores": [[0.1]]}, "scores: found .* expected 3, one a stage"),
        ({"seed": "x"}, "report.json, seed: "),
        ({"comparison": []}, "comparison: found "),
        ({"single_task": [0.5]}, "single_task: found 1 entries, expected 3, one a stage"),
        (
            {"routed": {"scores": [[None] * 3] * 3, "stage": [[0.5] * 2] * 3, "modality": []}},
            "routed.stage: found 2 entries, expected 3",
        ),
        (
            {"unseen": {"hospitals": [], "sites": [UNSEEN | {"questions": [4]}]}},
            "unseen.questions: found 1 entries, expected 3",
        ),
        (
            {"classes": CLASSES | {"majority": {}}},
            "classes.majority: found no accuracy, expected it",
        ),
        ({"answers": {"tasks": [], "mean_gains": {}}}, "answers.tasks: found 0 entries"),
        (
            {"answers": {"tasks": [TASK | {"confusion": [TABLE | {"counts": [[1, 2]]}]}]}},
            "counts: found another shape than .2, 2., truths and answers",
        ),
        (
            {"answers": {"tasks": [TASK | {"confusion": [TABLE | {"counts": [[1, 2], [0, 0]]}]}]}},
            "counts: found a negative number or a truth without an answer",
        ),
        (
            {"cost": {"sites": {}, "seconds": None, "peak_memory_bytes": None, "steps": 10**400}},
            "cost.steps: ",
        ),
    ],
)
def test_a_wrong_report_is_refused_by_field(
    tmp_path: Path, change: dict[str, object], sentence: str
):
    (tmp_path / "report.json").write_text(json.dumps(to_document(run()) | change))
    with pytest.raises(DataError, match=sentence):
        read_report(tmp_path)


def test_a_report_that_is_not_there_or_not_json_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="No such file"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(DataError, match="found a list"):
        read_report(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(StateError, match="the report can't be written"):
        write_report(tmp_path / "runs", [run()])


def test_a_file_that_cannot_be_replaced_leaves_nothing_half_written(tmp_path: Path):
    (tmp_path / "report.json").mkdir()
    with pytest.raises(StateError, match=r"report\.json: the report can't be written"):
        write_report(tmp_path, [run()])
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
