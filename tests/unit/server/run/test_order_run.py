"""When a run continues with the responses that it has."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from common.exchange import Order, Scores
from common.plan.plan import Plan
from server.run.accept import Accept, Waiting
from server.run.order_run import OrderRun
from tests.unit.small_round import ORDER, journal, plan, run_context

NOW = 1_000_000.0


def order_run(folder: Path, patient: bool = True, of: Plan | None = None) -> OrderRun:
    """An order to three sites with a quorum of two and a deadline of two hours."""
    chosen = of or plan(sites=["a", "b", "c"], deadline_hours=2.0)
    run, _ = run_context(journal(folder, chosen), patient=patient, of=chosen)
    return OrderRun(run, ORDER, chosen.stages[0], quorum=2)


def scores(site: str) -> Scores:
    return Scores(order=ORDER.digest, site=site, questions=1, metrics={}, majority={})


@pytest.mark.parametrize(
    ("answered", "refused", "hours", "patient", "enough"),
    [
        ("abc", "", 0.0, False, True),
        ("ab", "", 9.0, False, False),
        ("ab", "", 0.0, True, False),
        ("ab", "c", 0.0, True, True),
        ("ab", "", 1.99, True, False),
        ("ab", "", 2.01, True, True),
        ("a", "bc", 9.0, True, False),
        ("", "abc", 9.0, True, False),
    ],
)
def test_a_run_continues_with_all_answers_or_with_a_quorum_that_nothing_more_is_expected_of(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answered: str,
    refused: str,
    hours: float,
    patient: bool,
    enough: bool,
):
    monkeypatch.setattr(time, "time", lambda: NOW)
    found = order_run(tmp_path, patient)
    found.run.journal.open_order(ORDER)
    found.responses.scores.update({site: scores(site) for site in answered})
    for site in refused:
        found.refuse(site, "no")
    monkeypatch.setattr(time, "time", lambda: NOW + 3600 * hours)
    assert found.has_enough() is enough
    assert found.silent_sites == [site for site in "abc" if site not in answered + refused]


def test_refusals_are_events_and_one_error_in_the_order_of_the_sites(tmp_path: Path):
    chosen = plan(sites=["a", "b", "c"])
    run, events = run_context(journal(tmp_path, chosen), of=chosen)
    found = OrderRun(run, ORDER, chosen.stages[0], quorum=2)
    found.refuse("b", "it is \x1b ill")
    found.refuse("a", "it is well")
    said: list[Mapping[str, object]] = [
        {"event": "refused", "stage": 0, "site": site, "text": text}
        for site, text in (
            ("b", "site b could not train stage 1, round 1: it is ? ill"),
            ("a", "site a could not train stage 1, round 1: it is well"),
        )
    ]
    assert events == said
    assert str(found.fail()) == f"{said[1]['text']}\n{said[0]['text']}"


def test_who_is_missing_is_said_when_it_changes_and_again_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    seen = [
        (0, "offline"), (10, "offline"), (5, "step 1 of 9"), (20, "step 2 of 9"),
        (11, "step 3 of 9"), (1, "step 3 of 9, about 2 min left"),
    ]  # fmt: skip

    def waiting(order: Order, sites: Sequence[str], accept: Accept) -> Iterator[Waiting]:
        for seconds, state in seen:
            now[0] += seconds
            yield Waiting({"b": state}, frozenset())

    chosen = plan()
    run, events = run_context(journal(tmp_path, chosen), waiting, of=chosen)
    found = OrderRun(run, ORDER, chosen.stages[0], quorum=2)
    assert len(list(found.collect())) == len(seen)
    # The third is another; the fifth comes 31 seconds after it, and the last one is another.
    assert [event["for"]["b"] for event in events] == [
        "offline", "step 1 of 9", "step 3 of 9", "step 3 of 9, about 2 min left",
    ]  # fmt: skip
