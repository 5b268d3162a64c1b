"""`fedmslora coordinator` from the command line, without a process of Flower's."""

import json
import os
import socket
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner

from commands import coordinator_status
from commands.coordinator import app
from commands.site import app as site_app
from common.errors import PlanError, Refusal, StateError
from common.network import ports
from common.plan.file import load_plan
from common.process.progress import write_event
from server.coordinator.init import init_coordinator
from server.coordinator.processes import ProcessName, command, environment
from server.coordinator.registry import enrolled
from server.coordinator.state import CoordinatorSettings, RequestedRun, State
from server.coordinator.superlink import SuperLink
from server.dashboard.status_document import read_status
from simulation.chaos.loopback import free_port

CALL = CliRunner()


@pytest.fixture
def state(tmp_path: Path) -> State:
    settings = CoordinatorSettings(
        hosts=("localhost",),
        port=free_port(),
        bind="127.0.0.1",
        inner_host="127.0.0.1",
        inner_port=free_port(),
        wait_s=60.0,
        slack_s=600.0,
    )
    return init_coordinator(tmp_path / "coordinator", settings)


def called(state: State, *words: str) -> Result:
    return CALL.invoke(app, [*words, "--state", str(state.root)])


def said(state: State, *words: str) -> str:
    result = called(state, *words)
    assert result.exit_code == 0, result.exception
    return result.output


def refusal(state: State, *words: str) -> str:
    result = called(state, *words)
    assert isinstance(result.exception, Refusal), result.output
    return str(result.exception)


