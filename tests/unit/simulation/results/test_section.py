"""An experiment's part of the document: its tables and sentences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from simulation.experiments.experiments import load_experiment
from simulation.experiments.result_file import ResultsFolder, write_result
from simulation.results.cells import collect
from simulation.results.measures import (
    mean_learned,
)
from simulation.results.order import variation
from simulation.results.references import planned_comparisons
from simulation.results.section import section
from simulation.results.words import equation, points, probability
from tests.unit.made_results import (
    DRAWS,
    SEQUENTIAL,
    collected,
    even,
    of_scores,
    plan,
    result,
    variants,
    write_experiment,
)

LAST = {"evaluation.earlier": "last"}


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
    (variant,) = variants(load_experiment(file))
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
    for variant in variants(load_experiment(file)):
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
    first, second, *rest = variants(load_experiment(file))
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
    cells = [of_scores([0.5, 0.7]), of_scores([0.6, 0.8])]
    found = variation(cells, mean_learned)
    assert found is not None
    # Two orders 0.1 apart in each seed, two seeds 0.2 apart in each order.
    assert found.orders == pytest.approx(0.1 / math.sqrt(2))
    assert found.seeds == pytest.approx(0.2 / math.sqrt(2))
    # Root mean squares, where one seed moves with the order more than the other: 0.1 and 0.3 apart.
    uneven = variation([of_scores([0.5, 0.7]), of_scores([0.6, 1.0])], mean_learned)
    assert uneven is not None
    assert uneven.orders == pytest.approx(math.sqrt((0.1**2 / 2 + 0.3**2 / 2) / 2))
    assert uneven.seeds == pytest.approx(math.sqrt((0.2**2 / 2 + 0.4**2 / 2) / 2))
    assert variation(cells[:1], mean_learned) is None
    assert variation([of_scores([0.5]), of_scores([0.6])], mean_learned) is None
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
