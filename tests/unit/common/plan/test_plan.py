import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import PlanError
from common.methods.mslora_cr import Active
from common.plan.file import load_plan, parse_plan
from common.plan.plan import Metric
from common.plan_fields import Modality

CONFIGS = sorted((Path(__file__).resolve().parents[4] / "configs").glob("*.yaml"))


def stage(name: str, modality: str = "ct", **changes: Any) -> dict[str, Any]:
    fields = {
        "name": name, "modality": modality, "task": name, "sites": ["a", "b"], "rounds": 2,
        "local_epochs": 1, "learning_rate": 1e-3, "batch_size": 8,
    }  # fmt: skip
    return {**fields, **changes}


def document(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": "p",
        "seed": 3,
        "base_model": {"name": "tiny", "sha256": "ab" * 32},
        "method": {"name": "mslora_cr", "rank": 4, "alpha": 4, "active": "all", "contrast": {}},
        "aggregation": "svd",
        "stages": [stage("one"), stage("two", "mr"), stage("three")],
    }
    return {**fields, **changes}


def mistakes(**changes: Any) -> list[str]:
    with pytest.raises(PlanError) as caught:
        parse_plan(document(**changes), "p.yaml")
    return str(caught.value).splitlines()


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_every_plan_in_configs_loads(file: Path):
    assert load_plan(file).stages


def test_text_becomes_enums_and_lists_become_tuples():
    plan = parse_plan(document(), "p.yaml")
    assert plan.aggregation == "svd"
    assert plan.stages[0].modality is Modality.CT
    assert plan.stages[0].sites == ("a", "b")
    assert plan.stages[0].metric is Metric.ACCURACY


def test_a_plan_survives_its_own_canonical_json():
    plan = parse_plan(document(), "p.yaml")
    again = parse_plan(yaml.safe_load(plan.canonical()), "again")
    assert again == plan
    assert again.digest == plan.digest


def test_the_digest_follows_the_content_and_not_the_order_of_fields():
    turned = dict(reversed(document().items()))
    plain, other = parse_plan(document(), "p"), parse_plan(document(seed=4), "p")
    assert parse_plan(turned, "p").digest == plain.digest
    assert other.digest != plain.digest


def test_a_global_batch_is_shared_equally_by_the_stages_sites():
    whole = [stage("one"), stage("two", batch="global"), stage("three", sites=["a"])]
    plan = parse_plan(document(stages=whole), "p.yaml")
    assert [one.site_batch_size for one in plan.stages] == [8, 4, 8]


def test_the_usual_scope_of_a_batch_is_not_written_and_changes_no_digest():
    usual = parse_plan(document(), "p.yaml")
    said = parse_plan(document(stages=[stage("one", batch="site"), *document()["stages"][1:]]), "p")
    shared = document(stages=[stage("one", batch="global"), *document()["stages"][1:]])
    assert '"batch":' not in usual.canonical()
    assert said.digest == usual.digest
    assert parse_plan(shared, "p").canonical().count('"batch":"global"') == 1
    assert parse_plan(yaml.safe_load(parse_plan(shared, "p").canonical()), "p") == parse_plan(
        shared, "p"
    )


def test_a_plan_may_clip_no_gradient_and_others_keep_their_digest():
    free = parse_plan(document(training={"max_grad_norm": None}), "p")
    assert free.training.max_grad_norm is None
    assert parse_plan(yaml.safe_load(free.canonical()), "again").digest == free.digest
    # What a plan without the field was hashed with before null was allowed.
    assert '"max_grad_norm":1.0' in parse_plan(document(), "p").canonical()


@pytest.mark.parametrize(
    ("method", "refused"),
    [
        ({"name": "mslora_cr", "active": "all", "contrast": {}}, "mslora_cr_ortho"),
        ({"name": "mslora_cr", "active": "all", "contrast": None}, None),
        ({"name": "olora", "norm": 0.1, "orthogonality": 0.0}, "olora"),
        ({"name": "olora", "orthogonality": 0.0}, None),
    ],
)
def test_a_regularizer_of_factors_is_refused_where_neither_is_trained(
    method: dict[str, Any], refused: str | None
):
    plan = document(method={"rank": 4, "alpha": 4, **method}, aggregation="fed_sb")
    if refused is None:
        assert parse_plan(plan, "p.yaml").rule.name == "fed_sb"
        return
    with pytest.raises(PlanError) as caught:
        parse_plan(plan, "p.yaml")
    assert str(caught.value) == (
        f"p.yaml: aggregation: found 'fed_sb' with the method '{refused}', which regularizes A or "
        "B, expected a rule that trains one of them in every round: from round 2 on this one "
        "trains R alone"
    )
    # One round trains B, as other rules do.
    once = [{**stage, "rounds": 1} for stage in plan["stages"]]
    assert parse_plan({**plan, "stages": once}, "p.yaml").rule.name == "fed_sb"


