"""A federated round taken apart into what its moments lie between."""

from dataclasses import asdict

import pytest

from benchmarks.round_parts import PARTS, RoundTimes, SiteTimes, parts, typical


def site_times(received: float, trained: float) -> SiteTimes:
    return SiteTimes(
        process=101.0, order=103.0, started=103.5, answered=108.0, sent=108.25, received=received,
        trained=trained,
    )  # fmt: skip


TIMES = RoundTimes(
    opened=100.0, closed=111.0, sites={"a": site_times(109.0, 4.0), "b": site_times(110.0, 3.5)}
)


def test_a_round_is_as_long_as_its_parts_together():
    assert TIMES.seconds == 11.0
    assert sum(parts(TIMES).values()) == TIMES.seconds
    assert list(parts(TIMES)) == list(PARTS)


def test_the_parts_are_those_of_the_site_that_came_last_and_training_that_of_the_slowest():
    assert parts(TIMES)["received"] == 110.0 - 108.25
    assert parts(TIMES)["closed"] == 1.0
    assert TIMES.training == 4.0


def test_a_typical_round_has_the_median_of_each_part():
    moved = {
        name: SiteTimes(**{**asdict(one), "process": 102.0}) for name, one in TIMES.sites.items()
    }
    later = RoundTimes(opened=100.0, closed=113.0, sites=moved)
    found = typical([TIMES, later])
    assert found["process"] == pytest.approx(1.5)
    assert found["closed"] == pytest.approx(2.0)
