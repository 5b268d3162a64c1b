import math
from importlib import import_module
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from report.significance import (
    PairedT,
    bootstrap,
    generator_for,
    holm,
    holm_by_family,
    mcnemar,
    paired_t,
    t_interval,
    without_rounding,
)

#: Without types, and only the reference here.
stats: Any = import_module("scipy.stats")
rights = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def drawn() -> np.random.Generator:
    return np.random.default_rng(7)


def test_mcnemar_by_hand():
    # Three questions only the first has right, one only the second: 4 tosses of a fair coin
    # at least as uneven as 3 : 1 are 2 * (1 + 4) of 16.
    first = [True, True, True, False, True, False]
    second = [False, False, False, True, True, False]
    found = mcnemar(first, second)
    assert (found.first_only, found.second_only, found.p) == (3, 1, 10 / 16)


@given(rights)
def test_mcnemar_is_the_binomial_test_of_the_questions_that_differ(pairs: list[tuple[bool, bool]]):
    found = mcnemar([one for one, _ in pairs], [other for _, other in pairs])
    differ = found.first_only + found.second_only
    expected = stats.binomtest(found.first_only, differ).pvalue if differ else 1.0
    assert found.p == pytest.approx(expected, rel=1e-9)


def test_thousands_of_questions_that_differ_are_no_trouble():
    found = mcnemar([True] * 5000 + [False] * 4000, [False] * 5000 + [True] * 4000)
    assert found.p == pytest.approx(float(stats.binomtest(5000, 9000).pvalue), rel=1e-9)


def test_mcnemar_wants_the_same_questions():
    with pytest.raises(ValueError, match="zip"):
        mcnemar([True], [True, False])


def test_the_bootstraps_difference_is_the_mean_of_the_groups_means():
    # Group means 1/4 and 2/2, whatever the sizes.
    groups = [np.array([1.0, 0.0, 0.0, 0.0]), np.array([2.0, 0.0])]
    found = bootstrap(groups, drawn())
    assert found.difference == (0.25 + 1.0) / 2
    assert found.low <= found.difference <= found.high


def test_the_bootstrap_draws_what_all_possible_draws_give():
    # Two questions a group: every resample of both is one of 4 x 4, all as likely.
    groups = [np.array([0.0, 1.0]), np.array([-1.0, 1.0])]
    means = [
        (math.fsum(one) / 2 + math.fsum(two) / 2) / 2
        for one, two in product(product(groups[0], repeat=2), product(groups[1], repeat=2))
    ]
    found = bootstrap(groups, drawn(), resamples=40_000, confidence=0.5)
    assert (found.low, found.high) == tuple(np.quantile(means, [0.25, 0.75]))
    below = sum(mean <= 0 for mean in means) / len(means)
    assert found.p == pytest.approx(2 * below, abs=0.02)


def test_the_bootstraps_interval_is_the_normal_one_for_many_questions():
    group = np.random.default_rng(3).normal(0.1, 1.0, 2000)
    found = bootstrap([group], drawn())
    error = group.std() / math.sqrt(len(group))
    assert found.low == pytest.approx(group.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(group.mean() + 1.96 * error, abs=0.15 * error)
    two_tails = 2 * stats.norm.sf(group.mean() / error)
    assert found.p == pytest.approx(two_tails, rel=0.2, abs=1e-3)


def test_the_bootstrap_is_the_same_each_time_and_turned_round_with_the_sides():
    group = np.random.default_rng(5).normal(0.05, 1.0, 300)
    there, back = bootstrap([group], drawn()), bootstrap([-group], drawn())
    assert there == bootstrap([group], drawn())
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
    assert back.p == pytest.approx(there.p, abs=1e-3)


def test_no_difference_has_no_interval_and_p_one():
    found = bootstrap([np.zeros(5), np.zeros(3)], drawn())
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_a_difference_everywhere_has_the_least_p_there_is():
    found = bootstrap([np.full(5, 0.1), np.full(3, 0.3)], drawn(), resamples=999)
    assert found.p == pytest.approx(2 / 1000)
    assert found.low == pytest.approx(found.high) == pytest.approx(0.2)


def test_large_groups_are_drawn_in_parts_and_none_is_lost():
    # 3,000 resamples of 2,000 questions don't fit into one part.
    group = np.random.default_rng(11).random(2000)
    found = bootstrap([group], drawn(), resamples=3000)
    error = group.std() / math.sqrt(len(group))
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_a_group_without_a_question_is_our_own_mistake():
    with pytest.raises(AssertionError, match="a question at least"):
        bootstrap([np.zeros(0)], drawn())


def test_paired_t_by_hand():
    # Mean 2, deviation 1, so t = 2 / (1 / sqrt 3); with two degrees of freedom
    # p = 1 - t / sqrt(2 + t^2).
    found = paired_t([1.0, 2.0, 3.0])
    t = 2 * math.sqrt(3)
    assert (found.mean, found.deviation, found.count) == (2.0, 1.0, 3)
    assert found.t == pytest.approx(t)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-12)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=40))