def test_every_mistake_is_named_at_once_with_stage_and_field():
    bad = [
        stage("one", rounds=0),
        stage("one", "xry", lerning_rate=1),
        stage("two", sites=[]),
        stage("three", max_new_tokens=10**9),
    ]
    lines = mistakes(stages=bad, method={"name": "mslora_cr", "rank": 0, "alpha": 1})
    assert lines == [
        "p.yaml: method.rank: found 0, expected at least 1",
        "p.yaml: method.contrast: found nothing, expected a value (it has no default)",
        "p.yaml: stage 1 'one', rounds: found 0, expected at least 1",
        "p.yaml: stage 2 'one', modality: found 'xry', expected one of 'pathology', 'radiology', "
        "'dermatology', 'fundus', 'microscopy', 'ct', 'mr', 'xray', 'ultrasound', 'endoscopy' or "
        "'oct'",
        "p.yaml: stage 2 'one', lerning_rate: found a field 'lerning_rate', expected only known "
        "fields; did you mean 'learning_rate'?",
        "p.yaml: stage 3 'two', sites: found [], expected at least one",
        "p.yaml: stage 4 'three', max_new_tokens: found 1000000000, expected at most 10000",
        "p.yaml: stage 2 'one', name: found 'one' again (stage 1 has it), expected a name of its "
        "own",
    ]


def test_a_plan_without_a_proximal_term_does_not_have_the_field():
    plain = parse_plan(document(), "p")
    assert "proximal" not in plain.canonical()
    near = parse_plan(document(training={"proximal": 0.1}), "p")
    assert '"proximal":0.1' in near.canonical()
    assert parse_plan(json.loads(near.canonical()), "p").digest == near.digest != plain.digest


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": -1}, "seed: found -1, expected at least 0"),
        ({"seed": True}, "seed: found True, expected a whole number"),
        ({"seed": "7"}, "seed: found '7', expected a whole number"),
        ({"name": 12}, "name: found 12, expected text"),
        ({"stages": {}}, "stages: found {}, expected a list"),
        ({"stages": [5]}, "stage 1: found 5, expected fields of its own"),
        ({"evaluation": {"future": 1}}, "evaluation.future: found 1, expected true or false"),
        (
            {"simulation": {"data": "x", "learning_rates": [1]}},
            "simulation.learning_rates: found [1], expected names with a value each",
        ),
        (
            {"stages": [stage("one", questions=["a" * 301])]},
            "stage 1 'one', questions.0: found 'aaaaa",
        ),
        ({"stages": [stage("one", questions=["a"] * 101)]}, "expected at most 100 of them"),
        ({"stages": [stage("one", questions=["a" * 301])]}, "expected at most 300 letters"),
        ({"stages": []}, "stages: found [], expected at least one"),
        ({"stages": [stage("one", sites=["a", "a"])]}, "sites: found 'a' twice"),
        ({"stages": [stage("one", quorum=3)]}, "quorum: found 3, expected at most its 2 sites"),
        ({"method": {"name": "mslora"}}, "method, name: found 'mslora', expected one of"),
        (
            {"aggregation": "mean"},
            "aggregation: found 'mean', expected one of 'alternating', 'fed_sb', 'fedavg', "
            "'fedsa', 'fedsvd', 'frozen_a', 'krum', 'median', 'rotated', 'svd' or 'trimmed_mean'",
        ),
        ({"aggregation": ["svd"]}, "aggregation: found ['svd'], expected one of 'alternating', "),
        ({"stages": [stage("one", learning_rate=float("nan"))]}, "learning_rate: found nan"),
        (
            {"stages": [stage("A b")]},
            "name: found 'A b', expected at most 40 small letters, digits",
        ),
        (
            {"stages": [stage("one", batch="global", batch_size=9)]},
            "stage 1 'one', batch_size: found 9 of all 2 sites together (batch: global), "
            "expected a multiple of 2",
        ),
        (
            {"stages": [stage("one", batch="global", batch_size=1)]},
            "batch_size: found 1 of all 2 sites together",
        ),
        (
            {"stages": [stage("one", sites=[f"s{number}" for number in range(10_001)])]},
            "'s10', 's11', 's..., expected at most 10000 of them",
        ),
        (
            {"stages": [stage(f"s{number}") for number in range(1001)]},
            "stages: found [{'name': 's0', ",
        ),
        (
            {"method": {"name": "mslora_cr", "rank": 10**9, "alpha": 1.0}},
            "method.rank: found 1000000000, expected at most 16384",
        ),
        (
            {"method": {"name": "joint", "rank": 64, "alpha": 1.0, "adapters": 1000}},
            "method: found {'name': 'joint', 'rank': 64, 'alpha': 1.0, 'adapters': 1000}, expected "
            "a rank times adapters of at most 16384",
        ),
        ({"training": {"proximal": 1e308}}, "training.proximal: found 1e+308, expected at most 1e"),
        ({"stages": [stage("one", rounds=10**12)]}, "rounds: found 1000000000000, expected at mos"),
        ({"stages": [stage("one", batch_size=10**30)]}, "expected at most 1000000000"),
        (
            {"stages": [stage("one", local_epochs=1e300)]},
            "local_epochs: found 1e+300, expected at most 10000",
        ),
        (
            {"robustness": {"liars": 10**30}},
            f"robustness.liars: found {10**30}, expected at most 1000000000",
        ),
        (
            {"stages": [stage("one", deadline_hours=1e300)]},
            "deadline_hours: found 1e+300, expected at most 100000",
        ),
        (
            {"stages": [stage("one", batch="all")]},
            "batch: found 'all', expected one of 'site' or 'global'",
        ),
    ],
)
def test_a_mistake_names_what_was_found_and_what_was_expected(changes: Any, said: str):
    assert any(said in line for line in mistakes(**changes)), mistakes(**changes)


