"""Which findings leave a site able to work."""

import pytest

from client.site.finding import Finding, Level


@pytest.mark.parametrize("level", Level)
def test_a_site_works_with_a_warning_and_not_without_its_coordinator(level: Level):
    assert Finding("way", level, "").passed is (level in (Level.OK, Level.WARNING))
