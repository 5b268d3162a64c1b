"""How data are dealt to simulated sites."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from client.data.task import TaskData, read_task, read_test
from common.errors import PlanError, StateError
from common.plan.file import load_plan
from common.plan.plan import Plan
from simulation.heterogeneity.facts import simulated_hospitals
from simulation.hospitals import (
    BASE_MODELS,
    check,
    check_made_of,
    claim_given_data,
    prepare,
)
from tests.flow.small_run import STAGE, small_plan

EXPERIMENTS = Path(__file__).resolve().parents[3] / "configs" / "experiments"
_HOSPITALS = {"data": "phantoms", "train_fraction": 0.1, "test_questions": 5, "label_noise": 0.2}


def plan_of(tmp_path: Path, sites: list[str], **simulation: Any) -> Plan:
    stages = [{**STAGE, "sites": sites}]
    fields = {**_HOSPITALS, **simulation}
    return load_plan(small_plan(tmp_path / "plan.yaml", stages=stages, simulation=fields))


def made(plan: Plan, folder: Path) -> dict[str, TaskData]:
    prepare(plan, folder, None, BASE_MODELS["tiny-llava"])
    return {site: read_task(folder / site / "data" / "CXP") for site in plan.sites}


def asked(*parts: TaskData) -> list[list[tuple[bytes, str, str]]]:
    """Picture, question and answer of every training question, then of every test question."""
    return [
        [(e.image.read_bytes(), e.question, e.answer) for part in parts for e in getattr(part, of)]
        for of in ("train", "test")
    ]


def test_a_site_that_is_dealt_several_hospitals_holds_their_data_and_no_other(tmp_path: Path):
    apart = made(plan_of(tmp_path, ["a", "b", "c"]), tmp_path / "apart")
    pooled = made(plan_of(tmp_path, ["a"], deal=[3]), tmp_path / "pooled")
    uneven = made(plan_of(tmp_path, ["a", "b"], deal=[1, 2]), tmp_path / "uneven")
    assert asked(pooled["a"]) == asked(*apart.values())
    assert asked(uneven["a"]) == asked(apart["a"])
    assert asked(uneven["b"]) == asked(apart["b"], apart["c"])


@pytest.mark.parametrize("name", ["reference", "reference-pairs", "reference-index"])
def test_a_site_is_not_called_as_the_reference_pairs_beside_it_are(tmp_path: Path, name: str):
    check(plan_of(tmp_path, ["a", name]), "plan.yaml", None, None)
    with_pairs = plan_of(tmp_path, ["a", name], reference={"pairs": 60})
    with pytest.raises(PlanError) as refused:
        check(with_pairs, "plan.yaml", None, None)
    assert str(refused.value) == (
        f"plan.yaml: stages: found a site named {name!r}, expected another name: the folder of "
        "reference pairs is beside the sites'"
    )


def test_a_task_may_have_a_share_of_its_own(tmp_path: Path):
    usual = made(plan_of(tmp_path, ["a"]), tmp_path / "usual")["a"]
    other = made(plan_of(tmp_path, ["a"], train_fractions={"PCAM": 0.9}), tmp_path / "other")["a"]
    more = made(plan_of(tmp_path, ["a"], train_fractions={"CXP": 0.2}), tmp_path / "more")["a"]
    assert len(other.train) == len(usual.train) == 20
    assert len(more.train) == 40


def test_a_share_of_a_task_that_the_plan_does_not_have_is_refused(tmp_path: Path):
    plan = plan_of(tmp_path, ["a"], train_fractions={"CPX": 0.1, "CXP": 0.2})
    with pytest.raises(PlanError) as refused:
        check(plan, "plan.yaml", None, None)
    assert str(refused.value) == (
        "plan.yaml: simulation.train_fractions: found 'CPX', expected only tasks of the plan: 'CXP'"
    )


def test_a_deal_has_a_number_for_each_site(tmp_path: Path):
    plan = plan_of(tmp_path, ["a", "b"], deal=[3])
    with pytest.raises(PlanError) as refused:
        check(plan, "plan.yaml", None, None)
    assert str(refused.value) == (
        "plan.yaml: simulation.deal: found 1 number, expected 2: one for each site of the task "
        "'CXP'"
    )


def test_a_plan_scored_on_validation_learns_the_same_and_never_sees_the_test(tmp_path: Path):
    usual = made(plan_of(tmp_path, ["a", "b"]), tmp_path / "usual")
    plan = plan_of(tmp_path, ["a", "b"], split="validation")
    tuned = made(plan, tmp_path / "tuned")
    assert '"split":"validation"' in plan.canonical()
    assert "split" not in plan_of(tmp_path, ["a", "b"], split="test").canonical()
    for site in ("a", "b"):
        (learned, tested), (same, validated) = asked(usual[site]), asked(tuned[site])
        assert same == learned
        assert len(validated) == len(tested)
        assert {picture for picture, *_ in validated}.isdisjoint(
            {picture for picture, *_ in [*learned, *tested]}
        )


DIFFERENT = {
    "scanners": 0.5, "label_skew": 0.4, "size_shares": {"a": 0.6, "b": 0.4},
    "noisy_labels": {"b": 0.25}, "unseen": [{"name": "coast"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def different(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data of two hospitals and an unseen one that differ in every way."""
    folder = tmp_path_factory.mktemp("different")
    made(plan_of(folder, ["a", "b"], hospitals=DIFFERENT, label_noise=0.0), folder / "made")
    return folder / "made"


