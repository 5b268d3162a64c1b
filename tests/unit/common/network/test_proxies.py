"""Which proxy leads where, by variables of every kind; and that inner programs have none."""

import os
from collections.abc import Mapping
from urllib.request import getproxies

import httpx
import pytest

from common.errors import SiteFailed
from common.network.proxies import NO_PROXIES, changed_environment, environment_to, proxy_to

HUB = "fed.example.org:8443"
PROXY = "http://10.1.1.1:3128"


def shown(address: str, environment: Mapping[str, str]) -> str | None:
    found = proxy_to(address, environment)
    return None if found is None else str(found)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        ({"HTTP_PROXY": PROXY}, None),
        ({"HTTPS_PROXY": PROXY}, f"{PROXY} (HTTPS_PROXY)"),
        ({"https_proxy": PROXY, "HTTPS_PROXY": "http://b:1"}, f"{PROXY} (https_proxy)"),
        ({"https_proxy": "", "HTTPS_PROXY": PROXY}, None),
        ({"ALL_PROXY": PROXY}, f"{PROXY} (ALL_PROXY)"),
        ({"all_proxy": "http://a:1", "HTTPS_PROXY": PROXY}, f"{PROXY} (HTTPS_PROXY)"),
        ({"HTTPS_PROXY": "proxy.org"}, "http://proxy.org:80 (HTTPS_PROXY)"),
        ({"HTTPS_PROXY": "http://me:secret@proxy.org:1"}, "http://proxy.org:1 (HTTPS_PROXY)"),
        ({"HTTPS_PROXY": "http://[2001:db8::1]:1"}, "http://[2001:db8::1]:1 (HTTPS_PROXY)"),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "other.org, example.org"}, None),
        ({"HTTPS_PROXY": PROXY, "no_proxy": ".example.org"}, None),
        ({"HTTPS_PROXY": PROXY, "no_proxy": "FED.example.org:8443"}, None),
        ({"HTTPS_PROXY": PROXY, "no_proxy": "fed.example.org:443"}, f"{PROXY} (HTTPS_PROXY)"),
        ({"HTTPS_PROXY": PROXY, "no_proxy": "ample.org,10.0.0.0/8,.,"}, f"{PROXY} (HTTPS_PROXY)"),
        # gRPC's own variables say nothing about a site's way, which is HTTP.
        ({"grpc_proxy": PROXY}, None),
    ],
)
def test_the_proxy_to_the_coordinator(environment: dict[str, str], found: str | None):
    assert shown(HUB, environment) == found


@pytest.mark.parametrize("address", ["10.2.3.4:1", "[2001:db8::5]:1", "10.9.9.9:1"])
def test_addresses_are_excepted_alone_and_by_network(address: str):
    exceptions = "10.2.0.0/16 2001:db8::/32,10.9.9.9"
    assert shown(address, {"HTTPS_PROXY": PROXY, "NO_PROXY": exceptions}) is None
    assert shown("10.3.0.1:1", {"HTTPS_PROXY": PROXY, "NO_PROXY": exceptions}) is not None


@pytest.mark.parametrize("address", ["localhost:8443", "127.0.0.1:8443", "[::1]:8443"])
def test_no_proxy_leads_to_this_machine_itself(address: str):
    assert shown(address, {"HTTPS_PROXY": PROXY, "ALL_PROXY": PROXY}) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("socks5://me:secret@p:1", r"^ALL_PROXY: found a proxy of the kind 'socks5', expected"),
        ("http://me:secret@:1", "without a usable host and port"),
        ("http://me:secret@p:99999", "can't be read"),
        ("http://me:secret@[::1", "can't be read"),
        ("http://me:secret@p q:1", "without a usable host and port"),
        ("http://p:0", "without a usable host and port"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_one_sentence_without_its_password(value: str, said: str):
    with pytest.raises(SiteFailed, match=said) as refused:
        proxy_to(HUB, {"ALL_PROXY": value})
    assert "secret" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("wild", ["http://p:1", "socks5://p:1", "nonsense", "http://[::1", ""])
def test_whatever_the_environment_says_inner_programs_have_no_proxy(wild: str):
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY", "NO_PROXY", "NO_GRPC_PROXY")
    hostile = dict.fromkeys([*names, *map(str.lower, names)], wild)
    with changed_environment(hostile), changed_environment(NO_PROXIES):
        assert {name for name, value in getproxies().items() if value} <= {"no"}
        assert not any(os.environ[name] for name in ("grpc_proxy", "http_proxy", "https_proxy"))
        with httpx.Client() as client:
            # What httpx read from the environment.
            assert client._mounts == {}  # pyright: ignore[reportPrivateUsage]


def test_a_program_that_talks_to_the_coordinator_has_its_proxy_and_no_other():
    wild = {"HTTP_PROXY": "http://a:1", "ALL_PROXY": "socks5://b:1", "HTTPS_PROXY": PROXY}
    way = environment_to(HUB, wild)
    with changed_environment(wild), changed_environment(way):
        assert getproxies() == {"https": PROXY}
    assert environment_to("localhost:8443", wild) == NO_PROXIES


def test_the_environment_is_as_it_was_afterwards():
    before = dict(os.environ)
    with changed_environment({**NO_PROXIES, "PATH": "nowhere"}):
        assert os.environ["NO_PROXY"] == "*"
    assert dict(os.environ) == before
