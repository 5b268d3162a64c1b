"""Classes of a stage: what is asked after a stage, digests as they were, and what is wrong."""

import json
from typing import Any

import pytest

from common.errors import PlanError
from common.plan.file import parse_plan
from common.plan.plan import Plan


def document(*stages: dict[str, Any], **changes: Any) -> dict[str, Any]:
    usual = {
        "modality": "ct", "sites": ["a"], "rounds": 1, "local_epochs": 1, "learning_rate": 0.1,
        "batch_size": 8,
    }  # fmt: skip
    return {
        "name": "p",
        "seed": 3,
        "base_model": {"name": "tiny", "sha256": "ab" * 32},
        "method": {"name": "sequential", "rank": 2, "alpha": 2},
        "aggregation": "fedavg",
        "stages": [
            {**usual, "name": name, "task": name, **stage}
            for name, stage in zip(("one", "two", "three"), stages, strict=False)
        ],
        **changes,
    }


def plan(*stages: dict[str, Any], **changes: Any) -> Plan:
    return parse_plan(document(*stages, **changes), "p")


def mistakes(*stages: dict[str, Any], **changes: Any) -> list[str]:
    with pytest.raises(PlanError) as caught:
        plan(*stages, **changes)
    return str(caught.value).splitlines()


def test_without_a_task_id_all_classes_so_far_are_asked_and_with_it_the_tasks_own():
    seen = plan({"classes": ["x", "y"]}, {"classes": ["z"]}, {"classes": ["u", "v"]})
    assert seen.asked_classes(0, 0) == ("x", "y")
    assert seen.asked_classes(0, 1) == ("x", "y", "z")
    assert seen.asked_classes(0, 2) == seen.asked_classes(2, 2) == ("x", "y", "z", "u", "v")
    # A task that has not arrived is asked among its own, too.
    assert seen.asked_classes(1, 0) == ("x", "y", "z")
    own = {"classes": ["x", "y"], "scope": "own"}
    told = plan(own, {**own, "classes": ["x", "z"]}, {})
    assert told.asked_classes(0, 2) == ("x", "y")
    assert told.asked_classes(2, 2) == ()


def test_plans_without_classes_are_written_as_they_were_and_others_come_back_whole():
    free = plan({}, {})
    assert "classes" not in free.canonical() and "scope" not in free.canonical()
    assert plan({"scope": "seen"}, {}).digest == free.digest
    with_classes = plan(
        {"classes": ["x", "y"], "scope": "own"}, {"classes": ["x", "z"], "scope": "own"}
    )
    assert with_classes.canonical().count('"scope":"own"') == 2
    again = parse_plan(json.loads(with_classes.canonical()), "again")
    assert again == with_classes and again.digest == with_classes.digest != free.digest


def test_wrong_classes_are_named_a_sentence_each():
    assert mistakes(
        {"classes": ["nevus", "melanoma", "A Nevus."]},
        {"classes": ["normal", "Melanoma"]},
        {"metric": "auc", "scope": "own"},
    ) == [
        "p: stage 1 'one', classes: found 'A Nevus.' more than once (case, articles and "
        "punctuation do not count), expected each class once",
        "p: stage 2 'two', classes: found 'Melanoma' again (stage 1 has it), expected each class "
        "in one stage: the test asks among the classes of all stages (scope: seen)",
        "p: stage 3 'three', scope: found 'own' without classes, expected classes, or no scope",
        "p: stage 3 'three', metric: found 'auc' without classes, expected classes to be scored",
    ]
    assert mistakes({"classes": []}) == [
        "p: stage 1 'one', classes: found [], expected at least one"
    ]
    assert mistakes({"classes": ["x"], "scope": "own"}) == [
        "p: stage 1 'one', classes: found one, expected at least two to choose from (scope: own)"
    ]
    (line,) = mistakes({"classes": ["x", " y"]})
    assert line.startswith(
        "p: stage 1 'one', classes.1: found ' y', expected one line of at most 80"
    )


def test_the_same_class_may_come_again_where_the_test_is_told_the_task():
    own = {"classes": ["normal", "x"], "scope": "own"}
    assert plan(own, {**own, "classes": ["normal", "y"]}).stages[1].classes == ("normal", "y")
