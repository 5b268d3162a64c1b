import math

import pytest
from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from report.learned.intervals import Estimate, difference, mean_of, student_mean, wilson


def test_wilsons_interval_is_that_of_the_literature():
    # Newcombe 1998 (17:857), table I: 81 of 263, and 0 of 20.
    found = wilson(81 / 263, 263)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    none = wilson(0.0, 20)
    assert (none.low, none.high) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_newcombes_difference_is_that_of_the_literature():
    # Newcombe 1998 (17:873), table II, method 10: 56 of 70 less 48 of 80.
    found = difference(wilson(56 / 70, 70), wilson(48 / 80, 80))
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_the_mean_of_independent_values_is_surer_than_each():
    one = Estimate(0.5, 0.4, 0.7)
    found = mean_of([one] * 4)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.45, 0.6))


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_students_interval_has_its_quantile(count: int):
    values = [0.1 * number for number in range(count)]
    found = student_mean(values)
    deviation = math.sqrt(sum((v - found.value) ** 2 for v in values) / (count - 1))
    reach = float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)  # pyright: ignore[reportUnknownArgumentType]
    assert found.high - found.value == pytest.approx(reach, rel=1e-3)
