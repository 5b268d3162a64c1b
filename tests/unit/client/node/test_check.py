"""What a check of a site finds: each refusal by its name, against a real TLS server."""

import json
import ssl
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from client.node import check, start
from client.node.connectivity import Clocks, check_connection, clock_finding
from client.node.processes import Machine
from client.site.config import Device, Federation, Plans, Policy, Site
from client.site.finding import Finding, Level, ok, problem
from client.site.keys import make_key
from common.errors import SiteFailed
from common.identity import sha256
from common.methods.primed import Primed
from common.plan.file import load_plan
from common.plan.reference_list import ListedPair, ListedStage, ReferenceList
from common.plan_fields import Modality, ReferencePin
from server.coordinator.certificates import load_authority, write_certificates
from tests.unit.dicom_files import dicom

ROOT = Path(__file__).resolve().parents[4]


class Coordinator(ThreadingHTTPServer):
    """Answers every question as an edge does that lets nothing through."""

    clock_s: float = 0.0
    date: str | None = None
    status: int = 403
    body: bytes = b""


class Refuse(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(403, b"")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(self._coordinator.status, self._coordinator.body)

    def date_time_string(self, timestamp: float | None = None) -> str:
        now = formatdate(time.time() + self._coordinator.clock_s, usegmt=True)
        return self._coordinator.date or now

    def log_message(self, format: str, *args: object) -> None:
        pass

    @property
    def _coordinator(self) -> Coordinator:
        assert isinstance(self.server, Coordinator)
        return self.server

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(tls: Path) -> Generator[Coordinator]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "server.crt", tls / "server.key")
    server = Coordinator(("127.0.0.1", 0), Refuse)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    write_certificates(tmp_path / "tls", ["127.0.0.1"])
    return tmp_path / "tls"


@pytest.fixture
def coordinator(tls: Path) -> Generator[Coordinator]:
    with serving(tls) as server:
        yield server


@pytest.fixture
def federation(tls: Path, coordinator: Coordinator, tmp_path: Path) -> Federation:
    make_key(tmp_path / "north", "north")
    return Federation(
        address=f"127.0.0.1:{coordinator.server_port}",
        ca=tls / "ca.crt",
        key=tmp_path / "north",
        approved=tmp_path / "approved",
    )


@pytest.fixture
def site(federation: Federation, tmp_path: Path) -> Site:
    return Site(
        name="north",
        data=tmp_path / "data",
        base_model=ROOT / "simulation" / "base_model",
        store=tmp_path / "store",
        device=Device.CPU,
        threads=1,
        policy=Policy(modalities=tuple(Modality), plans=Plans.APPROVED, rounds=None, examples=1),
        federation=federation,
    )


def only(findings: list[Finding]) -> Finding:
    (found,) = findings
    return found


def test_a_coordinator_that_refuses_everything_is_reached_and_its_clock_agrees(
    federation: Federation,
):
    trusted, clock = check_connection(federation)
    assert (trusted.name, trusted.level) == ("certificate", Level.OK)
    assert (clock.name, clock.level) == ("clock", Level.OK)


@pytest.mark.parametrize(
    ("coordinators_s", "level"),
    [
        (-10.0, Level.PROBLEM),
        (-3.5, Level.WARNING),
        (0.0, Level.OK),
        (60.0, Level.WARNING),
        (400.0, Level.PROBLEM),
    ],
)
def test_a_clock_ten_seconds_ahead_is_refused_and_one_three_ahead_warned_of(
    federation: Federation, coordinator: Coordinator, coordinators_s: float, level: Level
):
    coordinator.clock_s = coordinators_s
    _, clock = check_connection(federation)
    assert clock.level is level, clock
    if level is Level.PROBLEM:
        assert "NTP" in clock.text


@pytest.mark.parametrize("late_s", [0.0, 0.999, 1.999])
def test_a_date_may_stand_for_any_moment_of_two_seconds(late_s: float):
    # The coordinator's clock shows 100 + late_s, the site's is 6 s ahead: Flower refuses it.
    site = 100 + late_s + 6
    found = clock_finding(Clocks(asked=site, coordinator=100.0, answered=site))
    assert found.level is Level.PROBLEM
    site = 100 + late_s + 0.5
    found = clock_finding(Clocks(asked=site, coordinator=100.0, answered=site))
    assert found.level is Level.OK


