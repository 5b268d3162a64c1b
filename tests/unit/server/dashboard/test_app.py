"""The dashboard's page and data over HTTP, in one process, and in headless Chromium."""

import asyncio
import copy
import socket
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from common.errors import StateError
from server.dashboard.app import HOST, dashboard_app, dashboard_config
from tests.flow.chromium import browser, needs_chromium

HOSTILE = '<img src=x onerror="document.title=1">'
STAGE = {
    "name": "stain", "modality": "pathology", "sites": ["north", "south"], "phase": "done",
    "round": 2, "rounds": 2, "metric": "accuracy", "scores": {"accuracy": 0.5},
}  # fmt: skip
TIME = "2026-11-29T10:00:00+00:00"
STATUS: Mapping[str, Any] = {
    "address": "fed.example.org:8443", "process": 1, "superlink": True, "certificate_days": 824,
    "run": {
        "name": "first", "wanted": True, "at": "training plane (stage 2), round 2 of 2",
        "stages": [STAGE, {**STAGE, "name": "plane", "phase": "active", "round": 1, "scores": {}}],
        "awaited": {"south": f"working 12/40 {HOSTILE}"}, "ended": None, "traffic": [],
        "last_round": {"south": {"site": "south", "outlier": f"direction: {HOSTILE}"}},
        "progress": {
            "began": TIME, "last": TIME, "seconds_left": 4000.0,
            "stages": [{"began": TIME, "released": TIME}, {"began": TIME, "released": None}],
            "losses": [{"stage": 1, "round": 1, "losses": {"north": 1.25}}],
            "base": [0.25, None], "scores": [[0.5, None], None],
            "left_out": [{"time": TIME, "stage": 0, "site": "south", "text": "site south: NaN"}],
            "due": {
                "work": "train", "stage": 1, "round": 2, "since": TIME,
                "deadline": "2999-01-01T00:00:00+00:00", "quorum": 1, "answered": 1, "of": 2,
            },
        },
    },
    "runs": [{"name": "first", "state": "requested", "released": 1, "of": 2, "last": TIME}],
    "sites": [
        {
            "name": "north", "modality": "pathology", "online": True, "seen": TIME, "doing": "",
            "down": 2_500_000, "up": 1_000_000, "code": "same",
        },
        {
            "name": "south", "modality": "mr", "online": False, "seen": None,
            "doing": HOSTILE, "down": 0, "up": 0, "code": "other",
        },
    ],
}  # fmt: skip


def status(name: str | None) -> Mapping[str, Any]:
    if name == "damaged":
        raise IsADirectoryError(21, "Is a directory", "progress/coordinator.jsonl")
    if name not in (None, "first"):
        raise StateError(f"--run: found no run {name!r}")
    return STATUS


def asked(path: str, method: str = "GET", **headers: str) -> httpx.Response:
    """The answer to one request, without a network."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(dashboard_app(status))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(ask())


def test_the_page_and_its_data_are_read_and_never_written():
    assert asked("/status.json").json() == STATUS
    assert asked("/status.json?run=first").json()["run"]["name"] == "first"
    for path in ("/", "/page.css", "/page.js"):
        answer = asked(path)
        assert answer.status_code == 200
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert asked(path, "POST").status_code == 405
    assert asked("/status.json", "POST").status_code == 405


def test_an_unknown_run_is_one_sentence():
    answer = asked("/status.json?run=../x")
    assert answer.status_code == 404
    assert answer.json() == {"error": "--run: found no run '../x'"}


def test_a_file_that_can_not_be_read_is_one_sentence():
    answer = asked("/status.json?run=damaged")
    assert answer.status_code == 500
    said = "progress/coordinator.jsonl: can't be read (Is a directory)"
    assert answer.json() == {"error": said}


def test_another_hosts_page_can_not_read_it_by_a_name_that_leads_here():
    assert asked("/status.json", host="evil.example.org").status_code == 400


def test_the_page_puts_nothing_on_itself_but_text():
    script = (Path(dashboard_app.__code__.co_filename).parent / "page/page.js").read_text()
    assert "innerHTML" not in script and "insertAdjacentHTML" not in script


@contextmanager
def served(found: Mapping[str, Any]) -> Generator[str]:
    """The address of a dashboard of this status."""
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        server = uvicorn.Server(dashboard_config(dashboard_app(lambda _: found), port))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://{HOST}:{port}/"
        finally:
            server.should_exit = True
            thread.join()


@needs_chromium
def test_a_person_sees_the_run_and_what_sites_say_is_only_text(tmp_path: Path):
    with served(STATUS) as url, browser(tmp_path / "profile", url) as page:
        page.wait_for("document.querySelectorAll('#sites tbody tr').length === 2")
        text = page.run("document.body.innerText")
        for said in (
            "first: running", "about 67 min", "1 of 2", "824 days left", "1.00 MB", "1.250",
            "another version", "1 of 2 are there; waiting for south: working 12/40",
            "then 1 of 2 are enough", "site south: NaN", "50.0", "25.0",
        ):  # fmt: skip
            assert said in text, said
        assert HOSTILE in text
        assert page.run("document.querySelectorAll('img').length") == 0
        assert page.run("document.title") == "fedmslora coordinator"
        # On a phone nothing is wider than the screen but tables, which scroll by themselves.
        assert page.run("document.documentElement.scrollWidth <= innerWidth")


@needs_chromium
def test_a_coordinator_without_a_run_says_what_to_do(tmp_path: Path):
    found: dict[str, Any] = {**copy.deepcopy(dict(STATUS)), "run": None, "runs": [], "sites": []}
    with served(found) as url, browser(tmp_path / "profile", url) as page:
        page.wait_for("document.getElementById('state').textContent === 'No run yet'")
        assert "fedmslora coordinator enroll" in page.run("document.body.innerText")
