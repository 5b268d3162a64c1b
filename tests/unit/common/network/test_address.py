"""Host names, addresses and ports as people type them."""

import socket

import pytest

from common.errors import StateError
from common.network import ports
from common.network.address import (
    address_fault,
    bind_fault,
    host_fault,
    joined_address,
    split_address,
)
from common.network.ports import NeededPort, check_free


@pytest.mark.parametrize(
    "host",
    [
        "fed.example.org",
        "localhost",
        "a",
        "superlink_1",
        "10.0.0.1",
        "::1",
        "[2001:db8::1]",
        "fe80::1%eth0",
    ],
)
def test_names_and_addresses_of_machines(host: str):
    assert host_fault(host) is None


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("x.org:8443", "with a port, expected a name or address such as fed.example.org alone"),
        ("https://x.org", "with a scheme, expected"),
        ("x.org/path", "and nothing beside it"),
        ("me@x.org", "and nothing beside it"),
        ("klinik-süd.de", "xn--"),
        ("300.1.1.1", "expected a name"),
        ("10.0.0", "expected a name"),
        ("-a.org", "expected a name"),
        ("a..org", "expected a name"),
        ("x.org.", "expected a name"),
        ("", "expected a name"),
        ("::1%a\nb", "expected a name"),
        ("::1%", "expected a name"),
        ("[fe80::1%\x01]", "expected a name"),
        ("10.0.0.1%eth0", "expected a name"),
        ("two words", "expected a name"),
        ("a" * 64, "expected a name"),
        ("0.0.0.0", "no machine's address"),
        ("::", "no machine's address"),
        ("224.0.0.1", "no machine's address"),
    ],
)
def test_what_is_no_host_is_said(host: str, said: str):
    fault = host_fault(host)
    assert fault is not None and said in fault and "\n" not in fault


@pytest.mark.parametrize("host", ["fed.example.org", "10.0.0.1", "2001:db8::1"])
def test_an_address_is_joined_and_split(host: str):
    joined = joined_address(host, 8443)
    assert address_fault(joined) is None
    assert split_address(joined) == (host, 8443)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("x.org", "expected HOST:PORT"),
        ("https://x.org:8443", "expected HOST:PORT"),
        ("::1:8443", "expected HOST:PORT"),
        ("x.org:", "the port ''"),
        ("x.org:0", "the port '0'"),
        ("x.org:65536", "the port '65536'"),
        ("x.org:٣", "the port"),
        ("x.org:8_443", "the port '8_443'"),
        ("x.org:0000019999999", "the port '0000019999999'"),
        ("x.org:8443:8443", "expected HOST:PORT"),
        ("a b:1", "host: found 'a b'"),
        (":8443", "expected HOST:PORT"),
    ],
)
def test_what_is_no_address_is_said(address: str, said: str):
    fault = address_fault(address)
    assert fault is not None and said in fault


def test_a_taken_port_is_one_sentence_and_a_free_one_is_left_free(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(ports, "PATIENCE_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        needed = NeededPort("127.0.0.1", taken.getsockname()[1], "--runtime-port")
        with pytest.raises(StateError) as refused:
            check_free([needed])
    assert str(refused.value) == (
        f"127.0.0.1:{needed.port}: found another program at it, expected a free port: stop that "
        "one, or change --runtime-port"
    )
    check_free([needed])
    check_free([needed])


def test_an_address_of_another_machine_is_refused_at_once():
    with pytest.raises(StateError, match=r"^203\.0\.113\.7:1: .* expected an address of this"):
        check_free([NeededPort("203.0.113.7", 1, "bind")])


def test_a_name_of_ipv6_alone_can_be_listened_at(monkeypatch: pytest.MonkeyPatch):
    resolve = socket.getaddrinfo

    def only_v6(host: str, *others: object, **more: object):
        return resolve("::1" if host == "six.example" else host, *others, **more)  # pyright: ignore

    monkeypatch.setattr(socket, "getaddrinfo", only_v6)
    families: list[int] = []

    def create_server(address: tuple[str, int], family: int) -> socket.socket:
        families.append(family)
        return socket.socket()

    monkeypatch.setattr(socket, "create_server", create_server)
    check_free([NeededPort("six.example", 1, "--port"), NeededPort("127.0.0.1", 1, "--port")])
    assert families == [socket.AF_INET6, socket.AF_INET]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "127.0.0.1", "fed.example.org"])
def test_a_server_can_listen_on_all_addresses_of_its_machine(host: str):
    assert bind_fault(host) is None


@pytest.mark.parametrize("host", ["", "a b", "0.0.0", "224.0.0.1", "0.0.0.0:80"])
def test_a_server_can_listen_on_nothing_else_that_is_no_machines_address(host: str):
    assert bind_fault(host) is not None
