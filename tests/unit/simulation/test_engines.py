"""What keeps an engine from running is said in one sentence; a slow start is tried again."""

from typing import Any

import pytest

from common.errors import StateError
from simulation.engines import Engine, check_engine, start_ray


@pytest.fixture(autouse=True)
def with_no_folders_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)


def test_a_temporary_folder_too_long_for_rays_sockets_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
):
    pytest.importorskip("ray")
    monkeypatch.setenv("TMPDIR", "/" + "t" * 49)
    with pytest.raises(StateError) as refused:
        check_engine(Engine.FLOWER)
    assert str(refused.value) == (
        "TMPDIR: found a path of 50 bytes, expected at most 39, as Ray's sockets are in it; set "
        "RAY_TMPDIR to a shorter folder, or use --engine inprocess"
    )
    check_engine(Engine.IN_PROCESS)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_engine(Engine.FLOWER)


def test_the_longest_folder_that_is_accepted_leaves_room_for_the_longest_socket():
    # unix(7): sun_path has 108 bytes, the last of them zero.
    session = "session_2026-11-29_16-45-55_123456_4194304"
    assert len(f"/{'t' * 38}/ray/{session}/sockets/plasma_store") == 107


#: The text of ray/_private/node.py.
TIMED_OUT = Exception(
    "The current node timed out during startup. This could happen because some of the raylet "
    "failed to startup or the GCS has become overloaded."
)


@pytest.fixture
def ray_starts(monkeypatch: pytest.MonkeyPatch) -> list[Exception | None]:
    """How each start of Ray ends; the last one first."""
    ray = pytest.importorskip("ray")
    ends = list[Exception | None]()

    def init(**_options: Any) -> None:
        if error := ends.pop():
            raise error

    monkeypatch.setattr(ray, "init", init)
    return ends


def test_a_start_of_ray_that_takes_too_long_is_tried_again(
    ray_starts: list[Exception | None], capsys: pytest.CaptureFixture[str]
):
    ray_starts[:] = [None, TIMED_OUT, TIMED_OUT]
    start_ray(2)
    assert not ray_starts
    assert capsys.readouterr().err.splitlines() == [
        "Ray's start took longer than its 30 s (1 of 3)",
        "Ray's start took longer than its 30 s (2 of 3)",
    ]


def test_after_three_starts_that_took_too_long_the_simulation_ends_with_one_sentence(
    ray_starts: list[Exception | None],
):
    ray_starts[:] = [TIMED_OUT] * 3
    with pytest.raises(StateError, match="did not start within 30 s in 3 tries") as refused:
        start_ray(2)
    assert "\n" not in str(refused.value)


def test_another_failure_of_rays_start_is_not_repeated(ray_starts: list[Exception | None]):
    ray_starts[:] = [RuntimeError("no room")]
    with pytest.raises(RuntimeError, match="no room"):
        start_ray(2)
