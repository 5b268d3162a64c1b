"""Notifications: each ring is seen, and nobody listens for long to one who is gone."""

import os
import time
from pathlib import Path

from server.coordinator.notify import STALE_S, Notifications


def test_every_notification_of_a_node_changes_its_number_and_no_other(tmp_path: Path):
    notifications = Notifications(tmp_path / "notifications")
    assert notifications.last(7) == 0
    seen = [notifications.last(7)]
    for _ in range(200):
        notifications.notify(7)
        seen.append(notifications.last(7))
    assert len(set(seen)) == 201
    assert notifications.last(8) == 0


def test_processes_share_the_notifications_of_a_folder(tmp_path: Path):
    Notifications(tmp_path / "notifications").notify(7)
    assert Notifications(tmp_path / "notifications").last(7) > 0


def test_a_heartbeat_is_valid_until_it_is_stale_however_the_clock_was_set(tmp_path: Path):
    notifications = Notifications(tmp_path / "notifications")
    assert not notifications.is_alive()
    notifications.heartbeat()
    assert notifications.is_alive()
    for off in (-2 * STALE_S, 2 * STALE_S):
        moment = time.time() + off
        os.utime(notifications.folder / "heartbeat", (moment, moment))
        assert not notifications.is_alive()


def test_a_notification_that_can_not_be_written_stops_nothing(tmp_path: Path):
    (tmp_path / "notifications").write_text("no folder")
    notifications = Notifications(tmp_path / "notifications")
    notifications.notify(7)
    notifications.heartbeat()
    assert (notifications.last(7), notifications.is_alive()) == (0, False)
