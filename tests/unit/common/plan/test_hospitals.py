"""The plan's simulated hospitals: what is left out of the digest, and one sentence a mistake."""

from typing import Any

import pytest

from common.plan.file import parse_plan
from tests.unit.common.plan.test_plan import document, mistakes

WHERE = "p.yaml: simulation.hospitals."


def simulation(deal: list[int] | None = None, **hospitals: Any) -> dict[str, Any]:
    return {"data": "phantoms", "deal": deal, "hospitals": hospitals}


def test_a_plan_without_hospitals_keeps_its_digest():
    plain = parse_plan(document(simulation={"data": "phantoms"}), "p")
    # As the plan of an earlier version was hashed.
    assert "hospitals" not in plain.canonical()
    assert plain.digest == "e9db3c48ee270dd009f17f37090bfbc86dd3ea0f33437b298650177baca71545"


def test_hospitals_travel_with_the_plan():
    every = simulation(
        scanners=0.5, label_skew=0.3, size_shares={"a": 0.75, "b": 0.25}, noisy_labels={"b": 0.2},
        unseen=[{"name": "coast", "tasks": ["two"]}],
    )  # fmt: skip
    plan = parse_plan(document(simulation=every), "p")
    again = parse_plan(plan.model_dump(mode="json"), "again")
    assert again == plan and again.digest == plan.digest
    assert '"scanners":0.5' in plan.canonical()
    other = parse_plan(document(simulation=simulation(scanners=0.6)), "p")
    assert other.digest != plan.digest


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"scanners": 1.5}, "scanners: found 1.5, expected at most 1.0"),
        ({"label_skew": 0}, "label_skew: found 0, expected more than 0.0"),
        ({"size_skew": -1}, "size_skew: found -1, expected more than 0.0"),
        (
            {"scaners": 0.5},
            "scaners: found a field 'scaners', expected only known fields; "
            "did you mean 'scanners'?",
        ),
        (
            {"size_shares": {"a": 0.5, "b": 0.4}},
            "size_shares: found shares that sum to 0.9, expected 1",
        ),
        (
            {"size_shares": {"a": 1.0}},
            "size_shares: found no share of 'b', expected one of each",
        ),
        (
            {"size_shares": {"a": 0.5, "b": 0.5}, "size_skew": 0.5},
            "size_skew: found it beside size_shares, expected one of the two",
        ),
        (
            {"noisy_labels": {"nroth": 0.5}},
            "noisy_labels: found 'nroth', expected only hospitals of the plan: 'a', 'b'",
        ),
        ({"noisy_labels": {"a": 2}}, "noisy_labels.a: found 2, expected at most 1.0"),
        (
            {"skewed_tests": True},
            "skewed_tests: found true without label_skew, expected both or neither",
        ),
        (
            {"unseen": [{"name": "a"}]},
            "unseen: found 'a', which is a site of the stage 'one', expected a hospital that "
            "trains in no stage",
        ),
        (
            {"unseen": [{"name": "coast"}, {"name": "coast"}]},
            "unseen: found 'coast' twice, expected each once",
        ),
        (
            {"unseen": [{"name": "coast", "tasks": ["four"]}]},
            "unseen, 'coast', tasks: found 'four', expected only tasks of the plan: 'one', 'two', "
            "'three'",
        ),
        (
            {"names": ["a", "b"]},
            "names: found names without simulation.deal, expected null: every site is one "
            "hospital of its own name",
        ),
    ],
)
def test_a_mistake_is_one_sentence(fields: dict[str, Any], sentence: str):
    assert mistakes(simulation=simulation(**fields)) == [WHERE + sentence]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (None, "names: found nothing, expected 3: one for each hospital that is dealt"),
        (["x", "y"], "names: found 2 names, expected 3: one for each hospital that is dealt"),
        (["x", "y", "x"], "names: found 'x' twice, expected each once"),
    ],
)
def test_dealt_hospitals_have_names(names: list[str] | None, sentence: str):
    fields = simulation([1, 2], scanners=0.5, names=names)
    assert mistakes(simulation=fields) == [WHERE + sentence]


def test_an_unseen_hospital_is_none_of_those_dealt():
    fields = simulation([1, 2], names=["x", "y", "z"], unseen=[{"name": "y"}])
    assert mistakes(simulation=fields) == [
        f"{WHERE}unseen: found 'y', which is one of `names`, expected another"
    ]
