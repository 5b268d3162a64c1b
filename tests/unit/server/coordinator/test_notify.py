"""Bells: each ring is heard, and nobody listens for long to one who is gone."""

import os
import time
from pathlib import Path

from server.coordinator.notify import STALE_S, Bells


def test_every_ring_of_a_node_s_bell_changes_it_and_no_other(tmp_path: Path):
    bells = Bells(tmp_path / "bells")
    assert bells.rung(7) == 0
    heard = [bells.rung(7)]
    for _ in range(200):
        bells.ring(7)
        heard.append(bells.rung(7))
    assert len(set(heard)) == 201
    assert bells.rung(8) == 0


def test_another_process_s_bells_in_the_same_folder_are_the_same(tmp_path: Path):
    Bells(tmp_path / "bells").ring(7)
    assert Bells(tmp_path / "bells").rung(7) > 0


def test_bells_are_minded_until_they_are_stale_however_the_clock_was_set(tmp_path: Path):
    bells = Bells(tmp_path / "bells")
    assert not bells.minded()
    bells.mind()
    assert bells.minded()
    for off in (-2 * STALE_S, 2 * STALE_S):
        moment = time.time() + off
        os.utime(bells.folder / "minded", (moment, moment))
        assert not bells.minded()


def test_a_bell_that_can_not_be_rung_stops_nobody(tmp_path: Path):
    (tmp_path / "bells").write_text("no folder")
    bells = Bells(tmp_path / "bells")
    bells.ring(7)
    bells.mind()
    assert (bells.rung(7), bells.minded()) == (0, False)