def test_a_plan_file_may_write_a_learning_rate_without_a_dot(tmp_path: Path):
    file = tmp_path / "p.yaml"
    file.write_text(yaml.safe_dump(document()).replace("0.001", "1e-3"), encoding="utf-8")
    assert load_plan(file).stages[0].learning_rate == 0.001


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n", "found ['a'], expected the fields of a plan"),
        ("name: [", "not YAML"),
        ("seed: 1\nseed: 2\n", "'seed' stands twice"),
        ("", "found nothing, expected the fields of a plan"),
    ],
)
def test_a_file_that_is_no_plan_is_refused_by_name(tmp_path: Path, text: str, said: str):
    file = tmp_path / "p.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        load_plan(file)
    assert str(file) in str(caught.value)
    assert said in str(caught.value)


def test_a_missing_plan_file_is_one_sentence(tmp_path: Path):
    with pytest.raises(PlanError, match=r"none\.yaml: can't be read as a plan \(No such file"):
        load_plan(tmp_path / "none.yaml")


def with_active(active: Active) -> Any:
    method = {"name": "mslora_cr", "rank": 4, "alpha": 4, "contrast": None, "active": active}
    return parse_plan(document(method=method), "p")


def test_all_earlier_adapters_are_summed_or_those_of_the_modality_or_none():
    # Stages: ct, mr, ct.
    assert with_active(Active.ALL).frozen_stages(2) == (0, 1)
    assert with_active(Active.SAME_MODALITY).frozen_stages(2) == (0,)
    assert with_active(Active.NONE).frozen_stages(2) == ()


def test_the_oracle_answers_a_task_with_the_adapters_it_was_learned_on():
    plan = with_active(Active.ALL)
    assert plan.answering_stages(task=1, after=2) == (0, 1)
    assert plan.answering_stages(task=1, after=1) == (0, 1)
    assert plan.answering_stages(task=2, after=0) == (0,)


def test_fine_tuning_answers_everything_with_its_latest_adapter():
    plan = parse_plan(document(method={"name": "sequential", "rank": 4, "alpha": 4}), "p")
    assert plan.frozen_stages(2) == ()
    assert plan.answering_stages(task=0, after=2) == (2,)


@pytest.mark.parametrize(
    ("earlier", "expected"),
    [("all", [1, 2, 3]), ("last", [0, 0, 3]), ("none", [0, 0, 0])],
)
def test_earlier_tasks_are_scored_again_when_the_plan_says_so(earlier: str, expected: list[int]):
    plan = parse_plan(document(evaluation={"earlier": earlier}), "test")
    assert [len(plan.scored_after(number)) for number in range(3)] == expected


def test_tasks_to_come_are_scored_without_those_that_nobody_wants_again():
    wanted = {"earlier": "last", "future": True}
    plan = parse_plan(document(evaluation=wanted), "test")
    assert [list(plan.scored_after(number)) for number in range(3)] == [[1, 2], [2], [0, 1, 2]]


def test_what_a_simulation_does_not_ask_for_is_not_in_the_plan():
    plain = parse_plan(document(simulation={"data": "phantoms"}), "p.yaml")
    told = yaml.safe_load(plain.canonical())["simulation"]
    assert not {"learning_rates", "curve", "curve_schedule"} & set(told)
    asked = {"learning_rates": {"local": 1e-3}, "curve": [10], "curve_schedule": "passes"}
    full = parse_plan(document(simulation={"data": "phantoms", **asked}), "p.yaml")
    told = yaml.safe_load(full.canonical())["simulation"]
    assert {name: told[name] for name in asked} == asked
