import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from report.continual_metrics import METRICS, matrix_metrics

# a[i][j]: rows are stages, columns tasks.
SCORES = [
    [0.8, 0.3, 0.2],
    [0.6, 0.9, 0.4],
    [0.5, 0.7, 1.0],
]
ZERO_SHOT = [0.1, 0.2, 0.3]
fractions = st.floats(0, 1)


def test_every_metric_on_a_3_by_3_by_hand():
    found = matrix_metrics(SCORES, ZERO_SHOT, single_task=[0.7, 0.9, 0.9])
    assert found.last == pytest.approx((0.5 + 0.7 + 1.0) / 3)
    assert found.aia == pytest.approx((0.8 + (0.6 + 0.9) / 2 + (0.5 + 0.7 + 1.0) / 3) / 3)
    assert found.bwt == pytest.approx(((0.5 - 0.8) + (0.7 - 0.9)) / 2)
    assert found.forgetting == pytest.approx(((0.8 - 0.5) + (0.9 - 0.7)) / 2)
    assert found.fwt == pytest.approx(((0.3 - 0.2) + (0.4 - 0.3)) / 2)
    assert found.learning_gain == pytest.approx((0.1 + 0.0 + 0.1) / 3)
    assert found.transfer == pytest.approx((0.3 + (0.2 + 0.4) / 2) / 2)
    assert found.avg == pytest.approx(sum(map(sum, SCORES)) / 9)
    assert not found.missing


def test_forgetting_counts_from_the_best_score_before_the_last_stage():
    # Task 1: 0.5, then 0.9, at the end 0.6: bwt +0.1, and yet 0.3 is forgotten.
    scores = [[0.5, None, None], [0.9, 0.5, None], [0.6, 0.5, 0.5]]
    found = matrix_metrics(scores, ZERO_SHOT)
    assert found.bwt == pytest.approx((0.1 + 0.0) / 2)
    assert found.forgetting == pytest.approx((0.3 + 0.0) / 2)
    # What is best at the end has been forgotten by less than nothing.
    risen = matrix_metrics([[0.5, None, None], [0.6, 0.5, None], [0.9, 0.5, 0.5]], ZERO_SHOT)
    assert risen.forgetting == pytest.approx((-0.3 + 0.0) / 2)


def test_metrics_of_one_kind_run_over_its_tasks_and_all_stages():
    found = matrix_metrics(SCORES, ZERO_SHOT, tasks=[0, 1])
    assert found.last == pytest.approx((0.5 + 0.7) / 2)
    assert found.aia == pytest.approx((0.8 + (0.6 + 0.9) / 2 + (0.5 + 0.7) / 2) / 3)
    assert found.fwt == pytest.approx(0.3 - 0.2)
    late = matrix_metrics(SCORES, ZERO_SHOT, tasks=[2])
    assert late.aia == late.last == 1.0
    assert late.bwt is None and late.missing["bwt"] == "a task with a stage after it"


def test_what_was_not_evaluated_leaves_a_metric_out_and_is_named():
    lower = [[0.8, None, None], [0.8, 0.9, None], [0.8, 0.9, 1.0]]
    found = matrix_metrics(lower, [None, None, None])
    assert found.last == pytest.approx(0.9)
    assert found.bwt == found.forgetting == 0.0
    assert (found.fwt, found.transfer, found.avg, found.learning_gain) == (None,) * 4
    assert found.missing == {
        "fwt": "scores[0][1]",
        "learning_gain": "single_task",
        "transfer": "scores[0][1]",
        "avg": "scores[0][1]",
    }


def test_one_stage_has_no_transfer_either_way():
    found = matrix_metrics([[0.5]], [0.1], [0.4])
    assert (found.last, found.aia, found.avg) == (0.5, 0.5, 0.5)
    assert found.learning_gain == pytest.approx(0.1)
    assert (found.bwt, found.forgetting, found.fwt, found.transfer) == (None,) * 4


@given(st.lists(fractions, min_size=2, max_size=7))
def test_columns_that_never_change_are_never_forgotten(column: list[float]):
    found = matrix_metrics([column for _ in column], column)
    assert found.bwt == found.forgetting == found.fwt == 0.0


@given(
    st.integers(2, 5).flatmap(
        lambda n: st.lists(st.lists(fractions, min_size=n, max_size=n), min_size=n, max_size=n)
    )
)
def test_bounds_and_relations_hold_for_any_matrix(scores: list[list[float]]):
    found = matrix_metrics(scores, scores[0])
    assert all(getattr(found, name) is not None for name in METRICS if name != "learning_gain")
    assert found.bwt is not None and found.forgetting is not None
    assert found.forgetting >= -found.bwt - 1e-12  # the best is at least the first
    for mean in (found.last, found.aia, found.avg, found.transfer):
        assert mean is not None and -1e-12 <= mean <= 1 + 1e-12
    cells = list(itertools.chain.from_iterable(scores))
    assert found.avg == pytest.approx(sum(cells) / len(cells))


def test_the_published_means_of_mgtil_follow_from_its_means_by_task():
    """PRIMED's table 7 (arXiv 2512.13072), PRIMED dyn: each task's Transfer, Avg and Last.

    A matrix with these means by task: before its stage a task scores its Transfer, at the end its
    Last, and in between what is missing for its Avg.
    """
    transfer = (None, 39.09, 48.38, 51.24, 55.58, 55.42, 63.68, 96.72, 56.49)
    avg = (50.95, 80.83, 83.35, 79.82, 67.71, 72.71, 67.73, 95.61, 59.30)
    last = (47.07, 84.80, 92.37, 92.92, 76.21, 92.31, 74.74, 96.40, 81.82)
    size = len(last)
    columns: list[list[float]] = []
    for task in range(size):
        before, between = [transfer[task] or 0.0] * task, size - 1 - task
        # The last task has no stage in between: 59.30 is (8 * 56.49 + 81.82) / 9.
        rest = (size * avg[task] - sum(before) - last[task]) / between if between else 0.0
        columns.append([*before, *[rest] * between, last[task]])
    matrix = [[columns[task][stage] for task in range(size)] for stage in range(size)]
    found = matrix_metrics(matrix, [52.9] * size)
    for name, printed in {"transfer": 58.33, "avg": 73.11, "last": 82.07}.items():
        assert getattr(found, name) == pytest.approx(printed, abs=0.0051)
