"""A site trains as a new rule's file says, and nothing else of the client knows the rule."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from client.site.config import Site
from common.adapter import Adapter, from_bytes
from common.exchange import Order, Update
from tests.flow.small_site import do, order_of, plan_of, site_in, write_site
from tests.unit.new_rule import rule_file


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with rule_file(tmp_path / "rules", "largest_site"):
        yield site_in(write_site(tmp_path / "site"), tmp_path / "store")


def trained(order: Order, site: Site) -> tuple[Adapter, bytes]:
    update = do(order, site, lambda _: None, None)
    assert isinstance(update, Update)
    return from_bytes(update.adapter, "test"), update.adapter


def test_a_site_draws_and_trains_the_factors_that_a_new_rule_says(site: Site):
    plan = plan_of(site, "largest_site")
    first, blob = trained(order_of(site, plan), site)
    second, _ = trained(order_of(site, plan, round=2, adapter=blob), site)
    for name, pair in first.pairs.items():
        # A was drawn orthonormal and is frozen in round 1; B was 0.
        np.testing.assert_allclose(pair.a @ pair.a.T, np.eye(2), atol=1e-6)
        assert np.any(pair.b)
        later = second.pairs[name]
        assert not np.array_equal(later.a, pair.a) and not np.array_equal(later.b, pair.b)