def test_paired_t_is_scipys(differences: list[float]):
    found = paired_t(differences)
    if found.t is None or abs(found.t) < 1e-6:
        return
    expected = stats.ttest_1samp(differences, 0.0)
    assert found.t == pytest.approx(float(expected.statistic), rel=1e-6)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.t), found.count - 1), rel=1e-9)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 30, 1000])
@pytest.mark.parametrize("t", [0.01, 0.7, 1.0, 2.5, 8.0, 40.0])
def test_the_tails_of_t_are_right_for_any_degrees(degrees: int, t: float):
    # Differences with mean m and deviation 1 have t = m sqrt(n).
    count = degrees + 1
    centred = np.arange(count) - (count - 1) / 2
    differences = centred / centred.std(ddof=1) + t / math.sqrt(count)
    found = paired_t(differences.tolist())
    assert found.t == pytest.approx(t)
    assert found.p == pytest.approx(float(2 * stats.t.sf(t, degrees)), rel=1e-7)


def test_equal_differences_have_no_t_but_a_verdict():
    assert (paired_t([0.0, 0.0]).t, paired_t([0.0, 0.0]).p) == (None, 1.0)
    # 0.1 + 0.1 + 0.1 leaves a rest of rounding that is no spread.
    same = paired_t([0.1, 0.1, 0.1])
    # Three of three above zero: the sign test, 2 / 2^3.
    assert (same.t, same.deviation, same.p) == (None, 0.0, 0.25)


def test_the_interval_of_t_is_scipys():
    differences = [0.01, 0.03, 0.06, -0.01]
    expected = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    found = t_interval(paired_t(differences))
    assert found == pytest.approx((float(expected.low), float(expected.high)), rel=1e-9)


def test_the_interval_of_t_by_hand():
    # One degree of freedom is Cauchy's distribution: its 75 % quantile is tan(pi / 4) = 1.
    low, high = t_interval(PairedT(0.5, math.sqrt(2), 0.5, 0.7, 2), confidence=0.5)
    assert (low, high) == pytest.approx((-0.5, 1.5))


def test_what_rounding_leaves_is_no_difference():
    assert without_rounding(0.1 + 0.2 - 0.3) == 0.0
    assert without_rounding(0.0125) == 0.0125


def test_a_named_generator_draws_the_same_again_and_others_otherwise():
    first, again, other = (generator_for(name).random() for name in ("a b", "a b", "b a"))
    assert first == again != other


def test_holm_by_hand():
    # In order .01 .02 .03 .04: times 4, 3, 2, 1, and never less than the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holm_adjusts_each_family_apart_and_keeps_the_order():
    tests = [("t", 0.03), ("mcnemar", 0.04), ("t", 0.01)]
    assert holm_by_family(tests) == [0.03, 0.04, 0.02]
    assert holm_by_family([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_plain_p_and_bonferronis(p_values: list[float]):
    for plain, adjusted in zip(p_values, holm(p_values), strict=True):
        assert plain <= adjusted <= min(1.0, plain * len(p_values))


def test_with_one_question_a_picture_mcnemar_is_the_usual_test():
    rng = np.random.default_rng(2)
    first, second = (rng.random(60) < share for share in (0.7, 0.5))
    usual = mcnemar(first.tolist(), second.tolist())
    clustered = mcnemar(first.tolist(), second.tolist(), list(range(60)))
    assert (clustered.first_only, clustered.second_only) == (usual.first_only, usual.second_only)
    assert clustered.p == pytest.approx(usual.p, rel=1e-9)


def test_the_p_over_pictures_counts_every_sign_by_hand():
    # Pictures won less lost: +2, +1, -1, 0; the sum is 2.
    first = [True, True, True, False, True, False]
    second = [False, False, False, True, False, True]
    pictures = ["a", "a", "b", "c", "d", "d"]
    sums = [2 * a + b + c for a in (1, -1) for b in (1, -1) for c in (1, -1)]
    expected = sum(abs(one) >= 2 for one in sums) / len(sums)
    assert mcnemar(first, second, pictures).p == pytest.approx(expected)


def test_questions_of_a_picture_make_the_interval_wider():
    rng = np.random.default_rng(3)
    by_picture = rng.choice([-1.0, 0.0, 1.0], 40)
    group, pictures = np.repeat(by_picture, 3), np.repeat(np.arange(40), 3).tolist()
    alone = bootstrap([group], np.random.default_rng(0), 4000)
    together = bootstrap([group], np.random.default_rng(0), 4000, [pictures])
    ratio = (together.high - together.low) / (alone.high - alone.low)
    # Three equal questions are one: the interval is wider by the square root of 3.
    assert ratio == pytest.approx(3**0.5, rel=0.06)
    error = by_picture.std() / 40**0.5
    assert together.high - together.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_a_picture_with_more_questions_weighs_more():
    group, pictures = np.array([1.0, 1.0, 1.0, 0.0]), [0, 0, 0, 1]
    found = bootstrap([group], np.random.default_rng(0), 4000, [pictures])
    assert found.difference == 0.75
    # Both pictures, or one of them twice: means 0.75, 1 and 0.
    assert (found.low, found.high) == (0.0, 1.0)
