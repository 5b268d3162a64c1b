"""What every test of a whole flow has in common: its runs draw no charts, and phantoms once."""

from collections.abc import Generator

import pytest

from tests.flow.cheap_runs import no_charts_drawn, phantoms_kept


@pytest.fixture(scope="module", autouse=True)
def cheap_runs() -> Generator[None]:
    """Where a test looks at a chart, its run is made under `charts_drawn`."""
    with no_charts_drawn(), phantoms_kept():
        yield