def test_hospitals_that_differ_are_made_again_byte_by_byte(different: Path, tmp_path: Path):
    made(plan_of(tmp_path, ["a", "b"], hospitals=DIFFERENT, label_noise=0.0), tmp_path / "made")
    one, two = (
        {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob("data/CXP/**/*")
            if file.is_file()
        }
        for folder in (different, tmp_path / "made")
    )
    assert one == two
    assert {name.split("/data/")[0] for name in one} == {"a", "b", "_unseen/coast"}


def test_what_was_drawn_is_kept_beside_the_data(different: Path, tmp_path: Path):
    plan = plan_of(tmp_path, ["a", "b"], hospitals=DIFFERENT, label_noise=0.0)
    a, b, coast = simulated_hospitals(plan, different)
    assert [one.name for one in (a, b, coast)] == ["a", "b", "coast"]
    assert [one.unseen for one in (a, b, coast)] == [False, False, True]
    assert a.scanner is not None and a.scanner != b.scanner
    for told in (a, b):
        (task,), held = told.tasks, read_task(different / told.name / "data/CXP")
        assert (task.train, task.test) == (len(held.train), len(held.test))
        assert Counter(task.answers) == Counter(one.answer for one in held.train)
    assert (a.tasks[0].train, b.tasks[0].train) == (12, 8)
    assert (a.tasks[0].wrong_labels, b.tasks[0].wrong_labels) == (0, 2)
    assert (coast.tasks[0].train, coast.tasks[0].test) == (0, 5)
    own = different / "_unseen/coast/data/CXP"
    assert len(read_test(own)) == 5
    assert not (own / "train.json").exists()


def test_dealt_hospitals_keep_their_differences_wherever_they_are(tmp_path: Path):
    different = {name: value for name, value in DIFFERENT.items() if name != "unseen"}
    apart = made(plan_of(tmp_path, ["a", "b"], hospitals=different), tmp_path / "apart")
    named = different | {"names": ["a", "b"]}
    pooled = made(plan_of(tmp_path, ["c"], deal=[2], hospitals=named), tmp_path / "pooled")
    assert asked(pooled["c"]) == asked(*apart.values())


def test_an_unseen_hospital_does_not_depend_on_the_sites(different: Path, tmp_path: Path):
    unseen = {"scanners": 0.5, "unseen": [{"name": "coast"}]}
    made(plan_of(tmp_path, ["a", "b", "c"], hospitals=unseen), tmp_path / "three")
    two, three = (
        [
            (one.image.read_bytes(), one.question, one.answer)
            for one in read_test(folder / "_unseen/coast/data/CXP")
        ]
        for folder in (different, tmp_path / "three")
    )
    assert two == three


@pytest.mark.parametrize("blob", [b"{", b"[]", b"\xff"])
def test_notes_of_the_data_that_were_damaged_are_refused(tmp_path: Path, blob: bytes):
    plan = plan_of(tmp_path, ["a"])
    prepare(plan, tmp_path / "sites", None, BASE_MODELS["tiny-llava"])
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "sites/a/data").rename(data / "a")
    claim_given_data(plan, tmp_path, data)
    claim_given_data(plan, tmp_path, data)
    (tmp_path / "given_data.json").write_bytes(blob)
    with pytest.raises(StateError, match="found no digests of the data, expected those that this"):
        claim_given_data(plan, tmp_path, data)
    (tmp_path / "sites" / "made_of.json").write_bytes(blob)
    with pytest.raises(StateError, match="found the sites of another plan or another --data"):
        check_made_of(plan, tmp_path / "sites", None)


def test_a_run_that_was_moved_with_its_data_goes_on(tmp_path: Path):
    plan = plan_of(tmp_path, ["a"])
    run, moved = tmp_path / "run", tmp_path / "moved"
    prepare(plan, tmp_path / "made", None, BASE_MODELS["tiny-llava"])
    (run / "data").mkdir(parents=True)
    (tmp_path / "made/a/data").rename(run / "data" / "a")
    prepare(plan, run / "sites", run / "data", BASE_MODELS["tiny-llava"])
    run.rename(moved)
    check_made_of(plan, moved / "sites", moved / "data")
    with pytest.raises(StateError, match="another --data"):
        check_made_of(plan, moved / "sites", tmp_path / "made")
    # As it was written before: the place itself.
    file = moved / "sites" / "made_of.json"
    file.write_text(file.read_text().replace('"data": "data"', f'"data": "{moved}/data"'))
    check_made_of(plan, moved / "sites", moved / "data")


def test_given_data_can_not_be_made_to_differ(tmp_path: Path):
    plan = plan_of(tmp_path, ["a", "b"], hospitals=DIFFERENT)
    with pytest.raises(PlanError) as refused:
        check(plan, "plan.yaml", tmp_path, None)
    assert str(refused.value) == (
        "plan.yaml: simulation.hospitals: found it with --data, expected one of the two: "
        "only data that are made can be made to differ"
    )


def test_given_data_have_no_validation_questions_that_could_stand_in_for_the_tests(tmp_path: Path):
    made(plan_of(tmp_path, ["a"]), tmp_path / "sites")
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "sites/a/data").rename(data / "a")
    check(plan_of(tmp_path, ["a"]), "plan.yaml", data, None)
    with pytest.raises(PlanError) as refused:
        check(plan_of(tmp_path, ["a"], split="validation"), "plan.yaml", data, None)
    assert str(refused.value) == (
        "plan.yaml: simulation.split: found 'validation' with --data, expected 'test': only data "
        "that are made have validation questions"
    )


@pytest.mark.parametrize("name", ["shifted", "shifted_pictures"])
def test_the_projects_plans_of_hospitals_that_differ_can_be_run(name: str):
    plan = load_plan(EXPERIMENTS / f"{name}.yaml")
    check(plan, name, None, None)
    assert plan.simulation is not None and plan.simulation.hospitals is not None
    assert plan.simulation.hospitals.unseen
