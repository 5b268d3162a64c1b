"""The event that ends a run, among those that the ServerApp writes (server/app.py)."""

from collections.abc import Sequence

from common.process.progress import ProgressEvent

#: `done`: the run has finished. `failed`: it would fail again if it were started again.
_FINAL = ("done", "failed")


def final_event(events: Sequence[ProgressEvent]) -> ProgressEvent | None:
    """Return the event that ended the run; None if it has not ended.

    Of several only the last one counts: a run that failed and was requested again
    continues to write to the same file.
    """
    return next((event for event in reversed(events) if event["event"] in _FINAL), None)
