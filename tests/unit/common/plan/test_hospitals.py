"""The plan's simulated hospitals: what is left out of the digest, and one sentence a mistake."""

from time import process_time
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
        ({"label_skew": 0}, "label_skew: found 0, expected at least 1e-09"),
        ({"size_skew": -1}, "size_skew: found -1, expected at least 1e-09"),
        ({"size_skew": 1e308}, "size_skew: found 1e+308, expected at most 1000000000.0"),
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


MANY = [f"h{number}" for number in range(10_001)]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"deal": [10**9, 1]}, "deal: found 1000000001 hospitals in all, expected at most 10000"),
        ({"deal": [1] * 10_001}, "deal: found [1, 1,"),
        ({"test_questions": 10**12}, "test_questions: found 1000000000000, expected at most"),
        ({"train_fraction": 1.1}, "train_fraction: found 1.1, expected at most 1.0"),
        ({"train_fractions": dict.fromkeys(MANY, 0.5)}, "train_fractions: found {'h0': 0.5,"),
        ({"curve": list(range(1, 1002))}, "curve: found [1, 2,"),
        ({"curve": [10**12]}, "curve.0: found 1000000000000, expected at most 1000000000"),
        ({"compare": MANY}, "compare: found ['h0',"),
        ({"learning_rates": dict.fromkeys(MANY, 0.5)}, "learning_rates: found {'h0': 0.5,"),
        ({"reference": {"pairs": 10**9}}, "reference.pairs: found 1000000000, expected at most"),
        ({"hospitals": {"names": MANY}}, "hospitals.names: found ['h0',"),
        ({"hospitals": {"unseen": [{"name": one} for one in MANY]}}, "hospitals.unseen: found [{"),
        (
            {"hospitals": {"noisy_labels": dict.fromkeys(MANY, 0.5)}},
            "hospitals.noisy_labels: found {'h0': 0.5,",
        ),
    ],
)
def test_an_absurd_size_is_refused_in_one_short_sentence(fields: dict[str, Any], sentence: str):
    (found,) = mistakes(simulation={"data": "phantoms", **fields})
    assert found.startswith(f"p.yaml: simulation.{sentence}")
    assert ", expected at most" in found and len(found) < 200


def test_too_few_reference_pairs_are_refused_before_anything_runs():
    assert mistakes(simulation={"data": "phantoms", "reference": {"pairs": 1}}) == [
        "p.yaml: simulation.reference.pairs: found 1, expected at least 2"
    ]


def test_of_many_unknown_hospitals_some_are_named():
    (found,) = mistakes(simulation=simulation(noisy_labels=dict.fromkeys(MANY[:1000], 0.5)))
    assert found.endswith(
        "'h10', 'h11' and 988 more, expected only hospitals of the plan: 'a', 'b'"
    )


def test_as_many_hospitals_as_a_plan_may_have_are_checked_at_once():
    # Half a minute where each name was sought in all.
    unseen = [{"name": name} for name in MANY[:-1]]
    started = process_time()
    plan = parse_plan(document(simulation=simulation(unseen=unseen)), "p")
    assert process_time() - started < 5
    assert plan.simulation and plan.simulation.hospitals
    assert len(plan.simulation.hospitals.unseen) == 10_000