def test_half_the_way_there_and_back_is_taken_off():
    assert Clocks(asked=100.0, coordinator=101.0, answered=104.0).ahead_s == 0.0


def test_an_answer_without_a_date_is_a_warning():
    assert clock_finding(None).level is Level.WARNING


@pytest.mark.parametrize(
    "date",
    [
        "yesterday",
        "Mon, 01 Jan 99999999999999 00:00:00 GMT",
        "Mon, 01 Jan 2026 00:00:00 +99999999999999",
    ],
)
def test_a_date_that_is_none_is_a_warning(
    federation: Federation, coordinator: Coordinator, date: str
):
    coordinator.date = date
    trusted, clock = check_connection(federation)
    assert (trusted.level, clock.level) == (Level.OK, Level.WARNING)
    assert clock.text == "the coordinator's answer has no Date"


def test_a_certificate_of_another_authority_is_refused(federation: Federation, tmp_path: Path):
    write_certificates(tmp_path / "other", ["127.0.0.1"])
    other = federation.model_copy(update={"ca": tmp_path / "other" / "ca.crt"})
    found = only(check_connection(other))
    assert (found.name, found.level) == ("certificate", Level.PROBLEM)
    assert "has not signed" in found.text


def test_a_certificate_for_another_host_name_is_refused(tmp_path: Path, federation: Federation):
    write_certificates(tmp_path / "elsewhere", ["hub.example.org"])
    with serving(tmp_path / "elsewhere") as server:
        changes = {
            "address": f"127.0.0.1:{server.server_port}",
            "ca": tmp_path / "elsewhere" / "ca.crt",
        }
        found = only(check_connection(federation.model_copy(update=changes)))
    assert (found.name, found.level) == ("certificate", Level.PROBLEM)
    assert "for another host name" in found.text


@pytest.mark.parametrize(
    ("begins", "ends", "words"), [(-3, -1, "an expired certificate"), (1, 3, "not valid yet")]
)
def test_a_certificate_outside_of_its_time_is_refused(
    tls: Path, federation: Federation, begins: int, ends: int, words: str
):
    reissue(tls, begins, ends)
    with serving(tls) as server:
        address = {"address": f"127.0.0.1:{server.server_port}"}
        found = only(check_connection(federation.model_copy(update=address)))
    assert (found.name, found.level) == ("certificate", Level.PROBLEM)
    assert words in found.text


def reissue(tls: Path, begins: int, ends: int) -> None:
    """The server's certificate holds from and to so many days from now."""
    authority = load_authority(tls)
    old = x509.load_pem_x509_certificate((tls / "server.crt").read_bytes())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=begins))
        .not_valid_after(now + timedelta(days=ends))
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    new = builder.sign(authority.key, hashes.SHA256())
    (tls / "server.crt").write_bytes(new.public_bytes(Encoding.PEM))


def test_a_coordinator_that_does_not_answer_is_away_not_wrong(federation: Federation):
    nobody = federation.model_copy(update={"address": "127.0.0.1:1"})
    assert only(check_connection(nobody)).level is Level.AWAY


def test_a_server_without_tls_is_named(federation: Federation):
    server = Coordinator(("127.0.0.1", 0), Refuse)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        address = {"address": f"127.0.0.1:{server.server_port}"}
        found = only(check_connection(federation.model_copy(update=address)))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert found.level is Level.PROBLEM
    assert "no TLS" in found.text


def test_a_certificate_file_that_is_none_is_named(federation: Federation, tmp_path: Path):
    for file in (tmp_path / "missing.crt", tmp_path / "empty.crt"):
        found = only(check_connection(federation.model_copy(update={"ca": file})))
        assert found.level is Level.PROBLEM
        assert file.name in found.text
        (tmp_path / "empty.crt").touch()


