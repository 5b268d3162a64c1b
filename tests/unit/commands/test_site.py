"""`fedmslora site`: what an admin types, and what is said back."""

import json
import os
import stat
import time
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, Self

import pytest
import yaml
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from client.model.base_digest import base_digest
from client.node.jobs import Jobs
from client.node.processes import ANSWERED_FILE
from client.site.approval import adapted_layers, sent_bytes
from client.site.audit import AuditedBlob, AuditEntry, MessageKind, Subject, write
from client.site.blob_store import put
from client.site.config import load_site
from commands.site import app
from common.errors import Refusal
from common.exchange import Order, ReleaseRef
from common.identity import sha256
from common.partial_adapter import AdapterPart
from common.plan.file import load_plan
from common.work import Work
from server.coordinator.certificates import write_certificates

ROOT = Path(__file__).resolve().parents[3]
BASE = ROOT / "simulation" / "base_model"

STAGE: dict[str, Any] = {
    "name": "cxp", "modality": "radiology", "task": "CXP", "sites": ["north", "south"],
    "rounds": 2, "local_epochs": 0.5, "learning_rate": 5e-3, "batch_size": 8,
}  # fmt: skip


def fedmslora(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(*arguments: str | Path) -> str:
    """The one sentence with which the command line would end (fedmslora.py prints it)."""
    done = fedmslora(*arguments)
    assert isinstance(done.exception, Refusal), done.output
    return str(done.exception)


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    write_certificates(tmp_path / "tls", ["localhost"])
    return tmp_path / "tls" / "ca.crt"


@pytest.fixture
def site(ca: Path, tmp_path: Path) -> Path:
    """A new site's file."""
    done = fedmslora(*init(ca, tmp_path / "north"), "--base-model", BASE)
    assert done.exit_code == 0, done.output
    return tmp_path / "north" / "site.yaml"


def init(authority: Path, folder: Path, **changes: str) -> list[str | Path]:
    options: dict[str, str | Path] = {
        "--name": "north", "--modality": "radiology", "--coordinator": "hub.example.org:8443",
        "--ca": authority, "--folder": folder,
        **{f"--{name}": value for name, value in changes.items()},
    }  # fmt: skip
    return ["init", *(word for option in options.items() for word in option)]


def small_plan(file: Path, **changes: Any) -> Path:
    plan: dict[str, Any] = {
        "name": "small",
        "seed": 5,
        "base_model": {"name": "tiny-llava", "sha256": base_digest(BASE)},
        "method": {"name": "mslora_cr", "rank": 4, "alpha": 4, "active": "all", "contrast": {}},
        "aggregation": "svd",
        "stages": [{**STAGE, **changes}],
    }
    file.write_text(yaml.safe_dump(plan), encoding="utf-8")
    return file


def test_init_makes_a_site_file_that_loads_and_a_key_that_stays(site: Path, ca: Path):
    loaded = load_site(site)
    assert loaded.name == "north"
    assert [modality.value for modality in loaded.policy.modalities] == ["radiology"]
    assert loaded.base_model == BASE
    assert loaded.federation is not None
    assert loaded.federation.address == "hub.example.org:8443"
    assert loaded.federation.ca.read_bytes() == ca.read_bytes()
    assert loaded.federation.approved.is_dir()
    assert stat.S_IMODE(loaded.federation.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(loaded.federation.key.parent.stat().st_mode) == 0o700
    assert site.read_text().count("#") > 10


@pytest.mark.parametrize("option", ["--folder", "--data", "--base-model"])
def test_a_path_that_no_file_can_hold_is_refused_before_anything_is_made(
    ca: Path, tmp_path: Path, option: str
):
    words = init(ca, tmp_path / "site")
    told = refusal(*words, option, f"{tmp_path}/\udcff")
    found = f"{tmp_path}/\udcff"
    assert told == f"{option}: found {found!r}, expected a name in UTF-8"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tls"]


@pytest.mark.parametrize("name", ["12", "null", "no", "1e3", "2024-13-01"])
def test_a_site_may_have_a_name_that_yaml_takes_for_something_else(
    ca: Path, tmp_path: Path, name: str
):
    assert fedmslora(*init(ca, tmp_path / "site", name=name)).exit_code == 0
    assert load_site(tmp_path / "site" / "site.yaml").name == name


def test_init_says_what_to_send_and_what_comes_next(ca: Path, tmp_path: Path):
    said = fedmslora(*init(ca, tmp_path / "north")).output
    assert "coordinator enroll north.pub --name north --modality radiology" in said
    assert f"fedmslora site start --site {tmp_path / 'north' / 'site.yaml'}" in said
    assert "BEGIN" not in said


def test_in_a_container_init_says_what_is_typed_outside_it(
    ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FEDMSLORA_COMMAND", "docker compose run --rm admin")
    said = fedmslora(*init(ca, tmp_path / "north")).output
    file = tmp_path / "north" / "site.yaml"
    assert f"3. docker compose run --rm admin site approve PLAN --site {file}\n" in said
    assert f"4. docker compose run --rm check site check --plan PLAN --site {file}\n" in said
    assert "5. docker compose up --detach\n" in said
    assert "fedmslora site" not in said


def test_init_makes_every_folder_that_a_container_mounts_or_covers(site: Path):
    # Otherwise the containers' engine makes it, as root's.
    file = ROOT / "docker" / "site" / "compose.yaml"
    services = yaml.safe_load(file.read_text(encoding="utf-8"))["services"]
    volumes: list[str | dict[str, str]] = [
        one for part in services.values() for one in part["volumes"]
    ]
    targets = {one["target"] for one in volumes if isinstance(one, dict)}
    assert {"/site/store/features", "/site/store/flower"} <= targets
    for target in targets:
        made = site.parent / Path(target).relative_to("/site")
        assert made.exists(), target
        if "store" in made.parts or made.name == "keys":
            assert stat.S_IMODE(made.stat().st_mode) == 0o700, target


def test_init_overwrites_nothing(site: Path, ca: Path):
    before = {file: file.read_bytes() for file in site.parent.rglob("*") if file.is_file()}
    assert "never overwritten" in refusal(*init(ca, site.parent))
    after = {file: file.read_bytes() for file in site.parent.rglob("*") if file.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Nord Klinik"}, "--name: found 'Nord Klinik'"),
        ({"modality": "xry"}, "--modality: found 'xry'"),
        ({"coordinator": "hub.example.org"}, "expected HOST:PORT"),
        ({"coordinator": "https://hub.example.org:1"}, "expected HOST:PORT"),
        ({"ca": "/nowhere/ca.crt"}, "can't be read as a certificate"),
    ],
)
def test_init_names_what_is_wrong_and_leaves_no_folder(
    ca: Path, tmp_path: Path, changes: dict[str, str], words: str
):
    assert words in refusal(*init(ca, tmp_path / "north", **changes))
    assert not (tmp_path / "north").exists()


def test_init_refuses_a_server_s_certificate_and_one_that_is_not_valid_yet(
    ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told = refusal(*init(ca.with_name("server.crt"), tmp_path / "north"))
    assert "server.crt: found the certificate of a server, expected its authority's" in told

    class Early(datetime):
        """A clock that is years behind."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls(2001, 1, 1, tzinfo=tz)

    monkeypatch.setattr("client.node.init.datetime", Early)
    told = refusal(*init(ca, tmp_path / "north"))
    assert "found a certificate that is not valid before" in told
    assert not (tmp_path / "north").exists()


def test_init_reads_no_more_of_a_file_than_a_certificate_can_have(ca: Path, tmp_path: Path):
    large = tmp_path / "large.crt"
    large.write_bytes(ca.read_bytes() + b"\n" * 2**22)
    told = refusal(*init(large, tmp_path / "north"))
    assert "large.crt: can't be read as a certificate (found more than 4,194,304 bytes" in told
    assert not (tmp_path / "north").exists()


def test_init_refuses_a_file_that_is_no_certificate(ca: Path, tmp_path: Path):
    other = ca.with_name("ca.key")
    assert "found no certificate" in refusal(*init(other, tmp_path / "north"))


def test_approve_says_in_words_what_will_leave_and_records_the_plan(site: Path, tmp_path: Path):
    plan = small_plan(tmp_path / "plan.yaml")
    done = fedmslora("approve", plan, "--site", site)
    assert done.exit_code == 0, done.output
    assert "Stage 1, cxp: 2 rounds of 0.5 epochs on the radiology task 'CXP'" in done.output
    assert "with 1 other site" in done.output
    assert "What leaves this site: after each of 2 rounds an adapter (about 0." in done.output
    assert "No image, no question, no answer" in done.output
    loaded = load_plan(plan)
    record = site.parent / "approved" / f"{loaded.digest}.json"
    assert record.read_text() == loaded.canonical()
    assert sha256(record.read_bytes()) == loaded.digest


@pytest.mark.parametrize("option", ["--dry-run", "--look"])
def test_approve_as_a_dry_run_records_nothing(site: Path, tmp_path: Path, option: str):
    done = fedmslora("approve", small_plan(tmp_path / "plan.yaml"), "--site", site, option)
    assert "Not approved:" in done.output
    assert list((site.parent / "approved").iterdir()) == []


def test_the_folder_of_a_site_file_names_it_too(site: Path, tmp_path: Path):
    plan = small_plan(tmp_path / "plan.yaml")
    assert fedmslora("approve", plan, "--site", site.parent).exit_code == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modality": "ct"}, "found the modality ct, the site's policy allows only radiology"),
        ({"rounds": 51}, "found 51 rounds, the site's policy allows at most 50"),
        ({"sites": ["south"]}, "found no stage of site 'north', only of south"),
    ],
)
def test_a_plan_that_the_sites_own_policy_would_refuse_is_not_approved(
    site: Path, tmp_path: Path, changes: dict[str, Any], words: str
):
    plan = small_plan(tmp_path / "plan.yaml", **changes)
    assert words in refusal("approve", plan, "--site", site)
    assert list((site.parent / "approved").iterdir()) == []


def test_without_a_base_model_the_size_is_left_open(site: Path, tmp_path: Path):
    plan = load_plan(small_plan(tmp_path / "p.yaml"))
    layers = adapted_layers(plan, tmp_path)
    assert sent_bytes(plan, layers, AdapterPart.WHOLE) is None


def test_check_prints_a_line_for_each_check_and_fails_as_a_whole(site: Path):
    done = fedmslora("check", "--site", site, "--json")
    assert done.exit_code == 2
    document = json.loads(done.stdout)
    assert document["site"] == "north"
    assert document["passed"] is False
    levels = {one["name"]: one["level"] for one in document["checks"]}
    assert levels["key file"] == "ok"
    assert levels["data"] == "problem"
    printed = fedmslora("check", "--site", site).stdout.splitlines()
    assert len(printed) == len(document["checks"])


def test_status_of_a_new_site_is_told_from_its_store(site: Path):
    document = json.loads(fedmslora("status", "--site", site, "--json").stdout)
    assert document == {
        "site": "north", "supervised": False, "answered": None, "trainer": False, "job": None,
        "releases": [0, 0], "blobs": 0, "last": None, "failures": None,
    }  # fmt: skip


def test_status_says_which_step_of_which_plan_the_trainer_is_at(site: Path, tmp_path: Path):
    plan, store = load_plan(small_plan(tmp_path / "plan.yaml")), load_site(site).store
    put(store, plan.canonical().encode())
    release = put(store, b"a release")
    refs = (ReleaseRef(0, release), ReleaseRef(1, "0" * 64))
    order = Order(
        work=Work.TRAIN, plan=plan.digest, stage=0, round=2, releases=refs, active=(0,),
        adapter=None, code="c0de",
    )  # fmt: skip
    Jobs(store).request(order)
    Jobs(store).record_progress(order.digest, {"step": 12, "steps": 40})
    document = json.loads(fedmslora("status", "--site", site, "--json").stdout)
    assert document["job"] == {
        "work": "train", "plan": "small", "stage": "cxp", "round": 2, "step": 12, "steps": 40,
        "remaining_s": None,
    }  # fmt: skip
    assert document["releases"] == [1, 2]
    said = fedmslora("status", "--site", site).stdout
    assert "train stage cxp, round 2 of plan small: step 12 of 40" in said


def test_status_says_how_long_a_job_still_takes_at_its_pace(site: Path, tmp_path: Path):
    plan, store = load_plan(small_plan(tmp_path / "plan.yaml")), load_site(site).store
    order = Order(
        work=Work.TRAIN, plan=plan.digest, stage=0, round=1, releases=(), active=(),
        adapter=None, code="c0de",
    )  # fmt: skip
    jobs = Jobs(store)
    jobs.request(order)
    with jobs.attempt(order):
        assert jobs.remaining_s(order.digest) is None
        jobs.record_progress(order.digest, {"step": 10, "steps": 40})
        os.utime(store / "jobs" / "attempt.json", (1000, 1000))
        os.utime(store / "jobs" / "doing.json", (1100, 1100))
        # 10 steps in 100 s, so 30 in 300 s.
        assert jobs.remaining_s(order.digest) == 300.0
        assert jobs.remaining_s("another") is None
        said = fedmslora("status", "--site", site).stdout
    assert "step 10 of 40, about 5 min left" in said


def test_status_says_when_the_coordinator_last_answered(site: Path):
    def line(label: str) -> str:
        lines = fedmslora("status", "--site", site).stdout.splitlines()
        return next(line for line in lines if line.startswith(label)).removeprefix(label).strip()

    assert (line("coordinator"), line("job")) == ("has not answered yet", "none")
    answered = load_site(site).store / ANSWERED_FILE
    answered.parent.mkdir(parents=True, exist_ok=True)
    answered.touch()
    assert line("coordinator").startswith("answered ")
    assert line("job") == "none; waiting for an order"
    os.utime(answered, (time.time() - 600, time.time() - 600))
    assert line("coordinator") == "has not answered for 10 min; site check says more"
    assert line("job") == "none; no coordinator answers"
    document = json.loads(fedmslora("status", "--site", site, "--json").stdout)
    assert document["answered"].endswith("+00:00")


def message(site: Path, order: str) -> None:
    from datetime import UTC, datetime

    subject = Subject(order=order, work="train", plan="ab" * 32, name="small", stage=0, round=1)
    sent = AuditedBlob(what="the adapter", size=1000, sha256="cd" * 32)
    moment = datetime(2026, 11, 23, 4, 10, 11, tzinfo=UTC)
    store = load_site(site).store
    write(store, AuditEntry(time=moment, kind=MessageKind.ORDER, subject=subject, size=300))
    write(
        store,
        AuditEntry(time=moment, kind=MessageKind.UPDATE, subject=subject, parts=(sent,), size=1200),
    )


def test_audit_says_what_left_and_that_the_log_is_whole(site: Path):
    message(site, "ef" * 32)
    done = fedmslora("audit", "--site", site)
    assert done.exit_code == 0
    assert "2026-11-23 04:10:11 UTC  sent" in done.stdout
    assert "Sent: update 1.2 kB." in done.stdout
    assert "The log is intact: 2 lines" in done.stdout
    document = json.loads(fedmslora("audit", "--site", site, "--json").stdout)
    assert document["lines"] == 2
    assert document["summary"]["sent"] == {"update": 1200}
    assert len(document["entries"]) == 2


def test_audit_refuses_a_log_that_was_changed(site: Path):
    message(site, "ef" * 32)
    log = load_site(site).store / "audit.jsonl"
    log.write_bytes(log.read_bytes().replace(b"1200", b"1199"))
    assert str(log) in refusal("audit", "--site", site)


def test_a_part_that_there_is_not_is_named(site: Path):
    words = refusal("start", "--site", site, "--part", "superlink")
    assert words == "--part: found 'superlink', expected one of supernode, superexec, trainer"


@pytest.mark.parametrize("name", ["init", "approve", "check", "start", "status", "audit"])
def test_every_command_has_an_example(name: str):
    done = fedmslora(name, "--help")
    assert done.exit_code == 0
    assert f"Example: fedmslora site {name}" in done.output


def answered(site: Path, plan: Path) -> Path:
    """Questions of the plan's stage at the site, and its answers to them; returns their file."""
    own, (stage,) = load_site(site), load_plan(plan).stages
    folder, store = own.data / stage.task, own.store / "answers"
    folder.mkdir(parents=True)
    store.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (90, 0, 0)).save(folder / "secret.png")
    asked = [("is it?", "yes"), ("is it?", "no"), ("is it?", "no")]
    train = [
        {
            "id": str(place), "image": "secret.png", "answer_type": "CLOSED",
            "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}],
        }
        for place, (q, a) in enumerate(asked)
    ]  # fmt: skip
    test = [
        {"question_id": str(place), "image": "secret.png", "text": q, "gt": a,
         "answer_type": "CLOSED"}
        for place, (q, a) in enumerate(asked)
    ]  # fmt: skip
    (folder / "train.json").write_text(json.dumps(train), encoding="utf-8")
    lines = "".join(f"{json.dumps(one)}\n" for one in test)
    (folder / "test.jsonl").write_text(lines, encoding="utf-8")
    said = [{**one, "prompt": one["text"], "text": "<i>no"} for one in test]
    file = store / f"{stage.name}-{'0' * 12}.jsonl"
    file.write_text("".join(f"{json.dumps(one)}\n" for one in said), encoding="utf-8")
    return file


def test_a_site_has_a_page_of_its_own_answers_that_only_it_can_read(site: Path, tmp_path: Path):
    plan = small_plan(tmp_path / "plan.yaml", sites=["north"], task="CXP")
    answered(site, plan)
    out = tmp_path / "answers.html"
    done = fedmslora("answers", plan, "--site", site, "--out", out)
    assert done.exit_code == 0, done.output
    assert "1 task. It holds pictures: it must not leave" in done.output
    page = out.read_text(encoding="utf-8")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert "data:image/jpeg;base64," in page and "secret" not in page
    assert "&lt;i&gt;no" in page and "<i>no" not in page
    assert "3 (1)" in page and "no medical device" in page


def test_a_page_is_a_file_and_nothing_else_gets_its_mode(site: Path, tmp_path: Path):
    plan = small_plan(tmp_path / "plan.yaml", sites=["north"], task="CXP")
    answered(site, plan)
    folder, pipe = tmp_path / "pages", tmp_path / "pipe"
    folder.mkdir(mode=0o755)
    os.mkfifo(pipe, mode=0o644)
    for out in (folder, pipe):
        before = out.stat().st_mode
        told = refusal("answers", plan, "--site", site, "--out", out)
        assert told == f"--out: found {out}, which is no file, expected a file's name"
        assert out.stat().st_mode == before
    told = refusal("answers", plan, "--site", site, "--out", plan / "a.html")
    assert told == f"--out: found {plan}, which is no folder, expected one"


def test_a_site_without_answers_of_the_plan_says_so(site: Path, tmp_path: Path):
    plan = small_plan(tmp_path / "plan.yaml", sites=["north"], task="CXP")
    words = "found no answers to a task of plan 'small'"
    assert words in refusal("answers", plan, "--site", site)
    file = answered(site, plan)
    file.write_text(file.read_text().replace("is it?", "what?"), encoding="utf-8")
    assert "found answers to other test questions" in refusal("answers", plan, "--site", site)