def public_key(file: Path) -> str:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    file.write_bytes(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return str(file)


@pytest.fixture
def sites(state: State, tmp_path: Path) -> State:
    for name in ("north", "south"):
        key = public_key(tmp_path / f"{name}.pub")
        said(state, "enroll", key, "--name", name, "--modality", "pathology")
    return state


def first(state: State) -> str:
    return str(state.plans / "first.yaml")


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


def test_a_new_run_does_not_wait_for_a_removed_site(sites: State):
    assert "north is removed" in said(sites, "enroll", "--leave", "north")
    assert "found the sites north that are not enrolled" in refusal(sites, "run", first(sites))


@pytest.mark.parametrize(
    ("days", "told"),
    [(30, ""), (29, "expires in 29 days: "), (1, "expires in 1 day: "), (-1, "has expired: ")],
)
def test_status_warns_of_a_certificate_in_its_last_month(
    state: State, monkeypatch: pytest.MonkeyPatch, days: int, told: str
):
    def left(_certificate: Path) -> int:
        return days

    monkeypatch.setattr(coordinator_status, "days_left", left)
    warned = f"The certificate {told}fedmslora coordinator init --renew" in said(state, "status")
    assert warned == bool(told)


def test_a_run_that_has_begun_continues_without_a_removed_site(sites: State):
    said(sites, "run", first(sites), "--detach")
    assert "north is removed" in said(sites, "revoke", "north")
    said(sites, "stop")
    assert "first: queued" in said(sites, "run", first(sites), "--detach")


def test_a_plan_with_unknown_sites_is_refused(state: State):
    told = refusal(state, "run", first(state))
    assert "found the sites north, south that are not enrolled" in told
    assert state.requested is None
    assert not state.run("first").root.exists()


def test_a_wrong_plan_is_refused(state: State, tmp_path: Path):
    (tmp_path / "plan.yaml").write_text("name: x", encoding="utf-8")
    result = called(state, "run", str(tmp_path / "plan.yaml"))
    assert isinstance(result.exception, PlanError)


def test_a_run_is_prepared_and_queued(sites: State):
    assert "first: queued" in said(sites, "run", first(sites), "--detach")
    folder = sites.run("first")
    assert load_plan(folder.plan).digest == load_plan(Path(first(sites))).digest
    assert folder.key.read_bytes() == sites.key.read_bytes()
    assert folder.key.stat().st_mode & 0o777 == 0o600
    assert sites.requested == RequestedRun(run="first", since=0)


def test_another_plan_under_the_name_of_a_run_is_refused_by_its_fields(sites: State):
    said(sites, "run", first(sites), "--detach")
    plan = Path(first(sites))
    plan.write_text(plan.read_text(encoding="utf-8").replace("seed: 7", "seed: 8"), "utf-8")
    assert "another plan: found changed seed" in refusal(sites, "run", first(sites))


def test_a_second_run_waits_for_nobody(sites: State):
    said(sites, "run", first(sites), "--detach")
    plan = Path(first(sites))
    plan.write_text(plan.read_text(encoding="utf-8").replace("name: first", "name: next"), "utf-8")
    assert "found another run, 'first', that has not ended" in refusal(sites, "run", first(sites))


def ended(state: State, monkeypatch: pytest.MonkeyPatch, **news: Any) -> Result:
    """`run`, where the run tells this as soon as it is followed."""

    def soon(self: object) -> list[object]:
        write_event(state.run("first").progress, "coordinator", news)
        return []

    monkeypatch.setattr("server.coordinator.superlink.SuperLink.runs", soon)
    return called(state, "run", first(state))


def test_run_into_a_file_says_what_it_waits_for(sites: State, monkeypatch: pytest.MonkeyPatch):
    progress = sites.run("first").progress
    waiting = {"event": "waiting", "stage": 0, "round": 1, "for": {"north": "asked"}}
    news = iter([waiting, {**waiting, "for": {}}, {"event": "done", "seconds": 1.0}])

    def pause(_seconds: float) -> None:
        if event := next(news, None):
            write_event(progress, "coordinator", event)

    monkeypatch.setattr("server.coordinator.superlink.SuperLink.runs", lambda _self: [])  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    monkeypatch.setattr("commands.coordinator_follow.time.sleep", pause)
    clock = iter(range(0, 10**6, 20))
    monkeypatch.setattr("commands.coordinator_follow.time.monotonic", lambda: next(clock))
    result = called(sites, "run", first(sites))
    assert result.exit_code == 0, result.exception
    lines = [line.split("UTC  ")[-1] for line in result.output.splitlines()]
    assert lines[:2] == [
        "waiting for the keeper to start the run",
        "training stain (stage 1), round 1 of 3; waiting for north (asked)",
    ]


def test_run_uses_no_dead_proxy_and_says_in_a_sentence_what_it_waits_for(
    sites: State, monkeypatch: pytest.MonkeyPatch
):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")

    def pause(_seconds: float) -> None:
        write_event(sites.run("first").progress, "coordinator", {"event": "done", "seconds": 1.0})

    monkeypatch.setattr("commands.coordinator_follow.time.sleep", pause)
    result = called(sites, "run", first(sites))
    assert result.exit_code == 0, result.exception
    sentence = (
        f"waiting for the SuperLink: the SuperLink at {sites.settings.inner} does not answer "
        "(ConnectError); is `fedmslora coordinator start` running?"
    )
    assert result.output.count(sentence) == 1 and "127.0.0.1:1 " not in result.output


def test_run_says_where_the_report_is(sites: State, monkeypatch: pytest.MonkeyPatch):
    result = ended(sites, monkeypatch, event="done", seconds=61.0)
    assert result.exit_code == 0, result.exception
    assert "done in 1 min 1 s" in result.output
    assert str(sites.run("first").root / "report.html") in result.output


def test_run_fails_with_the_sentence_of_the_failure(sites: State, monkeypatch: pytest.MonkeyPatch):
    result = ended(sites, monkeypatch, event="failed", text="north: found x, expected y")
    assert isinstance(result.exception, StateError)
    assert str(result.exception) == "north: found x, expected y"


def test_ctrl_c_stops_watching_and_not_the_run(sites: State, monkeypatch: pytest.MonkeyPatch):
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    result = called(sites, "run", first(sites))
    assert result.exit_code == 130
    assert "first is still running" in result.output
    assert sites.requested is not None
    assert not sites.requested.stop


def test_stop_is_remembered_while_the_superlink_is_away(sites: State):
    assert "No run is in progress." in said(sites, "stop")
    said(sites, "run", first(sites), "--detach")
    assert "will stop as soon as" in said(sites, "stop")
    assert sites.requested == RequestedRun(run="first", since=0, stop=True)
    # Requested again before the keeper came to it.
    said(sites, "run", first(sites), "--detach")
    assert sites.requested == RequestedRun(run="first", since=0)


def test_stop_all_says_that_nothing_runs(state: State):
    assert "The coordinator is not running." in said(state, "stop", "--all")


def test_the_status_of_a_run_in_its_first_round(sites: State):
    said(sites, "run", first(sites), "--detach")
    progress = sites.run("first").progress
    for news in (
        {"event": "meeting"},
        {"event": "stage", "stage": 0},
        {"event": "round", "stage": 0, "round": 1, "losses": {"north": 1.0}},
        {
            "event": "waiting",
            "stage": 0,
            "round": 2,
            "for": {"north": "working 12/40", "south": "offline"},
        },
    ):
        write_event(progress, "coordinator", news)
    document = json.loads(said(sites, "status", "--json"))
    run = document["run"]
    assert run["stages"][0]["phase"] == "active"
    assert (run["stages"][0]["round"], run["stages"][0]["rounds"]) == (1, 3)
    assert run["awaited"] == {"north": "working 12/40", "south": "offline"}
    assert [site["doing"] for site in document["sites"]] == ["working 12/40", "offline"]
    assert document["sites"][0]["online"] is None
    assert (document["superlink"], document["process"]) == (False, None)
    assert document["certificate_days"] == 824
    assert run["progress"]["losses"] == [{"stage": 0, "round": 1, "losses": {"north": 1.0}}]
    assert run["progress"]["due"]["round"] == 2
    assert [one["name"] for one in document["runs"]] == ["first"]
    assert [site["code"] for site in document["sites"]] == [None, None]
    shown = said(sites, "status")
    assert "training stain (stage 1), round 2 of 3" in shown
    assert "north: working 12/40" in shown


def test_the_headline_is_the_round_that_trains_and_not_the_scoring_before_it(sites: State):
    said(sites, "run", first(sites), "--detach")
    for news in (
        {"event": "stage", "stage": 0},
        {"event": "scoring", "stage": None, "task": 0},
        {"event": "waiting", "stage": 0, "round": 0, "for": {"north": "asked"}},
        {"event": "base", "task": 0, "score": 0.5},
        {"event": "waiting", "stage": 0, "round": 1, "for": {"north": "asked"}},
    ):
        write_event(sites.run("first").progress, "coordinator", news)
    run = json.loads(said(sites, "status", "--json"))["run"]
    assert run["at"] == "training stain (stage 1), round 1 of 3"


def test_the_status_of_a_failed_run_says_why(sites: State):
    said(sites, "run", first(sites), "--detach")
    news = {"event": "failed", "text": "the reason"}
    write_event(sites.run("first").progress, "coordinator", news)
    assert "run first: the reason" in said(sites, "status")
    assert "found no run 'other'" in refusal(sites, "status", "--run", "other")


def test_a_run_is_named_and_no_path_elsewhere(sites: State):
    said(sites, "run", first(sites), "--detach")
    elsewhere = sites.root / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "plan.json").write_bytes(sites.run("first").plan.read_bytes())
    assert "found no run '../elsewhere'" in refusal(sites, "status", "--run", "../elsewhere")


