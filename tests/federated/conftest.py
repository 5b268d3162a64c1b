"""What the runs in a test's own process have in common, beside which real ones are set."""

from collections.abc import Generator

import pytest

from tests.flow.cheap_runs import no_charts_drawn, phantoms_kept


@pytest.fixture(scope="module", autouse=True)
def cheap_runs() -> Generator[None]:
    with no_charts_drawn(), phantoms_kept():
        yield