# What a real SuperLink says is in tests/federated/test_site.py.
@pytest.mark.parametrize(
    ("status", "body", "level", "words"),
    [
        (412, b'{"code": 2004, "detail": "x"}', Level.UNKNOWN, "does not know this site's key"),
        (400, b'{"code": 2003, "detail": "x"}', Level.OK, "knows this site's key"),
        (401, b'{"detail": "x"}', Level.PROBLEM, "refuses what this key signs"),
        (502, b"", Level.AWAY, "SuperLink is down"),
        (404, b"", Level.PROBLEM, "is it a coordinator?"),
    ],
)
def test_what_the_coordinator_says_of_the_key_is_put_into_words(
    federation: Federation,
    coordinator: Coordinator,
    status: int,
    body: bytes,
    level: Level,
    words: str,
):
    coordinator.status, coordinator.body = status, body
    found = check.quick_checks(federation)[-1]
    assert (found.name, found.level) == ("key", level)
    assert words in found.text


def test_a_key_that_others_may_read_fails_the_check(federation: Federation):
    federation.key.chmod(0o644)
    found = check.quick_checks(federation)
    assert [f.name for f in found if f.level is Level.PROBLEM] == ["key file"]
    assert "chmod 600" in found[0].text


def test_a_site_without_data_or_approval_gets_the_whole_list(site: Site):
    plan = load_plan(ROOT / "configs" / "demo.yaml")
    found = {finding.name: finding for finding in check.check_site(site, plan)}
    assert found["plan"].level is Level.PROBLEM
    assert "fedmslora site approve" in found["plan"].text
    assert found["base model"].level is Level.OK
    assert found["data stain"].level is Level.PROBLEM
    assert found["training step"].level is Level.PROBLEM
    assert found["device"].level is Level.OK


def test_another_base_model_than_the_plans_is_named(site: Site):
    plan = load_plan(ROOT / "configs" / "demo.yaml")
    pin = plan.base_model.model_copy(update={"sha256": "0" * 64})
    other = plan.model_copy(update={"base_model": pin})
    found = {finding.name: finding for finding in check.check_site(site, other)}
    assert found["base model"].level is Level.PROBLEM
    assert "the plan pins 0000" in found["base model"].text


def test_a_base_model_of_another_kind_is_named_before_its_digest(site: Site, tmp_path: Path):
    (tmp_path / "kind").mkdir()
    (tmp_path / "kind/config.json").write_text('{"model_type": "qwen2_vl"}')
    there = site.model_copy(update={"base_model": tmp_path / "kind"})
    plan = load_plan(ROOT / "configs" / "demo.yaml")
    found = {finding.name: finding for finding in check.check_site(there, plan)}["base model"]
    assert found.level is Level.PROBLEM
    assert "model_type: found 'qwen2_vl', expected one of 'llava'" in found.text
    assert "digest" not in found.text


def test_the_plans_reference_pairs_are_looked_at(site: Site, tmp_path: Path):
    listed = ReferenceList(
        plan="p", inputs="0" * 64, database="0" * 64, settings={},
        pairs=(ListedPair(id="1", caption="one", image=f"{sha256(b'one')}.png"),),
        stages=(ListedStage(stage="one", layers=()),),
    )  # fmt: skip
    (tmp_path / "images").mkdir()
    image = tmp_path / "images" / listed.pairs[0].image
    image.write_bytes(b"one")
    (tmp_path / "list.json").write_bytes(listed.to_bytes())

    def found(folder: Path | None, pin: str | None) -> Finding:
        pinned = None if pin is None else ReferencePin(name="pairs", sha256=pin)
        method = Primed(name="primed", reference=pinned)
        plan = load_plan(ROOT / "configs" / "demo.yaml").model_copy(update={"method": method})
        there = site.model_copy(update={"reference": folder})
        return {one.name: one for one in check.check_site(there, plan)}["reference pairs"]

    assert "found no folder `reference` in the site file" in found(None, None).text
    assert found(tmp_path, None) == ok("reference pairs", "1 pair, which the plan does not pin")
    assert found(tmp_path, listed.digest) == ok("reference pairs", "1 pair, as the plan pins them")
    assert "which the plan pins" in found(tmp_path, "0" * 64).text
    image.write_bytes(b"other")
    assert "expected that of its name" in found(tmp_path, listed.digest).text


