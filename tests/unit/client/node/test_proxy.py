"""What `site check` says of a proxy between the site and the coordinator."""

from pathlib import Path

import pytest

from client.node.check import first_obstacle, quick_checks
from client.node.connectivity import check_connection, check_proxy
from client.node.processes import Machine, ProgramName, programs
from client.site.config import Federation, Site
from client.site.finding import Level
from common.network.proxies import NO_PROXIES
from server.coordinator.certificates import write_certificates
from tests.connect_proxy import connect_proxy
from tests.unit.client.node.test_check import (
    Coordinator,
    coordinator,
    federation,
    serving,
    site,
)

__all__ = ["coordinator", "federation", "site"]

#: Only the proxies of these tests know where it is.
HUB = "fed.example.test"


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    write_certificates(tmp_path / "tls", [HUB])
    return tmp_path / "tls"


@pytest.fixture
def far(federation: Federation, coordinator: Coordinator) -> Federation:
    """The coordinator under a name that leads there through a proxy alone."""
    return federation.model_copy(update={"address": f"{HUB}:{coordinator.server_port}"})


def only_proxy(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name in NO_PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", url)


def test_the_proxy_in_force_is_named_and_that_it_leaves_tls_closed(
    far: Federation, monkeypatch: pytest.MonkeyPatch
):
    with connect_proxy() as proxy:
        only_proxy(monkeypatch, proxy.url.replace("//", "//me:secret@"))
        named, connection = check_proxy(far), check_connection(far)
    assert named.text.startswith(f"{proxy.url} (HTTPS_PROXY) leads to the coordinator")
    assert [finding.level for finding in connection] == [Level.OK, Level.OK]
    assert "does not open its TLS" in connection[0].text
    assert proxy.asked == [f"CONNECT {far.address} HTTP/1.1"]


def test_a_proxy_that_opens_tls_is_named(
    far: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_certificates(tmp_path / "opened", [HUB])
    with (
        serving(tmp_path / "opened") as between,
        connect_proxy(leads_to=between.server_port) as proxy,
    ):
        only_proxy(monkeypatch, proxy.url)
        (found,) = check_connection(far)
    assert found.level is Level.PROBLEM
    assert f"the proxy {proxy.url} (HTTPS_PROXY) opens TLS" in found.text


@pytest.mark.parametrize(
    ("refusal", "level", "said"),
    [
        ("403 Forbidden", Level.PROBLEM, "(403 Forbidden): ask who runs it to allow it"),
        ("407 Log in", Level.PROBLEM, "(407 Log in): it wants a name and a password"),
        ("503 Nobody", Level.AWAY, "(503 Nobody): is the coordinator running?"),
    ],
)
def test_what_a_proxy_answers_is_said(
    far: Federation, monkeypatch: pytest.MonkeyPatch, refusal: str, level: Level, said: str
):
    with connect_proxy(refusal) as proxy:
        only_proxy(monkeypatch, proxy.url)
        found = first_obstacle(quick_checks(far))
    assert found is not None and found.level is level
    assert said in found.text and proxy.url in found.text


def test_a_dead_proxy_is_named(far: Federation, monkeypatch: pytest.MonkeyPatch):
    only_proxy(monkeypatch, "http://127.0.0.1:1")
    found = first_obstacle(quick_checks(far))
    assert found is not None and found.level is Level.AWAY
    assert "through the proxy http://127.0.0.1:1 (HTTPS_PROXY)" in found.text


def test_a_proxy_of_another_kind_is_one_problem(far: Federation, monkeypatch: pytest.MonkeyPatch):
    only_proxy(monkeypatch, "socks5://127.0.0.1:1")
    found = [finding for finding in quick_checks(far) if not finding.passed]
    assert [finding.name for finding in found] == ["proxy"]
    assert "found a proxy of the kind 'socks5'" in found[0].text


def test_variables_for_others_leave_the_way_direct(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
):
    with connect_proxy() as proxy:
        only_proxy(monkeypatch, proxy.url)
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        quick_checks(federation)
    assert check_proxy(federation).text.startswith("none")
    assert proxy.asked == []


def test_only_the_supernode_is_given_the_proxy(
    site: Site, far: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    only_proxy(monkeypatch, "http://10.1.1.1:3128")
    monkeypatch.setenv("HTTP_PROXY", "http://10.1.1.1:3128")
    there = site.model_copy(update={"federation": far})
    for one in programs(Machine(file=tmp_path / "site.yaml", site=there)):
        given = {name: one.environment[name] for name in NO_PROXIES}
        if one.name == ProgramName.SUPERNODE:
            assert given["HTTPS_PROXY"] == "http://10.1.1.1:3128"
            assert given["HTTP_PROXY"] == "" and given["NO_PROXY"] == ""
        else:
            assert given == NO_PROXIES
