import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError, PlanError
from common.plan.plan import Plan
from simulation.experiments.experiments import load_experiment
from simulation.experiments.result_file import ExperimentResult, ResultsFolder, write_result
from simulation.results.cells import Cell, collect, data_of, load_experiments
from simulation.results.measures import (
    Moment,
    aggregation_error,
    backward_transfer,
    earlier_tasks,
    mean_final,
    mean_learned,
    mean_throughout,
    mean_transfer,
    never_changes,
    scores_of,
    tuning_score,
)
from simulation.results.order import variation
from simulation.results.over_seeds import over_seeds
from simulation.results.references import planned_comparisons
from simulation.results.section import section
from simulation.results.significance import (
    Comparison,
    PlannedComparison,
    at_the_end,
    compared,
    forgetting,
)
from simulation.results.two_way import two_way
from simulation.results.words import equation, overview, points, probability
from tests.unit.made_results import (
    JOINT,
    SEQUENTIAL,
    TASKS,
    cell,
    cell_of,
    collected,
    even,
    plan,
    result,
    sequential,
    write_experiment,
)

#: Without types, and only the reference here.
stats: Any = import_module("scipy.stats")
DRAWS = 200
LAST = {"evaluation.earlier": "last"}


def compare(first: Cell, second: Cell) -> Comparison:
    (found,) = compared([PlannedComparison("", "first less second", first, second)], DRAWS)
    return found


def of(scores: Sequence[float], **changes: Any) -> Cell:
    return cell("x", dict(enumerate(scores)), **changes)


def of_tasks(rows: Sequence[Sequence[float]]) -> Cell:
    """A cell with a score for each seed (row) and task."""
    runs = {
        seed: result(plan(seed=seed), [[one] * 4 for one in row]) for seed, row in enumerate(rows)
    }
    return cell_of(plan(), runs)


# Cells and groups.


def test_cells_with_other_data_are_in_another_group(tmp_path: Path):
    axes = {
        "data": {"full": {}, "few": {"simulation.train_fraction": 0.1}},
        "variant": {"mslora": {}, "separate": {"method.active": "none"}},
    }
    found = collected(write_experiment(tmp_path, "x", axes), tmp_path / "r", {})
    assert [group.title for group in found.groups] == ["full", "few"]
    full = found.groups[0]
    assert [full.label(one) for one in full.cells] == ["mslora", "separate"]
    assert found.tag(full) == "full"


def test_how_questions_are_dealt_to_sites_makes_no_other_group():
    pooled = plan(simulation={"data": "phantoms", "deal": [4]})
    stages = [{**stage.model_dump(mode="json"), "sites": ["a", "b"]} for stage in pooled.stages]
    dealt = plan(simulation={"data": "phantoms", "deal": [3, 1]}, stages=stages)
    other = plan(simulation={"data": "phantoms", "deal": [2, 1]}, stages=stages)
    turned = plan(
        simulation={"data": "phantoms", "deal": [4]},
        stages=[stage.model_dump(mode="json") for stage in reversed(pooled.stages)],
    )
    assert data_of(pooled) == data_of(dealt) == data_of(turned) != data_of(other)


def test_other_measures_or_one_task_at_fewer_hospitals_are_other_data():
    stages = [stage.model_dump(mode="json") for stage in plan().stages]
    measured = [{**stages[0], "metric": "recall"}, *stages[1:]]
    three = [{**stage, "sites": ["a", "b"]} for stage in stages]
    fewer = [*three[:2], stages[2]]
    found = {data_of(plan(stages=some)) for some in (stages, measured, three, fewer)}
    assert len(found) == 4


def test_what_rounding_leaves_is_no_difference():
    first, second = ([[0.1], [0.2], [0.3 + add]] for add in (0.0, 1e-16))
    cells = [
        cell_of(plan(), {seed: result(plan(seed=seed), marks) for seed in (0, 1)})
        for marks in (first, second)
    ]
    one = compare(*cells)
    assert one.p == 1
    assert not one.significant