def test_headers_of_another_modality_than_the_stages_are_a_warning(site: Site, tmp_path: Path):
    folder = site.data / "bone"
    folder.mkdir(parents=True)
    for at, code in enumerate(("MR", "CT")):
        dicom(folder / f"{at}.dcm", np.eye(4, dtype=np.uint8) + at, Modality=code)
    talk = [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": "yes"}]
    entry = {"id": 1, "image": "0.dcm", "conversations": talk}
    line = {"question_id": 1, "image": "1.dcm", "text": "Is it?", "gt": "no"}
    (folder / "train.json").write_text(json.dumps([entry]))
    (folder / "test.jsonl").write_text(json.dumps(line))
    plan = load_plan(ROOT / "configs" / "demo.yaml")
    found = {
        one.name: one
        for one in check.check_site(site.model_copy(update={"federation": None}), plan)
    }
    assert found["modality bone"] == Finding(
        "modality bone",
        Level.WARNING,
        "found other modalities in the headers of 1 of 2 images (1 MR), expected ct",
    )


def test_a_plan_without_work_for_the_site_is_named(site: Site):
    plan = load_plan(ROOT / "configs" / "demo.yaml")
    stranger = site.model_copy(update={"name": "stranger"})
    found = {finding.name: finding for finding in check.check_site(stranger, plan)}
    assert "found no stage of site 'stranger'" in found["plan"].text
    assert "training step" not in found


def started(machine: Machine, findings: list[Finding]) -> list[str]:
    said: list[str] = []
    start.run_site(machine, said.append, lambda _: findings)
    return said


def test_a_start_is_refused_where_waiting_mends_nothing(site: Site, tmp_path: Path):
    machine = Machine(file=tmp_path / "site.yaml", site=site)
    with pytest.raises(SiteFailed, match=r"^clock: 10 s ahead$"):
        started(machine, [ok("key file", "fine"), problem("clock", "10 s ahead")])
    with pytest.raises(SiteFailed, match=r"^clock: 10 s ahead$"):
        started(
            machine,
            [Finding("address", Level.AWAY, "nobody"), problem("clock", "10 s ahead")],
        )


def test_a_supernode_alone_is_refused_for_the_same_reasons(
    federation: Federation, coordinator: Coordinator, site: Site, tmp_path: Path
):
    coordinator.clock_s = -10
    machine = Machine(file=tmp_path / "site.yaml", site=site)
    said: list[str] = []
    with pytest.raises(SiteFailed, match=r"clock: found this clock about .* s ahead"):
        start.run_program(machine, start.ProgramName.SUPERNODE, said.append)
    assert said == []


def test_a_coordinator_that_is_away_is_waited_for_and_then_believed(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(start, "_RETRY_S", 0.01)
    away = [Finding("address", Level.AWAY, "nobody there")]
    answers: Iterator[list[Finding]] = iter([away, away, [problem("key", "unknown")]])
    said: list[str] = []
    machine = Machine(file=tmp_path / "site.yaml", site=site)
    with pytest.raises(SiteFailed, match=r"^key: unknown$"):
        start.run_program(
            machine, start.ProgramName.SUPERNODE, said.append, lambda _: next(answers)
        )
    assert said == ["address: nobody there (Waiting for the coordinator.)"]


UNKNOWN = Finding("key", Level.UNKNOWN, "not enrolled")


def test_a_coordinator_that_does_not_know_the_site_yet_is_asked_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(start, "_ASK_AGAIN_S", 0.01)
    answers: Iterator[list[Finding]] = iter([[UNKNOWN], [UNKNOWN], [problem("clock", "late")]])
    machine = Machine(file=tmp_path / "site.yaml", site=site)
    with pytest.raises(SiteFailed, match=r"^clock: late$"):
        start.run_site(machine, lambda _: None, lambda _: next(answers))


def test_a_coordinator_that_still_does_not_know_the_site_ends_the_start(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(start, "_ASK_AGAIN_S", 0.01)
    monkeypatch.setattr(start, "_UNKNOWN_S", 0.05)
    machine = Machine(file=tmp_path / "site.yaml", site=site)
    with pytest.raises(SiteFailed, match=r"^key: not enrolled$"):
        started(machine, [ok("key file", "fine"), UNKNOWN])