def test_watched_into_a_file_the_status_is_lines_and_ends_with_the_run(
    sites: State, monkeypatch: pytest.MonkeyPatch
):
    said(sites, "run", first(sites), "--detach")
    progress = sites.run("first").progress
    write_event(progress, "coordinator", {"event": "stage", "stage": 0})
    waiting = {"event": "waiting", "stage": 0, "round": 1, "for": {"north": "asked"}}
    news = iter([waiting, {"event": "done", "seconds": 1.0}])
    monkeypatch.setattr(
        "commands.coordinator_status.time.sleep",
        lambda _seconds: write_event(progress, "coordinator", next(news)),  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    )
    clock = iter(range(0, 10**6, 20))
    monkeypatch.setattr("commands.coordinator_status.time.monotonic", lambda: next(clock))
    lines = said(sites, "status", "--watch").splitlines()
    assert len(lines) == 3 and all("UTC  run first: " in line for line in lines)
    assert lines[0].endswith("stain (stage 1); 0 of 1 stage released; 0 of 2 sites online")
    assert lines[1].endswith("waiting for north (asked)")
    assert "run first: done" in lines[2]


def test_watched_on_a_terminal_the_status_is_read_once_a_time_and_ends_with_the_run(
    sites: State, monkeypatch: pytest.MonkeyPatch
):
    said(sites, "run", first(sites), "--detach")
    progress = sites.run("first").progress
    write_event(progress, "coordinator", {"event": "stage", "stage": 0})
    reads: list[str | None] = []

    def counted(opened: State, superlink: SuperLink, run_name: str | None) -> Any:
        reads.append(run_name)
        return read_status(opened, superlink, run_name)

    def ends(_seconds: float) -> None:
        write_event(progress, "coordinator", {"event": "done", "seconds": 1.0})

    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setattr("commands.coordinator_status.read_status", counted)
    monkeypatch.setattr("commands.coordinator_status.time.sleep", ends)
    shown = said(sites, "status", "--watch")
    assert len(reads) == 2
    assert shown.index("run first: stain") < shown.index("run first: done")


