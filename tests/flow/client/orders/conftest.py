"""A site with the base model and a task's questions."""

from pathlib import Path

import pytest

from client.site.config import Site
from tests.flow.small_site import (
    site_in,
    write_site,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def site(shared: Path, tmp_path: Path) -> Site:
    return site_in(shared, tmp_path / "store")
