"""A coordinator is made, and sites are enrolled and revoked."""

import socket
import subprocess
import tomllib
from pathlib import Path

import pytest

from commands.coordinator import app
from commands.site import app as site_app
from common.errors import StateError
from common.network import ports
from common.plan.file import load_plan
from server.coordinator.registry import enrolled
from server.coordinator.state import State
from tests.unit.commands.coordinator_calls import CALL, public_key, refusal, said


def test_init_makes_a_whole_coordinator_and_says_what_is_next(tmp_path: Path):
    folder = tmp_path / "new"
    words = ["init", "--host", "fed.example.org", "--port", "9443", "--state", str(folder)]
    result = CALL.invoke(app, words)
    assert result.exit_code == 0
    for step in ("coordinator start", "site init", "coordinator enroll", "coordinator run", "9443"):
        assert step in result.output
    state = State.open(folder)
    # As openssl says it, whom the other side may use.
    words = ["openssl", "x509", "-in", str(state.ca), "-noout", "-fingerprint", "-sha256"]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert said.strip().split("=")[1] in result.output
    assert state.settings.address == "fed.example.org:9443"
    assert folder.stat().st_mode & 0o777 == 0o700
    for secret in (state.secret, state.key, state.tls / "ca.key"):
        assert secret.stat().st_mode & 0o777 == 0o600
    assert load_plan(state.plans / "first.yaml").name == "first"


def test_init_overwrites_nothing(state: State):
    before = state.ca.read_bytes()
    assert "found a coordinator, expected a new or an empty folder" in refusal(state, "init")
    assert state.ca.read_bytes() == before


def test_init_on_a_full_disk_leaves_nothing_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(file: Path, blob: bytes, mode: int = 0o600) -> None:
        raise OSError(28, "No space left on device", str(file))

    folder = tmp_path / "new folder"
    with monkeypatch.context() as patch:
        patch.setattr("server.coordinator.init.write_new_file", full)
        failed = CALL.invoke(app, ["init", "--state", str(folder)])
    assert isinstance(failed.exception, OSError)
    assert not list(folder.iterdir())
    made = CALL.invoke(app, ["init", "--state", str(folder)])
    assert made.exit_code == 0
    # What is to be typed can be typed.
    assert f"fedmslora coordinator start --state '{folder}'" in made.output


def test_one_port_for_both_sides_is_refused(tmp_path: Path):
    folder = tmp_path / "new"
    words = ["init", "--port", "9000", "--inner-port", "9000", "--state", str(folder)]
    result = CALL.invoke(app, words)
    assert isinstance(result.exception, StateError)
    assert str(result.exception) == (
        "--inner-port: found 9000, which is also --port on this machine, expected another one"
    )
    assert not folder.exists()


def test_a_folder_may_have_any_name_of_text(tmp_path: Path):
    odd, bad = tmp_path / 'a "b"\n\\é', tmp_path / "\udcff"
    assert CALL.invoke(app, ["init", "--state", str(odd)]).exit_code == 0
    flower = tomllib.loads((odd / "flower" / "config.toml").read_text(encoding="utf-8"))
    link = flower["superlink"]["fedmslora"]
    assert link["root-certificates"] == str(odd / "tls" / "ca.crt")
    told = CALL.invoke(app, ["init", "--state", str(bad)]).exception
    assert isinstance(told, StateError)
    assert str(told) == f"--state: found {str(bad)!r}, expected a name in UTF-8"
    assert not bad.exists()


def test_renewing_keeps_the_authority_and_adds_a_name(state: State):
    authority, server = state.ca.read_bytes(), (state.tls / "server.crt").read_bytes()
    assert "other.example.org" in said(state, "init", "--renew", "--host", "other.example.org")
    assert state.ca.read_bytes() == authority
    assert (state.tls / "server.crt").read_bytes() != server
    assert state.settings.hosts == ("localhost", "other.example.org")


@pytest.mark.parametrize(
    ("words", "said_of"),
    [
        (("init", "--renew", "--port", "8443"), "--renew: found --port"),
        (("init", "--renew", "--inner-host", "x"), "--renew: found --inner-host"),
        (("start", "--part", "edge", "--dashboard"), "--part: found --dashboard"),
        (("enroll", "--leave", "north", "--name", "south"), "--leave: found --name"),
        (("enroll", "--leave", "north", "south.pub"), "--leave: found SITE.pub"),
        (("status", "--json", "--watch"), "--json: found --watch"),
    ],
)
def test_options_of_which_one_would_be_ignored_are_refused(
    sites: State, words: tuple[str, ...], said_of: str
):
    before = (sites.settings_file.read_bytes(), list(enrolled(sites.registry)))
    assert refusal(sites, *words) == f"{said_of} beside it, expected one of them"
    assert (sites.settings_file.read_bytes(), list(enrolled(sites.registry))) == before


def test_a_taken_port_of_the_dashboard_is_said_before_anything_starts(
    state: State, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ports, "PATIENCE_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = refusal(state, "start", "--dashboard", "--dashboard-port", str(port))
    assert told.startswith(f"127.0.0.1:{port}: found another program at it")
    assert told.endswith("change --dashboard-port")


def test_every_command_names_a_folder_without_a_coordinator(tmp_path: Path):
    for words in (["start"], ["run", "x"], ["status"], ["stop"], ["enroll", "--leave", "x"]):
        result = CALL.invoke(app, [*words, "--state", str(tmp_path / "none")])
        assert isinstance(result.exception, StateError)
        assert "found no coordinator" in str(result.exception)


def test_a_site_is_enrolled_and_told_what_to_give_it(state: State, tmp_path: Path):
    key = public_key(tmp_path / "north.pub")
    words = ("enroll", key, "--name", "north", "--modality", "ct")
    output = said(state, *words)
    assert "north is enrolled. This takes effect at the next start." in output
    # Somebody made this key by other means, so the site may not have ca.crt.
    assert str(state.ca) in output
    assert "north was already enrolled" in said(state, *words)


def test_a_site_that_has_the_certificate_is_not_given_it_again(state: State, tmp_path: Path):
    site = tmp_path / "site"
    options = ["--name", "north", "--modality", "ct", "--coordinator", "localhost:8443"]
    words = ["init", *options, "--ca", str(state.ca), "--folder", str(site)]
    assert CALL.invoke(site_app, words).exit_code == 0
    output = said(
        state, "enroll", str(site / "keys" / "north.pub"), "--name", "north", "--modality", "ct"
    )
    assert "ca.crt" not in output
    assert "Next: the site runs fedmslora site check" in output


@pytest.mark.parametrize("words", [("revoke", "north"), ("enroll", "--leave", "north")])
def test_a_site_is_revoked(sites: State, words: tuple[str, ...]):
    assert "north is removed; its key can't be enrolled again" in said(sites, *words)
    assert list(enrolled(sites.registry)) == ["south"]
    assert "found no such site 'north', expected one of: south" in refusal(sites, "revoke", "north")


@pytest.mark.parametrize(
    ("words", "mistake"),
    [
        (("--name", "north"), "found no --modality, expected"),
        (("--name", "North!", "--modality", "ct"), "--name: found 'North!'"),
        (("--name", "north", "--modality", "xry"), "--modality: found 'xry', expected one of"),
        (("--name", "_n", "--modality", "ct"), "--name: found '_n', expected at most 40 small let"),
    ],
)
def test_a_wrong_enrolment_is_one_sentence(
    state: State, tmp_path: Path, words: tuple[str, ...], mistake: str
):
    assert mistake in refusal(state, "enroll", public_key(tmp_path / "north.pub"), *words)
    assert not state.registry.exists()
