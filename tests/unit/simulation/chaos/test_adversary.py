"""An adversary's strikes are drawn from its seed, and a soak's checks find faults."""

from itertools import islice
from pathlib import Path

from server.run.folder import RunFolder
from simulation.chaos.adversary import Role, Strike, StrikePace, strikes
from simulation.chaos.soak import AcceptedAnswer, Verdict, Witness, accepted_twice

SITES = ("a", "b", "c")


def drawn(seed: int, count: int = 220, pace: StrikePace | None = None) -> list[Strike]:
    return list(islice(strikes(seed, SITES, pace or StrikePace()), count))


def update(site: str = "a", digest: str = "d", header: str = "h") -> AcceptedAnswer:
    return AcceptedAnswer(stage=0, round=1, work="train", site=site, digest=digest, header=header)


def test_equal_seeds_draw_equal_strikes_and_others_others():
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_no_role_is_left_out():
    assert {strike.role for strike in drawn(1, count=11)} == set(Role)


def test_times_are_within_their_limits_and_an_app_is_never_kept_down():
    pace = StrikePace()
    for strike in drawn(5):
        if strike.stop:
            assert pace.stopped[0] <= strike.seconds <= pace.stopped[1]
        elif strike.role in (Role.SERVERAPP, Role.CLIENTAPP):
            assert strike.seconds == 0
        else:
            least = 0.0 if strike.seconds == 0 else pace.down[0]
            assert least <= strike.seconds <= pace.down[1]


def test_a_supervisor_is_always_kept_down_as_nobody_else_would_start_it():
    kills = [s for s in drawn(2) if s.role is Role.SUPERVISOR and not s.stop]
    assert kills
    assert all(strike.seconds > 0 for strike in kills)


def test_a_witness_reports_an_answer_that_is_lost_and_one_that_changed():
    witness = Witness(RunFolder(Path("nowhere")))
    witness.compare([update("a"), update("b")])
    assert witness.faults == []
    witness.compare([update("a"), update("b"), update("c")])
    assert witness.faults == []
    witness.compare([update("a", header="other"), update("c")])
    assert witness.faults == [
        "accepted and changed: train stage 1, round 1 of a (d)",
        "accepted and lost: train stage 1, round 1 of b (d)",
    ]


def test_an_update_under_two_orders_of_one_round_is_accepted_twice():
    assert accepted_twice([update("a"), update("b")]) == []
    assert accepted_twice([update("a"), update("a", digest="e"), update("b")]) == [
        "accepted twice: a in stage 1, round 1"
    ]


def test_the_last_line_says_how_many_kills_and_whether_the_banks_are_equal():
    good = Verdict(kills=40, stops=12, seconds=900.4, answers=64, faults=(), equal=True)
    assert good.passed
    assert good.last_line == "40 kills, 12 stops, 900 s: the banks are equal"
    bad = Verdict(kills=40, stops=12, seconds=900.4, answers=64, faults=(), equal=False)
    assert not bad.passed
    assert bad.last_line.endswith("THE BANKS DIFFER")
