import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.errors import DataError, PlanError
from common.plan.plan import Plan
from simulation.experiments.experiments import load_experiment
from simulation.experiments.lab import ResultsFolder, write_result
from simulation.results.cells import (
    Cell,
    collect,
    data_of,
    is_plain_sum,
    load_experiments,
    nearest,
)
from simulation.results.headline import Reached, headline, reached
from simulation.results.measures import (
    Moment,
    aggregation_error,
    backward_transfer,
    earlier_tasks,
    learning_gain,
    mean_final,
    mean_learned,
    never_changes,
    over_seeds,
    scores_of,
)
from simulation.results.methods import methods
from simulation.results.order import order, variation
from simulation.results.rules import rules, within
from simulation.results.section import missing_of
from simulation.results.significance import (
    Comparison,
    PlannedComparison,
    at_the_end,
    backward_transfer_test,
    compared,
)
from simulation.results.words import equation, overview, percent, points, probability
from tests.unit.made_results import (
    JOINT,
    SEQUENTIAL,
    TASKS,
    cell,
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
differences = st.lists(
    st.floats(-0.2, 0.2).map(lambda value: round(value, 4)), min_size=2, max_size=6
)


def compare(first: Cell, second: Cell) -> Comparison:
    (found,) = compared([PlannedComparison("", "first less second", first, second)], DRAWS)
    return found


def of(scores: Sequence[float], **changes: Any) -> Cell:
    return cell("x", dict(enumerate(scores)), **changes)


def differing(by: Sequence[float], **changes: Any) -> Comparison:
    """Two cells that differ by this much in each seed."""
    second = [0.5 + 0.01 * seed for seed in range(len(by))]
    return compare(of([s + d for s, d in zip(second, by, strict=True)], **changes), of(second))


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
    assert full.plain is full.cells[0]
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
        Cell({}, plan(), (0, 1), {seed: result(plan(seed=seed), marks) for seed in (0, 1)})
        for marks in (first, second)
    ]
    one = compare(*cells)
    assert one.t is not None and one.t.p == 1
    assert not one.significant


def test_settings_that_say_nothing_alone_are_told_with_their_axis(tmp_path: Path):
    axes: Any = {"sites": {"1": {}}, "rule": {"svd": {}, "fedavg": {"aggregation": "fedavg"}},
            "ortho": {"off": {}, "on": {"method.rank": 4}}}  # fmt: skip
    (group,) = collected(write_experiment(tmp_path, "x", axes), tmp_path / "r", {}).groups
    assert group.title == "sites 1"
    assert group.label(group.cells[1]) == "svd, ortho on"


@pytest.mark.parametrize(
    ("change", "plain"),
    [
        ({}, True),
        ({"active": "none"}, False),
        ({"active": "same_modality"}, False),
        ({"start": "modality"}, False),
        ({"contrast": {"similarity": "exp"}}, False),
        ({"contrast": {"similarity": "none", "orthogonality": 0.1}}, False),
        ({"contrast": {"similarity": "none", "orthogonality": None}}, True),
        ({"contrast": {"similarity": "exp", "weight": 0.0, "orthogonality": None}}, True),
    ],
)
def test_the_plain_sum_is_known_by_its_plan(change: dict[str, Any], plain: bool):
    method = {**plan().method.model_dump(mode="json"), **change}
    assert is_plain_sum(plan(method=method)) is plain
    assert not is_plain_sum(sequential())


def test_the_nearest_cell_shares_most_settings():
    def settled(**settings: str) -> Cell:
        return Cell(settings, plan(), (0,), {})

    own = settled(sites="4", rule="svd", epochs="5")
    far, near = (
        settled(sites="1", rule="svd", epochs="1"),
        settled(sites="1", rule="svd", epochs="5"),
    )
    assert nearest(own, [far, near]) is near
    assert nearest(own, []) is None


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