def test_settings_that_say_nothing_alone_are_told_with_their_axis(tmp_path: Path):
    axes: Any = {"sites": {"1": {}}, "rule": {"svd": {}, "fedavg": {"aggregation": "fedavg"}},
            "ortho": {"off": {}, "on": {"method.rank": 4}}}  # fmt: skip
    (group,) = collected(write_experiment(tmp_path, "x", axes), tmp_path / "r", {}).groups
    assert group.title == "sites 1"
    assert group.label(group.cells[1]) == "svd, ortho on"


def test_the_plans_that_experiments_vary_are_no_experiments(tmp_path: Path):
    write_experiment(tmp_path, "b", {"v": {"x": {}}})
    write_experiment(tmp_path, "a", {"v": {"x": {}}})
    assert [one.name for one in load_experiments(tmp_path)] == ["a", "b"]


def test_a_file_that_nobody_varies_must_be_an_experiment(tmp_path: Path):
    write_experiment(tmp_path, "a", {"v": {"x": {}}})
    (tmp_path / "stray.yaml").write_text("name: stray\n", encoding="utf-8")
    with pytest.raises(PlanError, match=r"stray\.yaml"):
        load_experiments(tmp_path)
    with pytest.raises(PlanError, match="found no experiment"):
        load_experiments(tmp_path / "nowhere")


# Measures.


