"""What of a failure leaves the site: its class, and a reason where the coordinator can use one."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from client.site.blob_store import disk_errors_as_site_failed
from client.site.config import Site
from client.site.failures import record_failure
from common.errors import SiteFailed
from common.exchange import Reason


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, Reason.DISK), (errno.EDQUOT, Reason.DISK), (errno.EACCES, None)],
)
def test_a_full_disk_is_a_reason_also_where_it_came_as_another_error(
    tmp_path: Path, number: int, reason: Reason | None
):
    site = cast(Site, SimpleNamespace(name="north", store=tmp_path))
    full = OSError(number, "its text", "/patients/miller.dcm")
    assert record_failure(site, full).reason is reason
    with pytest.raises(SiteFailed) as failed, disk_errors_as_site_failed():
        raise full
    failure = record_failure(site, failed.value)
    assert (failure.error, failure.reason) == ("SiteFailed", reason)
    assert "miller" not in str(failure.header())
