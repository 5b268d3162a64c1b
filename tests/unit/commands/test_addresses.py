"""Hosts, ports and proxies are checked before the coordinator writes or starts anything."""

import socket
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from commands.coordinator import app
from commands.site import app as site_app
from common.errors import Refusal
from common.network import ports
from common.network.proxies import NO_PROXIES
from server.coordinator.processes import processes
from server.coordinator.state import State
from server.coordinator.superlink import SuperLink, SuperLinkUnavailable
from simulation.chaos.loopback import free_port
from tests.connect_proxy import connect_proxy

CALL = CliRunner()


def init(folder: Path, *words: str) -> Result:
    return CALL.invoke(app, ["init", *words, "--state", str(folder)])


def refusal(result: Result) -> str:
    assert isinstance(result.exception, Refusal), result.output
    sentence = str(result.exception)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "x.org:8443"], "--host: found 'x.org:8443' with a port, expected a name"),
        (["--host", "https://x.org"], "--host: found 'https://x.org' with a scheme, expected"),
        (["--host", "x.org", "--host", "a b"], "--host: found 'a b', expected a name"),
        (["--host", "0.0.0.0"], "--host: found '0.0.0.0', which is no machine's address"),
        (["--inner-host", "superlink:8000"], "--inner-host: found 'superlink:8000' with a port"),
        (["--bind", "0.0.0.0:8443"], "--bind: found '0.0.0.0:8443' with a port"),
    ],
)
def test_a_host_that_is_none_is_refused_before_anything_is_written(
    tmp_path: Path, words: list[str], said: str
):
    assert refusal(init(tmp_path / "hub", *words)).startswith(said)
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize("port", ["0", "65536", "-1"])
@pytest.mark.parametrize("option", ["--port", "--inner-port"])
def test_a_port_that_is_none_is_refused(tmp_path: Path, option: str, port: str):
    result = init(tmp_path / "hub", option, port)
    assert result.exit_code == 2 and "1<=x<=65535" in result.output
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_is_given_to_sites_as_they_take_it(tmp_path: Path, host: str):
    result = init(tmp_path / "hub", "--host", host)
    assert result.exit_code == 0, result.exception
    assert "the address [::1]:8443; the site runs" in result.output
    assert State.open(tmp_path / "hub").settings.hosts == ("::1",)


def test_renewing_checks_a_further_host(tmp_path: Path):
    init(tmp_path / "hub")
    renewed = init(tmp_path / "hub", "--renew", "--host", "x.org:1")
    assert refusal(renewed).startswith("--host: found 'x.org:1'")
    assert State.open(tmp_path / "hub").settings.hosts == ("localhost",)


@pytest.mark.parametrize("part", [[], ["--part", "superlink"]])
def test_a_taken_port_is_one_sentence_before_anything_starts(
    tmp_path: Path, part: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ports, "PATIENCE_S", 0.0)
    init(tmp_path / "hub", "--inner-port", str(free_port()), "--port", str(free_port()))
    state = State.open(tmp_path / "hub")
    with socket.create_server(("127.0.0.1", state.settings.inner_port)):
        result = CALL.invoke(app, ["start", *part, "--state", str(state.root)])
    assert refusal(result) == (
        f"{state.settings.inner}: found another program at it, expected a free port: stop that "
        f"one, or change inner_port in {state.settings_file}"
    )
    assert list(state.logs.iterdir()) == []


def test_no_process_of_the_coordinator_has_a_proxy(tmp_path: Path):
    init(tmp_path / "hub")
    for one in processes(State.open(tmp_path / "hub")):
        assert {name: one.environment[name] for name in NO_PROXIES} == NO_PROXIES


def test_the_commands_ask_the_superlink_without_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    init(tmp_path / "hub", "--inner-port", str(free_port()))
    with connect_proxy() as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("NO_PROXY", "")
        superlink = SuperLink(State.open(tmp_path / "hub"))
        with pytest.raises(SuperLinkUnavailable):
            superlink.runs()
        superlink.close()
    assert proxy.asked == []


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("x.org", "--coordinator: found 'x.org', expected HOST:PORT"),
        ("https://x.org:8443", "--coordinator: found 'https://x.org:8443', expected HOST:PORT"),
        ("x.org:99999", "--coordinator: found the port '99999', expected 1 to 65535"),
        ("x..org:1", "--coordinator: host: found 'x..org'"),
    ],
)
def test_a_site_is_not_made_for_an_address_that_is_none(tmp_path: Path, address: str, said: str):
    words = ["init", "--name", "north", "--modality", "ct", "--coordinator", address]
    result = CALL.invoke(site_app, [*words, "--ca", "ca.crt", "--folder", str(tmp_path / "north")])
    assert refusal(result).startswith(said)
    assert not (tmp_path / "north").exists()
