"""The activity of a run, for a file."""

from server.coordinator.follow import ActivityLines


def test_an_activity_is_a_line_when_it_changes_and_again_after_a_while():
    lines = ActivityLines(every_s=10.0, repeat_s=60.0)
    said = [(now, lines.line(what, now)) for now, what in (
        (0.0, "a"), (1.0, "a"), (2.0, "b"), (9.0, "c"), (10.0, "d"), (69.0, "d"), (70.0, "d"),
    )]  # fmt: skip
    # Not "b" and "c": what changes all the time is not a line each time.
    assert [(now, line) for now, line in said if line] == [(0.0, "a"), (10.0, "d"), (70.0, "d")]
