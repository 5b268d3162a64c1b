"""A coordinator and three sites as real processes over TLS, through the command line alone.

Between the sites and the coordinator is a proxy, under a name that it alone knows; every variable
that names a proxy is set.
"""

from pathlib import Path

import pytest

from simulation.chaos.loopback import loopback
from simulation.chaos.soak import accepted
from simulation.run import simulate
from tests.connect_proxy import connect_proxy
from tests.flow.small_run import bank_bytes, options, small_plan

pytestmark = pytest.mark.federated


#: A name that no name server has (RFC 6761): only through the proxy does it lead anywhere.
HUB = "fed.example.test"


def test_three_real_sites_behind_a_proxy_end_with_the_bytes_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan = small_plan(tmp_path / "plan.yaml")
    simulate(plan, options(tmp_path / "one"))

    with (
        connect_proxy() as proxy,
        connect_proxy(refusal="403 Astray") as astray,
        loopback(plan, tmp_path / "real", host=HUB) as federation,
    ):
        for name in ("HTTP_PROXY", "ALL_PROXY", "GRPC_PROXY"):
            monkeypatch.setenv(name, astray.url)
            monkeypatch.setenv(name.lower(), astray.url)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "elsewhere.example.test")
        for machine in federation.machines:
            federation.start(machine)
        told = federation.run_plan()
        assert f"bank:   {federation.run.bank}" in told
        assert bank_bytes(federation.run.root) == bank_bytes(tmp_path / "one")

        # The same command again: all is there, nothing is asked again.
        before = accepted(federation.run)
        assert federation.run_plan() == told
        assert accepted(federation.run) == before
        # Every request of a site to the coordinator and no other, of no other program.
        port = federation.state.settings.port
        assert set(proxy.asked) == {f"CONNECT {HUB}:{port} HTTP/1.1"}
        assert astray.asked == []
