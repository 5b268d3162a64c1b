"""`fedmslora plan`: what it prints, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from commands.plan import app
from commands.terminal.plan_table import octets, robustness_lines, short
from common.errors import ModelError, PlanError
from common.plan.file import load_plan, parse_plan
from server.coordinator.plan_template import plan_template
from simulation.hospitals import BASE_MODELS
from tests.unit.small_round import document as plan_document

DEMO = "configs/demo.yaml"


def printed(*arguments: str) -> str:
    found = CliRunner().invoke(app, ["cost", *arguments], env={"COLUMNS": "150"})
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.output


def document(*arguments: str) -> dict[str, Any]:
    return json.loads(printed(*arguments, "--json"))


def test_both_models_are_told_of_where_none_is_named():
    found = document(DEMO)
    assert found["plan"] == "demo"
    assert [model["model"] for model in found["models"]] == ["tiny-llava", "7b"]
    small, large = found["models"]
    assert small["base"] == 2_756_096 and large["base"] == 7_566_219_264
    assert [len(model["stages"]) for model in found["models"]] == [9, 9]
    assert [stage["earlier"] for stage in small["stages"]] == list(range(9))


def test_a_models_folder_is_read():
    (found,) = document(DEMO, "--model", str(BASE_MODELS["tiny-llava"]))["models"]
    (own, _) = document(DEMO)["models"]
    assert {**found, "model": "tiny-llava"} == own


def test_the_paper_at_the_7b_is_near_what_was_reckoned_by_hand():
    (found,) = document("configs/paper8_federated.yaml", "--model", "7b")["models"]
    first, *_, last = found["stages"]
    # PathVQA with checkpointing: 26.5 TFLOP a question without what attention's backward repeats.
    assert first["operations"]["question"] == pytest.approx(26.5e12, rel=0.03)
    assert first["operations"]["tower"] == pytest.approx(0.381e12, rel=0.01)
    # configs/paper8_federated.yaml: 335,544,320 bytes an adapter, 38 rounds, 13 GB each way.
    assert 0 < found["adapter_bytes"] - 335_544_320 < 100_000
    rounds = sum(stage["rounds"] * stage["round_up"] for stage in found["stages"])
    assert rounds == pytest.approx(38 * 335_544_320, rel=0.001)
    assert last["bank_parameters"] == 8 * 167_772_160


def test_what_the_user_says_of_the_data_takes_the_place_of_what_is_assumed():
    said = {"questions": 80, "images": 10, "tokens": 40.0, "labels": 9.0, "captions": 7.0}
    options = [word for name, value in said.items() for word in (f"--{name}", f"{value}")]
    (found,) = document(DEMO, "--model", "7b", *options)["models"]
    assert found["assumed"] == said
    first = found["stages"][0]
    # 3 rounds of 3 epochs of 80 questions in batches of 16.
    assert (first["drawn"], first["steps"]) == (720, 45)


def test_as_many_questions_a_picture_are_assumed_as_there_usually_are():
    (found,) = document(DEMO, "--model", "7b", "--questions", "760")["models"]
    assert found["assumed"]["images"] == 100


def test_hours_follow_from_what_a_device_achieves():
    (found,) = document(DEMO, "--model", "7b", "--tflops", "400")["models"]
    for stage in found["stages"]:
        assert stage["site_seconds"] == stage["site_operations"] / 4e14
    assert "hours" in printed(DEMO, "--model", "7b", "--tflops", "400")


def test_people_get_a_table_with_what_was_assumed():
    text = printed(DEMO, "--model", str(BASE_MODELS["tiny-llava"]))
    assert all(name in text for name in ("stain", "matter", "catch", "FLOP a", "question"))
    assert "assumed: 300 questions" in text and "Traceback" not in text


@pytest.mark.parametrize(
    ("arguments", "error", "found"),
    [
        (("--labels", "30", "--tokens", "20"), PlanError, "--labels: found 30 of 20 tokens"),
        (("--questions", "5", "--images", "6"), PlanError, "--images: found 6 for 5 questions"),
        (("--tokens", "nan"), PlanError, "--tokens: found nan, expected a finite number"),
        (("--tflops", "inf"), PlanError, "--tflops: found inf, expected a finite number"),
        (("--tokens", "1e308"), PlanError, r"--tokens: found 1e\+308, expected at most 1e\+12"),
        (("--questions", "9" * 999), PlanError, f"--questions: found {'9' * 30}, expected at most"),
        (("--model", "nowhere"), ModelError, "nowhere/config.json: can't be read"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    arguments: tuple[str, ...], error: type[Exception], found: str
):
    with pytest.raises(error, match=found):
        printed(DEMO, *arguments)


def test_a_plan_that_is_wrong_is_refused(tmp_path: Path):
    (tmp_path / "p.yaml").write_text("name: p\n", encoding="utf-8")
    with pytest.raises(PlanError, match="found nothing, expected a value"):
        printed(str(tmp_path / "p.yaml"))


def test_numbers_are_short():
    assert [short(n) for n in (0, 999, 1000, 7.566e9, 1.5e18)] == [
        "0", "999", "1 k", "7.566 G", "1.5 E"
    ]  # fmt: skip
    assert [octets(n) for n in (0, 12, 335_612_201)] == ["0 B", "12 B", "335.6 MB"]


def call(*arguments: str) -> str:
    found = CliRunner().invoke(app, arguments, env={"COLUMNS": "150"})
    if found.exception is not None:
        raise found.exception
    return found.output


def test_a_plan_is_checked_and_what_may_stop_it_is_named():
    said = call("check", DEMO)
    digest = load_plan(Path(DEMO)).digest
    assert said.startswith(f"{DEMO}: a valid plan, demo (digest {digest[:12]}): 9 stages, ")
    document = json.loads(call("check", DEMO, "--json"))
    assert (document["plan"], document["digest"]) == ("demo", digest)
    assert all(f"Note: {remark}" in said for remark in document["remarks"])


def test_a_stage_that_needs_every_site_is_named(tmp_path: Path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(plan_template(), encoding="utf-8")
    quorums = [stage.quorum for stage in load_plan(plan).stages]
    (remarks,) = [json.loads(call("check", str(plan), "--json"))["remarks"]]
    assert bool(remarks) == (None in quorums)
    text = plan.read_text(encoding="utf-8")
    without = "\n".join(line for line in text.splitlines() if "quorum" not in line)
    plan.write_text(without, encoding="utf-8")
    assert "no quorum in stain: a round there needs every site" in call("check", str(plan))


def test_a_wrong_plan_is_one_sentence(tmp_path: Path):
    (tmp_path / "plan.yaml").write_text("name: x", encoding="utf-8")
    for command in ("check", "show"):
        with pytest.raises(PlanError, match=r"plan\.yaml"):
            call(command, str(tmp_path / "plan.yaml"))


def test_a_plan_is_shown_with_its_digest_and_its_stages():
    plan = load_plan(Path(DEMO))
    said = call("show", DEMO)
    assert f"plan demo, digest {plan.digest}" in said
    for stage in plan.stages:
        assert stage.name in said
    assert "accuracy" in said
    document = json.loads(call("show", DEMO, "--json"))
    assert document == {"digest": plan.digest, "plan": json.loads(plan.canonical())}


def test_a_plan_says_what_bounds_a_site_and_what_its_rule_promises():
    usual = parse_plan(plan_document(sites=["a", "b", "c"]), "p")
    assert robustness_lines(usual) == [
        "one site: share at most 50 % of 3; a change counts up to 2 times the usual one; "
        "nothing below a cosine of -0.1 to most others"
    ]
    free = {"clip": None, "least_cosine": None, "largest_share": 0.6}
    fields = {**plan_document(sites=["a", "b", "c"]), "aggregation": "median", "robustness": free}
    assert robustness_lines(parse_plan(fields, "p")) == [
        "one site: share at most 60 % of 3; a change of any size counts; of any direction",
        "median: whatever 1 of 3 sites send, every number of B stays between the smallest and the "
        "largest of the honest ones",
    ]