def test_what_a_sum_of_adapters_knows_at_the_end_is_what_it_learned():
    for method in ({}, {"active": "none"}, {"active": "same_modality"}):
        summed = plan(method={**plan().method.model_dump(mode="json"), **method})
        assert never_changes(summed)
        run = result(summed, [[1.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
        assert mean_final(run) == mean_learned(run) == pytest.approx((0.5 + 1 + 0.5) / 3)
        assert backward_transfer(run) == 0.0


def test_a_score_is_the_mean_over_answers_and_not_what_a_site_rounded():
    # 0.55, of two questions to the nearest half; a hospital alone has no such rounding.
    marks = [[0.5, 0.6]] * 3
    rounded = replace(result(plan(), marks), learned=(0.5,) * 3, final=(None, None, 0.5))
    assert mean_learned(rounded) == mean_final(rounded) == pytest.approx(0.55)
    assert backward_transfer(rounded) == 0.0
    again = replace(result(sequential(), marks, marks), learned=(0.5,) * 3, final=(0.5,) * 3)
    assert mean_final(again) == pytest.approx(0.55)
    assert backward_transfer(again) == 0.0
    # Rates are chosen by what the runs reported.
    assert tuning_score(rounded) == tuning_score(again) == 0.5
    lost = replace(rounded, answers=((),) * 3)
    assert mean_learned(lost) == 0.5


def test_one_adapter_changes_and_a_base_model_that_learns_nothing_does_not():
    assert not never_changes(sequential())
    assert not never_changes(plan(method=JOINT))
    assert never_changes(plan(method={**SEQUENTIAL, "name": "zero_shot"}))


def test_what_one_adapter_knows_at_the_end_must_be_measured():
    run = result(plan(method=SEQUENTIAL), even(0.5))
    assert mean_learned(run) == 0.5
    assert mean_final(run) is None
    assert backward_transfer(run) is None
    assert scores_of(run, Moment.FINAL).keys() == {"three"}


def test_backward_transfer_by_hand():
    learned = [[1.0, 1.0], [1.0, 0.0], [0.5, 0.5]]
    final = [[1.0, 0.0], [0.0, 0.0], [0.5, 0.5]]
    run = result(sequential(), learned, final)
    assert backward_transfer(run) == pytest.approx(((0.5 - 1) + (0 - 0.5)) / 2)
    assert mean_final(run) == pytest.approx((0.5 + 0 + 0.5) / 3)


def test_a_measured_end_counts_even_where_it_should_be_what_was_learned():
    damaged = result(plan(), even(0.5), [*even(0.25)[:2], [0.5] * 4])
    assert backward_transfer(damaged) == -0.25


def test_joint_training_is_judged_at_the_end_only():
    again = {"earlier": "last", "zero_shot": False}
    run = result(plan(method=JOINT, evaluation=again), even(0.5), even(0.75))
    assert mean_learned(run) is None
    assert backward_transfer(run) is None
    assert mean_final(run) == 0.75


def test_the_aggregation_error_is_the_mean_of_those_known():
    assert aggregation_error(result(plan(), even(0.5), errors=(None, 0.1, 0.3))) == 0.2
    assert aggregation_error(result(plan(), even(0.5), errors=(None, None, None))) is None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_the_spread_is_numpys(scores: list[float]):
    found = over_seeds(of(scores), mean_learned)
    assert found is not None and found.deviation is not None
    assert found.seeds == len(scores)
    assert found.mean == pytest.approx(float(np.mean(scores)), abs=1e-12)
    assert found.deviation == pytest.approx(float(np.std(scores, ddof=1)), abs=1e-12)


# Tests between cells.

FIRST = [[0.71, 0.60, 0.82], [0.69, 0.66, 0.81], [0.76, 0.64, 0.88], [0.70, 0.61, 0.80]]
SECOND = [[0.70, 0.58, 0.80], [0.66, 0.66, 0.79], [0.70, 0.60, 0.82], [0.71, 0.59, 0.80]]


def test_the_tests_over_seeds_and_over_tasks_are_scipys():
    found = compare(of_tasks(FIRST), of_tasks(SECOND))
    by = np.array(FIRST) - np.array(SECOND)
    assert found.difference == pytest.approx(by.mean())
    assert found.seeds is not None and found.tasks is not None
    assert found.seeds.p == pytest.approx(stats.ttest_1samp(by.mean(axis=1), 0).pvalue, rel=1e-9)
    # Tasks in name order: one, three, two.
    assert found.tasks.p == pytest.approx(stats.ttest_1samp(by.mean(axis=0), 0).pvalue, rel=1e-9)
    both = two_way(by.tolist())
    assert both is not None and found.p == pytest.approx(both.p)
    assert found.interval == pytest.approx((both.low, both.high))
    # One comparison is a family of its own.
    assert found.holm == found.p


def test_only_seeds_that_both_have_are_compared():
    first, second = cell("a", {0: 0.5, 1: 0.75, 2: 1.0}), cell("b", {1: 0.5, 2: 0.5, 3: 0.0})
    assert compare(first, second).by_seed == {1: 0.25, 2: 0.5}


def test_one_seed_has_a_difference_and_no_test_over_seeds():
    found = compare(of([0.75]), of([0.5]))
    assert found.difference == 0.25
    assert (found.both, found.seeds, found.p, found.holm) == (None, None, None, None)
    assert found.pictures is not None and not found.significant


def test_no_seed_in_common_is_no_difference():
    found = compare(cell("a", {0: 0.5}), cell("b", {1: 0.5}))
    assert (found.difference, found.pictures, found.answers) == (None, None, None)


def test_an_answer_is_right_if_its_measure_is_one():
    first = cell_of(plan(), {0: result(plan(), [[1.0, 1.0, 0.5], [1.0], [0.0]])})
    second = cell_of(plan(), {0: result(plan(), [[0.9, 1.0, 1.0], [0.0], [0.0]])})
    found = compare(first, second).answers
    assert found is not None
    assert (found.first_only, found.second_only) == (2, 1)
    assert found.p == pytest.approx(stats.binomtest(2, 3).pvalue)


def test_the_questions_of_a_picture_count_as_one_sample():
    # Two pictures of four questions each, won and lost as a whole: nothing is sure.
    shown: Any = {"pictures": ((0,) * 4, (0,) * 4, (0,) * 4)}
    first = cell_of(plan(), {0: result(plan(), even(1.0), **shown)})
    second = cell_of(plan(), {0: result(plan(), [[0.0] * 4, [0.0] * 4, [1.0] * 4], **shown)})
    found = compare(first, second).answers
    assert found is not None and found.first_only == 8
    assert found.p == pytest.approx(0.5)


def test_the_bootstrap_draws_pictures_within_seed_and_task():
    rng = np.random.default_rng(3)
    shown: Any = {"pictures": (tuple(np.repeat(range(10), 3).tolist()),) * TASKS}
    runs = [
        {
            seed: result(
                plan(seed=seed),
                np.repeat(rng.choice([0.0, 0.5, 1.0], (TASKS, 10)), 3, axis=1).tolist(),
                **shown,
            )
            for seed in range(2)
        }
        for _ in range(2)
    ]
    first, second = (cell_of(plan(), own) for own in runs)
    (found,) = compared([PlannedComparison("", "x", first, second)], 4000)
    assert found.pictures is not None
    # All three questions of a picture are equal here, so one of each is drawn in their place.
    groups = [
        (np.array(one) - np.array(other))[::3]
        for seed in range(2)
        for one, other in zip(runs[0][seed].answers, runs[1][seed].answers, strict=True)
    ]
    again = np.random.default_rng(4)
    means = [
        np.mean([again.choice(group, len(group)).mean() for group in groups]) for _ in range(2000)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.pictures.difference == pytest.approx(np.mean([g.mean() for g in groups]))
    assert found.pictures.low == pytest.approx(float(low), abs=0.015)
    assert found.pictures.high == pytest.approx(float(high), abs=0.015)


def test_holm_takes_all_comparisons_of_an_experiment_together():
    base = of_tasks(SECOND)
    unsure = of_tasks(FIRST)
    noisy = of_tasks([[one + 0.1 + 0.001 * (i + j) for j, one in enumerate(row)]
                      for i, row in enumerate(SECOND)])  # fmt: skip
    found = compared(
        [PlannedComparison("", n, one, base) for n, one in (("a", noisy), ("b", unsure))], DRAWS
    )
    ps = [one.p for one in found if one.p is not None]
    assert ps[0] < ps[1]
    assert [one.holm for one in found] == [2 * ps[0], max(2 * ps[0], ps[1])]


def test_tasks_are_paired_by_name_whatever_their_order():
    turned = plan(stages=[stage.model_dump(mode="json") for stage in reversed(plan().stages)])
    marks = [[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]]
    first = cell_of(plan(), {0: result(plan(), marks)})
    second = cell_of(turned, {0: result(turned, marks[::-1])})
    found = compare(first, second)
    assert found.difference == 0.0
    assert found.answers is not None
    assert (found.answers.first_only, found.answers.second_only) == (0, 0)


def test_what_is_kept_is_tested_on_the_earlier_tasks():
    learned, final = [[1.0, 1.0]] * 3, [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    runs = {seed: result(sequential(seed), learned, final) for seed in range(2)}
    own = cell_of(sequential(), runs)
    (found,) = compared([forgetting("", "x", own, earlier_tasks(own.plan))], DRAWS)
    assert found.differences == {seed: {"one": -0.5, "two": -1.0} for seed in range(2)}
    assert found.difference == backward_transfer(runs[0])
    assert found.answers is not None
    assert (found.answers.first_only, found.answers.second_only) == (0, 6)


def test_at_the_end_a_sum_of_adapters_is_compared_by_what_it_learned():
    runs = {seed: result(sequential(seed), even(0.75), even(0.25)) for seed in range(2)}
    planned = PlannedComparison("", "x", cell_of(sequential(), runs), of([0.75, 0.8]))
    (found,) = compared([at_the_end(planned)], DRAWS)
    assert found.difference == pytest.approx(-0.525)
    assert found.pictures is not None


def test_answers_to_other_questions_are_refused():
    other = cell_of(plan(), {0: result(plan(), even(0.5, count=5))})
    with pytest.raises(DataError, match="one, seed 0: found 4 answers against 5"):
        compare(of([0.5]), other)


def test_scores_without_answers_or_pictures_are_still_tested_over_seeds():
    for kept in ("answers", "pictures"):
        lost: Any = {kept: ((),) * 3 if kept == "answers" else ()}
        runs = {seed: replace(result(plan(seed=seed), even(0.5)), **lost) for seed in (0, 1)}
        found = compare(cell_of(plan(), runs), of([0.25, 0.3]))
        assert found.both is not None
        assert (found.pictures, found.answers) == (None, None)
    # Nor is a part of the tasks tested over pictures in place of all.
    some = [
        replace(run, answers=((), *run.answers[1:]), learned=run.learned)
        for run in (result(plan(seed=seed), even(0.5)) for seed in (0, 1))
    ]
    found = compare(cell_of(plan(), dict(enumerate(some))), of([0.25, 0.3]))
    assert found.both is not None and (found.pictures, found.answers) == (None, None)


# Sentences and tables.


def test_the_overview_counts_gains_and_losses():
    base = of_tasks(SECOND)
    gain, loss = (
        of_tasks([[one + sign * (0.1 + 0.001 * (i - j)) for j, one in enumerate(row)]
                  for i, row in enumerate(SECOND)])
        for sign in (1, -1)
    )  # fmt: skip
    said = overview(
        compared([PlannedComparison("", n, one, base) for n, one in
                  (("up", gain), ("down", loss), ("same", base))], DRAWS)
    )  # fmt: skip
    assert "of 3 comparisons: 1 with a gain (up +10.05), 1 with a loss (down -10.05)." in said
    assert "Not significant: 1, of which without the correction 0 would be." in said
    assert overview([compare(of([0.5]), of([0.4]))]).startswith("Nothing can be tested yet")


METHODS: Any = {"method": {"separate": {"method.active": "none"}, "mslora": LAST,
                           "sequential": {"method": SEQUENTIAL, **LAST}}}  # fmt: skip


def told(folder: Path, score: Mapping[str, Sequence[float]], final: float | None) -> str:
    file = write_experiment(
        folder, "methods", METHODS, references=[{"settings": {"method": "separate"}, "margin": 1.0}]
    )
    return "\n".join(section(collected(file, folder / "r", score, final), DRAWS).blocks)


def test_a_section_compares_with_its_reference_and_tells_what_is_forgotten(tmp_path: Path):
    scores = {"separate": [0.5, 0.6, 0.7], "sequential": [0.5, 0.6, 0.75]}
    text = told(tmp_path, scores, 0.3)
    assert "| sequential less separate | 3 | +1.67 |" in text
    assert "| sequential less separate, at the end | 3 | +0.56 |" in text
    assert "| sequential, at the end less when learned | 3 | -31.67 |" in text
    assert "| mslora" not in text
    assert "- sequential less separate: not behind in the mean, but the interval has losses" in text
    assert "- sequential less separate, at the end: not behind in the mean" in text
    assert "- mslora less separate: can't be judged yet" in text


def test_the_end_is_no_comparison_of_its_own_where_no_score_changed(tmp_path: Path):
    file = write_experiment(
        tmp_path, "x", {"v": {"a": {"method": SEQUENTIAL, **LAST}, "b": {"method.active": "none"}}},
        references=[{"settings": {"v": "b"}}],
    )  # fmt: skip
    scores = {"a": [0.5, 0.6], "b": [0.7, 0.7]}
    kept = collected(file, tmp_path / "same", scores)
    unchanged = {
        seed: result(run.plan, run.answers, run.answers)
        for seed, run in kept.cells[0].results.items()
    }
    (group,) = kept.groups
    cells = (replace(kept.cells[0], results=unchanged), kept.cells[1])
    same = replace(kept, cells=cells, groups=(replace(group, cells=cells),))
    names = [one.name for one in planned_comparisons(same)]
    assert names == ["a less b", "a, at the end less when learned"]
    changed = collected(file, tmp_path / "r", scores, 0.3)
    assert "a less b, at the end" in [one.name for one in planned_comparisons(changed)]


def test_what_two_references_ask_for_is_tested_once_whichever_comes_first(tmp_path: Path):
    file = write_experiment(
        tmp_path, "x", {"v": {"mslora": {}, "other": {"method.active": "none"}}},
        references=[{"settings": {"v": "other"}}, {"settings": {"v": "mslora"}}],
    )  # fmt: skip
    found = planned_comparisons(collected(file, tmp_path / "r", {"mslora": [0.5], "other": [0.6]}))
    assert [one.name for one in found] == ["mslora less other"]


def test_a_sum_that_lost_something_is_not_called_exact(tmp_path: Path):
    text = told(tmp_path, {"mslora": [0.5, 0.5]}, 0.4)
    assert "should be 0 by identity, but it is up to 10.0000 points" in text
    other = told(tmp_path / "other", {"mslora": [0.5, 0.5]}, 0.5)
    assert "Of mslora the backward transfer is exactly 0 in every run." in other


def test_every_score_stands_below_what_sees_no_picture(tmp_path: Path):
    file = write_experiment(tmp_path, "x", {"v": {"mslora": {}}}, seeds=1)
    (variant,) = load_experiment(file).variants
    kept: Any = {
        "pictures": ((0, 0, 1, 1),) * 3, "balanced": (0.4, 0.5, 0.6), "chance": (0.25, 0.5, 0.1),
        "majority": (0.35, 0.55, 0.2),
    }  # fmt: skip
    write_result(tmp_path / "r", result(variant.plan, even(0.5), **kept))
    found = collect(load_experiment(file), ResultsFolder(tmp_path / "r"))
    text = "\n".join(section(found, DRAWS).blocks)
    assert "| questions (pictures) a seed | one (4/2) | two (4/2) | three (4/2) |" in text
    assert "| random answer | 25.0 | 50.0 | 10.0 |" in text
    assert "| commonest answer | 35.0 | 55.0 | 20.0 |" in text
    assert "| the plan | 50.0 (40.0) | 50.0 (50.0) | 50.0 (60.0) |" in text


def test_a_random_answer_among_all_classes_so_far_is_one_of_them(tmp_path: Path):
    stages = [
        {**stage.model_dump(mode="json"), "metric": "accuracy",
         "classes": [f"{n} {letter}" for letter in "abcd"[: 2 + n]]}
        for n, stage in enumerate(plan().stages)
    ]  # fmt: skip
    axes: Any = {"v": {"own": {"stages.*.scope": "own"}, "seen": {}}}
    file = write_experiment(tmp_path, "x", axes, seeds=1)
    document = yaml.safe_load((tmp_path / "made.yaml").read_text())
    method = {"name": "zero_shot", "rank": 2, "alpha": 2}
    evaluation = {"earlier": "last", "zero_shot": False}
    made = {**document, "stages": stages, "method": method, "evaluation": evaluation}
    (tmp_path / "made.yaml").write_text(yaml.safe_dump(made))
    own: Any = {"chance": (1 / 2, 1 / 3, 1 / 4), "majority": (0.5, 0.4, 0.25)}
    for variant in load_experiment(file).variants:
        write_result(tmp_path / "r", result(variant.plan, even(0.5), even(0.5), **own))
    found = collect(load_experiment(file), ResultsFolder(tmp_path / "r"))
    text = "\n".join(section(found, DRAWS).blocks)
    told, among = text.split("### ")[1:3]
    assert "| random answer | 50.0 | 33.3 | 25.0 |" in told
    assert "| commonest answer | 50.0 | 40.0 | 25.0 |" in told
    assert "among all classes so far" not in told
    # 2, then 2 + 3, then 2 + 3 + 4 classes; at the end 9.
    learned, final = among.split("At the end, of those that change:")
    assert "| random answer | 50.0 | 20.0 | 11.1 |" in learned
    assert "| commonest answer | 50.0 | - | - |" in learned
    assert "| random answer | 11.1 | 11.1 | 11.1 |" in final
    assert "| commonest answer | - | - | - |" in final
    assert "among all classes so far" in among


def test_scores_that_some_have_are_columns_of_their_own(tmp_path: Path):
    file = write_experiment(
        tmp_path, "x", {"v": {"mslora": {}, "other": {"method.active": "none"}}}
    )
    first, second, *rest = load_experiment(file).variants
    kept: list[Any] = [{"among": (0.5, None, 1.0), "unseen": (0.2, 0.4, None)},
                       {"among": (0.5, None, 0.6)}]  # fmt: skip
    for variant, scores in zip((first, second), kept, strict=True):
        write_result(tmp_path / "r", result(variant.plan, even(0.5), **scores))
    for variant in rest:
        write_result(tmp_path / "r", result(variant.plan, even(0.5)))
    found = collect(load_experiment(file), ResultsFolder(tmp_path / "r"))
    heads, _, one, other = section(found, DRAWS).blocks[0].splitlines()[:4]
    assert heads.endswith("options, at the end, % | at unseen hospitals, at the end, % |")
    # Means over tasks and then over the seeds that have them: 75 and 55; 30.
    assert one.endswith("| 65.00 ± 14.14 | 30.00 |")
    assert other.endswith("| - | - |")


def test_orders_and_seeds_move_the_mean_by_hand(tmp_path: Path):
    cells = [of([0.5, 0.7]), of([0.6, 0.8])]
    found = variation(cells, mean_learned)
    assert found is not None
    # Two orders 0.1 apart in each seed, two seeds 0.2 apart in each order.
    assert found.orders == pytest.approx(0.1 / math.sqrt(2))
    assert found.seeds == pytest.approx(0.2 / math.sqrt(2))
    # Root mean squares, where one seed moves with the order more than the other: 0.1 and 0.3 apart.
    uneven = variation([of([0.5, 0.7]), of([0.6, 1.0])], mean_learned)
    assert uneven is not None
    assert uneven.orders == pytest.approx(math.sqrt((0.1**2 / 2 + 0.3**2 / 2) / 2))
    assert uneven.seeds == pytest.approx(math.sqrt((0.2**2 / 2 + 0.4**2 / 2) / 2))
    assert variation(cells[:1], mean_learned) is None
    assert variation([of([0.5]), of([0.6])], mean_learned) is None
    axes: Any = {"order": {"paper": {}, "back": {"stages.order": ["three", "two", "one"]}},
            "method": {"mslora": {}}}  # fmt: skip
    file = write_experiment(tmp_path, "order", axes)
    made = collected(file, tmp_path / "r", {"mslora": [0.5, 0.6, 0.7]})
    text = "\n".join(section(made, DRAWS).blocks)
    assert "the order moves it no more than the seed" in text


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0188, "+1.88"), (-0.0188, "-1.88"), (0.00001, "0.00"), (-0.00001, "0.00"), (None, "-")],
)
def test_differences_are_told_in_points_with_their_sign(value: float | None, said: str):
    assert points(value) == said


def test_a_very_small_p_is_told_as_a_bound():
    assert [probability(p) for p in (0.00001, 0.0499, 1.0, None)] == ["<0.0001", "0.0499", "1", "-"]
    assert [equation(p) for p in (0.00001, 0.5)] == ["p < 0.0001", "p = 0.5"]


def test_a_rate_is_chosen_by_the_end_where_it_was_scored():
    again = result(sequential(), even(0.75), even(0.25))
    assert tuning_score(again) == 0.25
    assert tuning_score(result(plan(), even(0.5))) == 0.5
    # Where the end of some tasks was not scored, it is the mean of all when they were learned.
    some = result(plan(method=SEQUENTIAL), [[0.2], [0.4], [0.9]])
    assert tuning_score(some) == pytest.approx(0.5)
    assert tuning_score(replace(some, final=(0.1, None, 0.9))) == pytest.approx(0.5)
    assert tuning_score(None) is None


# Transfer and Avg.

#: Task j after stage i.
MATRIX = ((0.8, 0.3, 0.2), (0.6, 0.9, 0.4), (0.5, 0.7, 1.0))


def scored_before(seed: int = 0, add: float = 0.0) -> tuple[Plan, ExperimentResult]:
    every = {"earlier": "all", "future": True, "zero_shot": False}
    of = plan(seed=seed, method=SEQUENTIAL, evaluation=every)
    matrix = tuple(tuple(one + add for one in row) for row in MATRIX)
    learned = [[matrix[task][task]] * 4 for task in range(TASKS)]
    return of, result(of, learned, [[one] * 4 for one in matrix[-1]], matrix=matrix)


def test_transfer_and_avg_are_those_of_the_matrix(tmp_path: Path):
    of, found = scored_before()
    assert mean_transfer(found) == pytest.approx((0.3 + (0.2 + 0.4) / 2) / 2)
    assert mean_throughout(found) == pytest.approx(sum(map(sum, MATRIX)) / 9)
    assert mean_transfer(result(of, even(0.5))) is None
    # A mean of some of the stages would be compared with a mean of all.
    lacking = replace(found, matrix=((0.8, 0.3, None), *MATRIX[1:]))
    assert mean_transfer(lacking) is None and mean_throughout(lacking) is None
    write_result(tmp_path, found)
    read = ResultsFolder(tmp_path).get(of)
    assert read is not None and read.matrix == found.matrix


def test_transfer_and_avg_are_compared_over_the_tasks_that_have_them(tmp_path: Path):
    axes: Any = {"method": {"one": {}, "other": {"method.rank": 4}}}
    base = {"method": SEQUENTIAL, "evaluation": {"earlier": "all", "future": True}}
    file = write_experiment(tmp_path, "x", axes, references=[{"settings": {"method": "one"}}])
    document = yaml.safe_load((tmp_path / "made.yaml").read_text())
    (tmp_path / "made.yaml").write_text(yaml.safe_dump({**document, **base}))
    for number, variant in enumerate(load_experiment(file).variants):
        _, made = scored_before(variant.seed, 0.1 * (number >= TASKS))
        write_result(tmp_path / "r", replace(made, plan=variant.plan))
    whole = collect(load_experiment(file), ResultsFolder(tmp_path / "r"))
    by_name = {one.planned.name: one for one in compared(planned_comparisons(whole), DRAWS)}
    transfer = by_name["other less one, Transfer"]
    assert {*transfer.differences[0]} == {"two", "three"}
    assert transfer.difference == pytest.approx(0.1)
    assert {*by_name["other less one, Avg"].differences[0]} == {"one", "two", "three"}


def test_a_task_that_is_asked_among_more_classes_later_changes():
    zero = {"name": "zero_shot", "rank": 2, "alpha": 2}
    stages = [
        {**stage.model_dump(mode="json"), "metric": "accuracy", "classes": [f"{n} a", f"{n} b"]}
        for n, stage in enumerate(plan().stages)
    ]
    own = [{**stage, "scope": "own"} for stage in stages]
    assert never_changes(plan(method=zero, stages=own))
    assert not never_changes(plan(method=zero, stages=stages))
    assert data_of(plan(stages=own)) != data_of(plan(stages=stages))