def test_the_status_of_a_new_coordinator(state: State):
    shown = said(state, "status")
    assert "no run yet" in shown
    assert "no site yet" in shown
    assert json.loads(said(state, "status", "--json"))["run"] is None


def test_an_unknown_part_is_refused(state: State):
    told = refusal(state, "start", "--part", "trainer")
    assert told == ("--part: found 'trainer', expected one of superlink, superexec, edge, keeper")


def test_a_part_replaces_this_process(state: State, monkeypatch: pytest.MonkeyPatch):
    became: list[tuple[str, list[str], dict[str, str]]] = []

    def execvpe(file: str, words: list[str], variables: dict[str, str]) -> None:
        became.append((file, words, variables))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execvpe", execvpe)
    assert called(state, "start", "--part", "superlink").exit_code == 0
    ((file, words, variables),) = became
    assert file.endswith("flower-superlink")
    assert words[0] == file
    assert variables["FLWR_HOME"] == str(state.flower)


def test_the_superlink_is_closed_to_all_but_its_own(state: State):
    words = list(command(ProcessName.SUPERLINK, state))
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--isolation") + 1] == "process"
    assert words[words.index("--superexec-auth-secret-file") + 1] == str(state.secret)
    assert "--enable-supernode-auth" in words
    assert "--insecure" not in words


def test_among_containers_the_superlink_listens_to_its_network(tmp_path: Path):
    settings = CoordinatorSettings(
        hosts=("fed.example.org",),
        port=8443,
        bind="0.0.0.0",
        inner_host="superlink",
        inner_port=8000,
        wait_s=60.0,
        slack_s=600.0,
    )
    state = init_coordinator(tmp_path / "state", settings)
    words = list(command(ProcessName.SUPERLINK, state))
    assert words[words.index("--host") + 1] == "0.0.0.0"
    assert "superlink:8000" in command(ProcessName.SUPEREXEC, state)


def test_no_part_asks_the_world(state: State):
    variables = environment(state)
    assert variables["FLWR_TELEMETRY_ENABLED"] == "0"
    assert variables["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert variables["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert variables["HF_HUB_OFFLINE"] == "1"


def test_a_damaged_file_is_named(state: State):
    state.settings_file.write_text("{", encoding="utf-8")
    assert "coordinator.json: can't be read" in refusal(state, "start")
