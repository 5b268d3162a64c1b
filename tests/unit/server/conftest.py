"""No pauses between two looks at a site."""

import pytest

from server import asked_site, network


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (network, "NODE_LIST_S"), (network, "UPGRADE_S"), (network, "RETRY_S"),
        (asked_site, "RETRY_S"), (asked_site, "LONGEST_PAUSE_S"), (asked_site, "LONGEST_POLL_S"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, 0.001)
