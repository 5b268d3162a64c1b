"""Who has left the federation, and who only gets another key."""

import pytest

from server import departures
from server.departures import Departures


def test_a_site_has_left_once_it_was_not_enrolled_for_so_long(monkeypatch: pytest.MonkeyPatch):
    left = Departures()
    left.look(["north", "south"], ["south"])
    assert "north" not in left
    monkeypatch.setattr(departures, "LEFT_S", 0.0)
    assert "north" in left
    assert "south" not in left


def test_a_site_with_another_key_is_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(departures, "LEFT_S", 0.0)
    left = Departures()
    left.look(["north"], [])
    left.look(["north"], ["north"])
    assert "north" not in left


def test_in_a_simulation_nobody_leaves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(departures, "LEFT_S", 0.0)
    left = Departures()
    left.look(["north"], None)
    assert "north" not in left
