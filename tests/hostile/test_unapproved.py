"""A site that has not approved a plan gets the plan and nobody's adapter."""

import pytest

from common.exchange import Failure, Lacks, Reason
from common.identity import sha256
from server.run.accept import Done
from tests.unit.server.conftest import without_pauses
from tests.unit.server.scripted_sites import (
    ADAPTER,
    ORDER,
    PATIENT,
    PLAN,
    Site,
    events,
)

pytestmark = pytest.mark.usefixtures(without_pauses.__name__)
UNAPPROVED = Failure(site="a", error="OrderRefused", reference="ab12", reason=Reason.PLAN)
LACKS = Lacks(order=ORDER.digest, site="a", digests=(sha256(ADAPTER),))


def test_the_adapter_is_sent_once_the_site_has_taken_the_order():
    site = Site(UNAPPROVED, UNAPPROVED, LACKS)
    found, _ = events(site, ["a"], ["a"], PATIENT, registered=lambda: ["a"])
    assert found[-1] == Done("a")
    sent = [set(delivery.blobs) for delivery in site.got]
    assert sent == [{sha256(PLAN)}, set(), set(), {sha256(ADAPTER)}]


def test_an_approval_that_was_withdrawn_is_heeded():
    site = Site(LACKS, UNAPPROVED, UNAPPROVED, LACKS)
    events(site, ["a"], ["a"], PATIENT, registered=lambda: ["a"])
    sent = [set(delivery.blobs) for delivery in site.got]
    assert sent == [{sha256(PLAN)}, {sha256(ADAPTER)}, set(), set(), {sha256(ADAPTER)}]
