"""What keeps an engine from running is said before anything is prepared."""

import pytest

from common.errors import StateError
from simulation.engines import Engine, check_engine


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