def test_missing_results_are_named_with_their_seeds(tmp_path: Path):
    axes = {"v": {"mslora": {}, "separate": {"method.active": "none"}, "warm": {"method.rank": 4}}}
    file = write_experiment(tmp_path, "x", axes)
    found = collected(file, tmp_path / "r", {"mslora": [0.5] * 3, "separate": [0.5]})
    assert found.missing == 5
    assert missing_of(found).startswith(
        "**5 of 9 runs have no result yet**: separate (seeds 1, 2); warm (seeds 0, 1, 2)."
    )
    full = {name: [0.5] * 3 for name in ("mslora", "separate", "warm")}
    assert missing_of(collected(file, tmp_path / "r", full)) == ""


# Measures.


def test_what_a_sum_of_adapters_knows_at_the_end_is_what_it_learned():
    for method in ({}, {"active": "none"}, {"active": "same_modality"}):
        summed = plan(method={**plan().method.model_dump(mode="json"), **method})
        assert never_changes(summed)
        run = result(summed, [[1.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
        assert mean_final(run) == mean_learned(run) == pytest.approx((0.5 + 1 + 0.5) / 3)
        assert backward_transfer(run) == 0.0


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


def test_the_learning_gain_is_what_is_learned_less_what_a_model_of_its_own_learns():
    run, alone = result(plan(), [[1.0], [0.5], [0.0]]), result(plan(), [[0.5], [0.5], [0.25]])
    assert learning_gain(run, alone) == pytest.approx((0.5 + 0 - 0.25) / 3)


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


def test_the_test_over_seeds_is_scipys():
    first, second = [0.71, 0.69, 0.76, 0.70], [0.70, 0.66, 0.70, 0.71]
    found = compare(of(first), of(second))
    reference = stats.ttest_rel(first, second)
    interval = reference.confidence_interval(0.95)
    assert found.t is not None and found.low is not None and found.high is not None
    assert found.difference == pytest.approx(float(np.mean(first) - np.mean(second)))
    assert found.t.p == pytest.approx(reference.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    # One comparison is a family of its own.
    assert found.holm == found.t.p


def test_only_seeds_that_both_have_are_compared():
    first, second = cell("a", {0: 0.5, 1: 0.75, 2: 1.0}), cell("b", {1: 0.5, 2: 0.5, 3: 0.0})
    found = compare(first, second)
    assert found.differences == {1: 0.25, 2: 0.5}


def test_one_seed_has_a_difference_and_no_test():
    found = compare(of([0.75]), of([0.5]))
    assert found.difference == 0.25
    assert (found.t, found.low, found.high, found.holm) == (None, None, None, None)
    assert found.questions is not None and not found.significant


def test_no_seed_in_common_is_no_difference():
    found = compare(cell("a", {0: 0.5}), cell("b", {1: 0.5}))
    assert (found.difference, found.questions, found.answers) == (None, None, None)


def test_an_answer_is_right_if_its_measure_is_one():
    first = Cell({}, plan(), (0,), {0: result(plan(), [[1.0, 1.0, 0.5], [1.0], [0.0]])})
    second = Cell({}, plan(), (0,), {0: result(plan(), [[0.9, 1.0, 1.0], [0.0], [0.0]])})
    found = compare(first, second).answers
    assert found is not None
    assert (found.first_only, found.second_only) == (2, 1)
    assert found.p == stats.binomtest(2, 3).pvalue


def test_the_bootstrap_draws_questions_within_seed_and_task():
    rng = np.random.default_rng(3)
    runs = [
        {seed: result(plan(seed=seed), rng.choice([0.0, 0.5, 1.0], (TASKS, 30)).tolist())
         for seed in range(2)}
        for _ in range(2)
    ]  # fmt: skip
    first, second = (Cell({}, plan(), (0, 1), own) for own in runs)
    (found,) = compared([PlannedComparison("", "x", first, second)], 4000)
    assert found.questions is not None
    groups = [
        np.array(one) - np.array(other)
        for seed in range(2)
        for one, other in zip(runs[0][seed].answers, runs[1][seed].answers, strict=True)
    ]
    again = np.random.default_rng(4)
    means = [
        np.mean([again.choice(group, len(group)).mean() for group in groups]) for _ in range(2000)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.questions.difference == pytest.approx(np.mean([g.mean() for g in groups]))
    assert found.questions.low == pytest.approx(float(low), abs=0.01)
    assert found.questions.high == pytest.approx(float(high), abs=0.01)


def test_holm_takes_all_comparisons_of_an_experiment_together():
    base = of([0.5, 0.52, 0.55])
    sure, unsure = of([0.6, 0.63, 0.65]), of([0.5, 0.54, 0.53])
    found = compared(
        [PlannedComparison("", n, one, base) for n, one in (("a", sure), ("b", unsure))], DRAWS
    )
    ps = [one.t.p for one in found if one.t]
    assert ps[0] < ps[1]
    assert [one.holm for one in found] == [2 * ps[0], max(2 * ps[0], ps[1])]
    drawn = [one.questions.p for one in found if one.questions]
    assert drawn[0] < drawn[1]
    assert [one.holm_questions for one in found] == [2 * drawn[0], max(2 * drawn[0], drawn[1])]


def test_holm_takes_the_right_answers_of_all_comparisons_together_by_hand():
    def answering(right: int) -> Cell:
        marks = [[1.0] * right + [0.0] * (8 - right), [0.0] * 8, [0.0] * 8]
        return Cell({}, plan(), (0,), {0: result(plan(), marks)})

    base = answering(0)
    found = compared([PlannedComparison("", str(n), answering(n), base) for n in (8, 6, 0)], DRAWS)
    assert [one.answers.p for one in found if one.answers] == [2 / 2**8, 2 / 2**6, 1.0]
    # Three comparisons: the smallest p times 3, the next times 2, the last as it is.
    assert [one.holm_answers for one in found] == [6 / 2**8, 4 / 2**6, 1.0]


def test_tasks_are_paired_by_name_whatever_their_order():
    turned = plan(stages=[stage.model_dump(mode="json") for stage in reversed(plan().stages)])
    marks = [[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]]
    first = Cell({}, plan(), (0,), {0: result(plan(), marks)})
    second = Cell({}, turned, (0,), {0: result(turned, marks[::-1])})
    found = compare(first, second)
    assert found.difference == 0.0
    assert found.answers is not None
    assert (found.answers.first_only, found.answers.second_only) == (0, 0)


def test_what_is_kept_is_tested_on_the_earlier_tasks():
    learned, final = [[1.0, 1.0]] * 3, [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    runs = {seed: result(sequential(seed), learned, final) for seed in range(2)}
    own = Cell({}, sequential(), (0, 1), runs)
    (found,) = compared([backward_transfer_test("", "x", own, earlier_tasks(own.plan))], DRAWS)
    assert found.differences == {0: -0.75, 1: -0.75}
    assert found.difference == backward_transfer(runs[0])
    assert found.answers is not None
    assert (found.answers.first_only, found.answers.second_only) == (0, 6)


def test_at_the_end_a_sum_of_adapters_is_compared_by_what_it_learned():
    summed = of([0.75, 0.8])
    runs = {seed: result(sequential(seed), even(0.75), even(0.25)) for seed in range(2)}
    one = Cell({}, sequential(), (0, 1), runs)
    (found,) = compared([at_the_end("", "x", one, summed)], DRAWS)
    assert found.difference == pytest.approx(-0.525)
    assert found.questions is not None


def test_answers_to_other_questions_are_refused():
    other = Cell({}, plan(), (0,), {0: result(plan(), even(0.5, count=5))})
    with pytest.raises(DataError, match="one, seed 0: found 4 answers against 5"):
        compare(of([0.5]), other)


def test_scores_without_answers_are_still_tested_over_seeds():
    runs = {seed: replace(result(plan(seed=seed), even(0.5)), answers=((),) * 3) for seed in (0, 1)}
    found = compare(Cell({}, plan(), (0, 1), runs), of([0.25, 0.3]))
    assert found.t is not None
    assert (found.questions, found.answers) == (None, None)


# Sentences.


@given(differences)
@settings(deadline=None, max_examples=60)
def test_the_overview_turns_with_the_sign(by: list[float]):
    forth, back = differing(by), differing([-value for value in by])
    gain, loss = "1 of 1 comparison show a gain", "and 1 a loss"
    for one, other in ((forth, back), (back, forth)):
        better = one.significant and (one.difference or 0) > 0
        assert (gain in overview([one])) is better
        assert (loss in overview([other])) is better
        assert ("The other 1 are not significant" in overview([one])) is not one.significant


@given(differences)
@settings(deadline=None, max_examples=60)
def test_the_papers_gain_is_shown_only_by_what_is_that_large_and_sure(by: list[float]):
    assume(len(set(by)) > 1)
    found, reference = differing(by), stats.ttest_1samp(by, 0)
    high = float(reference.confidence_interval(0.95).high)
    # On the very edge rounding decides.
    assume(min(abs(float(np.mean(by)) - 0.0188), abs(high - 0.0188)) > 1e-9)
    told = headline([found])
    large = bool(np.mean(by) >= 0.0188 and reference.pvalue < 0.05)
    assert (reached(found) is Reached.SHOWN) is large
    assert told.startswith("1 of the 1 settings" if large else "None of the 1 settings")
    assert (reached(found) is Reached.EXCLUDED) is (not large and high < 0.0188)
    assert ("A gain of that size is excluded for 1 of them" in told) is (
        not large and high < 0.0188
    )


def test_the_headline_names_the_best_setting_and_what_is_open():
    sure, open_ = differing([0.05, 0.051, 0.049]), differing([0.03, -0.02, 0.06])
    told = headline([sure, open_])
    assert "1 of the 2 settings tried gains 1.88 points or more" in told
    assert "it is neither shown nor excluded for 1" in told
    assert "The largest mean difference is that of first less second: +5.00 points" in told
    assert headline([]).startswith("No setting can be tested")


FOUR: dict[str, Any] = {
    "stages": [
        {**stage.model_dump(mode="json"), "sites": ["a", "b", "c", "d"]} for stage in plan().stages
    ]
}


@pytest.mark.parametrize(
    ("by", "told"),
    [
        ([-0.001, -0.002, -0.003], "within 1.5 points, the interval too"),
        (
            [-0.02, 0.0, -0.01],
            "within 1.5 points in the mean, but the interval reaches further",
        ),
        ([-0.02, -0.021, -0.022], "not within 1.5 points"),
        ([0.05, 0.051, 0.05], "within 1.5 points, the interval too"),
    ],
)
def test_the_federations_verdict_follows_its_interval(by: list[float], told: str):
    found = within([differing(by, **FOUR)])
    assert f"first less second: {told}: " in found
    assert "at the same number of passes" in found


def test_a_federation_with_other_passes_is_told_as_such():
    more = [{**stage, "rounds": 3} for stage in FOUR["stages"]]
    assert "at another number of passes" in within([differing([0.01, 0.02], stages=more)])


def test_only_four_sites_with_the_default_rule_are_judged():
    assert "No run with 4 sites" in within([differing([0.01, 0.02])])
    fedavg = differing([0.01, 0.02], **FOUR, aggregation="fedavg")
    assert "No run with 4 sites" in within([fedavg])


METHODS = {
    "separate": {"method.active": "none", **LAST},
    "sequential": {"method": SEQUENTIAL, **LAST},
    "joint": {"method": JOINT, **LAST},
    "mslora": {},
    "mslora_cr": {"method.contrast": {"similarity": "exp", "orthogonality": None}},
}
LEARNED = {name: [0.70, 0.72, 0.75] for name in METHODS}


def told_of_methods(
    tmp_path: Path, final: float, scores: Mapping[str, Sequence[float]] = LEARNED
) -> str:
    file = write_experiment(tmp_path, "methods", {"method": METHODS})
    experiment = load_experiment(file)
    for variant in experiment.variants:
        own = scores[variant.settings["method"]]
        if variant.seed < len(own):
            left = [*even(final)[:-1], even(own[variant.seed])[-1]]
            changes = variant.settings["method"] in {"sequential", "joint"}
            made = result(variant.plan, even(own[variant.seed]), left if changes else None)
            write_result(tmp_path / "r", made)
    return "\n".join(methods(collect(experiment, ResultsFolder(tmp_path / "r")), DRAWS).blocks)


def test_forgetting_is_told_where_it_is_sure(tmp_path: Path):
    told = told_of_methods(tmp_path, final=0.3)
    assert "Sequential forgets, with p < 0.01: backward transfer -42.33 points" in told
    assert "Of separate, mslora, mslora_cr the backward transfer is exactly 0" in told
    assert "| joint | - | 44.11 ± 0.84 | - | - | 3 |" in told


def test_without_sequential_nothing_is_said_of_its_forgetting(tmp_path: Path):
    file = write_experiment(tmp_path, "methods", {"method": {"mslora": LAST}}, seeds=2)
    found = collected(file, tmp_path / "r", {"mslora": [0.5, 0.5]})
    assert "forgets" not in "\n".join(methods(found, DRAWS).blocks)


def test_what_gets_better_has_not_been_forgotten(tmp_path: Path):
    told = told_of_methods(tmp_path, final=0.9)
    assert "Sequential does not forget" in told and "Sequential forgets" not in told


def test_what_is_not_sure_is_not_told_as_forgetting(tmp_path: Path):
    told = told_of_methods(tmp_path, final=0.72)
    assert "That sequential forgets is not shown with p < 0.01" in told


def test_with_one_seed_nothing_is_claimed(tmp_path: Path):
    told = told_of_methods(tmp_path, 0.3, {name: [0.7] for name in METHODS})
    assert "can't be tested yet" in told
    assert "Nothing can be tested over seeds yet" in told


def test_a_sum_that_lost_something_is_not_called_exact(tmp_path: Path):
    file = write_experiment(tmp_path, "methods", {"method": {"mslora": LAST}}, seeds=2)
    found = collected(file, tmp_path / "r", {"mslora": [0.5, 0.5]}, final=0.4)
    told = "\n".join(methods(found, DRAWS).blocks)
    assert "should be 0 by identity, but it is up to 10.0000 points" in told


def test_what_is_learned_above_a_model_of_its_own_is_the_gain(tmp_path: Path):
    scores = {**LEARNED, "mslora": [0.71, 0.74, 0.75]}
    told = told_of_methods(tmp_path, 0.3, scores)
    gains = [0.01, 0.02, 0.0]
    expected = f"| {points(float(np.mean(gains)))} ± {percent(float(np.std(gains, ddof=1)))} | 3 |"
    assert expected in next(line for line in told.splitlines() if line.startswith("| mslora |"))


def test_orders_and_seeds_move_the_mean_by_hand():
    cells = [of([0.5, 0.7]), of([0.6, 0.8])]
    found = variation(cells, mean_learned)
    assert found is not None
    # Two orders 0.1 apart in each seed, two seeds 0.2 apart in each order.
    assert found.orders == pytest.approx(0.1 / math.sqrt(2))
    assert found.seeds == pytest.approx(0.2 / math.sqrt(2))
    assert variation(cells[:1], mean_learned) is None
    assert variation([of([0.5]), of([0.6])], mean_learned) is None


ORDERS: Any = {
    "order": {"paper": {}, "reversed": {"stages.order": ["three", "two", "one"]}},
    "method": {"mslora": {}, "sequential": {"method": SEQUENTIAL, **LAST}},
}


def test_every_order_is_tested_against_the_first(tmp_path: Path):
    file = write_experiment(tmp_path, "order", ORDERS)
    scores = {"mslora": [0.5, 0.6, 0.7], "sequential": [0.5, 0.6, 0.7]}
    section = order(collected(file, tmp_path / "r", scores, 0.3), DRAWS)
    told = "\n".join(section.blocks)
    assert "| mslora, reversed less paper | 3 | 0.00 |" in told
    assert "| sequential, reversed less paper, at the end | 3 | 0.00 |" in told
    assert "mslora, reversed less paper, at the end" not in told
    assert "the order moves it no more than the seed" in told
    assert [picture.file for picture in section.pictures] == ["results_order.png"]


RULES: Any = {
    "sites": {
        "1": {"simulation.deal": [4]},
        "4 uneven": {
            "stages.*.sites": ["a", "b", "c", "d"], "simulation.deal": [1, 1, 1, 1],
        },
    },
    "rule": {"fedavg": {"aggregation": "fedavg"}, "svd": {}},
}  # fmt: skip


def test_rules_are_tested_against_one_site_and_against_the_average(tmp_path: Path):
    only = [{"sites": ["1"], "rule": ["svd"]}, {"sites": ["4 uneven"]}]
    file = write_experiment(tmp_path, "rules", RULES, only=only)
    found = collected(file, tmp_path / "r", {"svd": [0.5, 0.6, 0.7], "fedavg": [0.4, 0.5, 0.65]})
    section = rules(found, DRAWS)
    told = "\n".join(section.blocks)
    assert "| sites 4 uneven, fedavg less one site (svd) | 3 | -8.33 |" in told
    assert "| sites 4 uneven, svd less one site | 3 | 0.00 |" in told
    assert "| sites 4 uneven, svd less fedavg | 3 | +8.33 |" in told
    assert "- sites 4 uneven, svd less one site: within 1.5 points, the interval too" in told
    assert section.pictures


def test_one_site_with_as_few_steps_as_a_federation_is_held_against_both(tmp_path: Path):
    few: Any = {"stages.*.batch_size": 3}
    axes = {"rule": RULES["rule"], "sites": {**RULES["sites"], "few steps": few}}
    only = [{"sites": ["1", "few steps"], "rule": ["svd"]}, {"sites": ["4 uneven"]}]
    file = write_experiment(tmp_path, "rules", axes, only=only)
    scores = {"1": [0.6, 0.7, 0.8], "few steps": [0.5, 0.6, 0.7], "4 uneven": [0.45, 0.5, 0.7]}
    section = rules(collected(file, tmp_path / "r", scores), DRAWS)
    told = "\n".join(section.blocks)
    assert "| svd, few steps less one site | 3 | -10.00 |" in told
    assert "- svd, sites 4 uneven less svd, few steps: not within 1.5 points" in told
    assert "is there to be judged" not in told
    assert "| svd, sites 4 uneven less one site | 3 | -15.00 |" in told
    assert "| svd, sites 4 uneven less svd, few steps | 3 | -5.00 |" in told


def test_one_site_has_the_federations_own_method_and_says_in_what_it_differs(tmp_path: Path):
    axes: Any = {
        "sites": RULES["sites"],
        "rule": {"svd": {}, "warm": {"method.start": "modality"}},
        "epochs": {"1": {}, "2": {"stages.*.local_epochs": 2, "stages.*.rounds": 1}},
    }
    only = [{"sites": ["1"], "epochs": ["1"]}, {"sites": ["1"], "rule": ["svd"]},
            {"sites": ["4 uneven"]}]  # fmt: skip
    file = write_experiment(tmp_path, "rules", axes, only=only)
    told = "\n".join(rules(collected(file, tmp_path / "r", {}), DRAWS).blocks)
    assert "| sites 4 uneven, svd, epochs 2 less one site |" in told
    assert "| sites 4 uneven, warm, epochs 2 less one site (epochs 1) |" in told


def test_an_experiment_without_the_axis_that_its_part_needs_is_refused(tmp_path: Path):
    found = collected(write_experiment(tmp_path, "rules", {"v": {"x": {}}}), tmp_path / "r", {})
    with pytest.raises(PlanError, match="experiment rules: found the axes 'v', expected 'rule'"):
        rules(found, DRAWS)


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.0188, "+1.88"), (-0.0188, "-1.88"), (0.00001, "0.00"), (-0.00001, "0.00"), (None, "-")],
)
def test_differences_are_told_in_points_with_their_sign(value: float | None, told: str):
    assert points(value) == told


def test_a_very_small_p_is_told_as_a_bound():
    assert [probability(p) for p in (0.00001, 0.0499, 1.0, None)] == ["<0.0001", "0.0499", "1", "-"]
    assert [equation(p) for p in (0.00001, 0.5)] == ["p < 0.0001", "p = 0.5"]


def test_the_first_plan_of_a_cell_says_what_its_results_are():
    own = cell("x", {3: 0.5}, method=SEQUENTIAL)
    assert isinstance(own.plan, Plan) and own.plan.seed == 3
    assert own.missing == ()
