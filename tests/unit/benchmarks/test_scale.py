"""The measurement of scale, at a size of seconds."""

import json

import pytest

from benchmarks.scale import __main__ as scale
from benchmarks.scale.stages import Series


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Series]]:
    return scale.run((1, 3), (2, 4), repeats=1)


def test_every_series_has_a_figure_at_each_count(found: dict[str, dict[str, Series]]):
    assert len(found["stages"]) >= 14 and len(found["sites"]) >= 8
    for along, counts in (("stages", [1, 3]), ("sites", [2, 4])):
        for series in found[along].values():
            assert list(series.values) == counts, series.name
            assert all(value > 0 for value in series.values.values()), series.name


def test_what_is_counted_and_not_timed_grows_as_it_must(found: dict[str, dict[str, Series]]):
    # A reference in an order is 71 letters as Python writes it, an entry of bank.json some more.
    order = found["stages"]["order"].values
    assert 0.14 <= order[3] - order[1] < 0.16
    index = found["stages"]["bank.json"].values
    assert 0.2 < index[3] - index[1] < 0.3


def test_the_figures_are_written_as_json_and_drawn(found: dict[str, dict[str, Series]]):
    document = json.loads(json.dumps(scale.document(found)))
    assert set(document["stages"]["step, fold"]) == {"unit", "values", "growth"}
    drawn = scale.pictures(found)
    assert [one.file for one in drawn] == ["scale_stages.png", "scale_sites.png"]
    assert all(one.content.startswith(b"\x89PNG") for one in drawn)
    assert "step, stack" in drawn[0].description
