"""What an adversary does is drawn from its seed, and what a soak judges is found."""

from itertools import islice
from pathlib import Path

from server.run.folder import RunFolder
from simulation.chaos.adversary import Pace, Role, Strike, strikes
from simulation.chaos.soak import Counted, Verdict, Witness, counted_twice

SITES = ("a", "b", "c")


def drawn(seed: int, count: int = 220, pace: Pace | None = None) -> list[Strike]:
    return list(islice(strikes(seed, SITES, pace or Pace()), count))


def update(site: str = "a", digest: str = "d", header: str = "h") -> Counted:
    return Counted(stage=0, round=1, work="train", site=site, digest=digest, header=header)


def test_equal_seeds_draw_equal_strikes_and_others_others():
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_no_role_is_left_out():
    assert {strike.role for strike in drawn(1, count=11)} == set(Role)


def test_times_are_within_their_limits_and_an_app_is_never_kept_down():
    pace = Pace()
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


def test_a_witness_tells_of_an_answer_that_is_gone_and_of_one_that_changed():
    witness = Witness(RunFolder(Path("nowhere")))
    witness.compare([update("a"), update("b")])
    assert witness.faults == []
    witness.compare([update("a"), update("b"), update("c")])
    assert witness.faults == []
    witness.compare([update("a", header="other"), update("c")])
    assert witness.faults == [
        "accepted twice: train stage 1, round 1 of a (d)",
        "accepted and gone: train stage 1, round 1 of b (d)",
    ]


def test_an_update_under_two_orders_of_one_round_counts_twice():
    assert counted_twice([update("a"), update("b")]) == []
    assert counted_twice([update("a"), update("a", digest="e"), update("b")]) == [
        "counted twice: a in stage 1, round 1"
    ]


def test_the_last_line_says_how_many_kills_and_whether_the_banks_are_equal():
    good = Verdict(kills=40, stops=12, seconds=900.4, answers=64, faults=(), equal=True)
    assert good.passed
    assert good.last_line == "40 kills, 12 stops, 900 s: the banks are equal"
    bad = Verdict(kills=40, stops=12, seconds=900.4, answers=64, faults=(), equal=False)
    assert not bad.passed
    assert bad.last_line.endswith("THE BANKS DIFFER")
