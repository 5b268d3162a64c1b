"""The site's edge: what comes in, what goes out, and that no exception's words are among it."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client import app as edge
from client.node import receive
from client.node.jobs import Jobs
from client.site import audit
from client.site.audit import MessageKind
from client.site.config import Site, load_site
from client.site.failures import FAILURES_FILE
from common.code_digest import code_digest
from common.exchange import (
    Delivery,
    Failure,
    Lacks,
    Order,
    Presence,
    Reason,
    Reply,
    Update,
    Working,
    read_reply,
)
from common.identity import sha256
from common.work import Work
from tests.unit.client.site.test_policy import PLAN

ROOT = Path(__file__).resolve().parents[3]
SECRET = "patient-4711"


@pytest.fixture(autouse=True)
def in_a_flower_process(monkeypatch: pytest.MonkeyPatch) -> None:
    # flwr 1.42: a message can be made only where a task runs.
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a resident site of which every path would give something away."""
    folder = tmp_path / SECRET
    (folder / "approved").mkdir(parents=True)
    (folder / "approved" / f"{PLAN.digest}.json").write_text(PLAN.canonical())
    fields: dict[str, Any] = {
        "name": "north", "data": "data", "base_model": "base", "store": "store",
        "device": "cpu", "threads": 1,
        "policy": {
            "modalities": ["radiology"], "plans": "approved", "rounds": 9, "examples": 1,
        },
        "federation": {
            "address": "localhost:1", "ca": "ca", "key": "key", "approved": "approved",
        },
    }  # fmt: skip
    (folder / "site.yaml").write_text(yaml.safe_dump(fields))
    return folder / "site.yaml"


@pytest.fixture
def site(file: Path) -> Site:
    return load_site(file)


def asked(content: RecordDict, file: Path, message_type: str = "train") -> RecordDict:
    """The site's reply, in which no word of a secret is."""
    message = Message(content, 1, message_type)
    message.metadata.__dict__["_message_id"] = "1"
    config: dict[str, Any] = {"site-file": str(file)}
    context = Context(run_id=1, node_id=1, node_config=config, state=RecordDict(), run_config={})
    reply = edge.app(message, context)
    assert not reply.has_error()
    assert SECRET not in str(reply.content["header"])
    return reply.content


def order_of(**changes: Any) -> Order:
    fields: dict[str, Any] = {
        "work": Work.TRAIN, "plan": PLAN.digest, "stage": 0, "round": 1, "releases": (),
        "active": (), "adapter": None, "code": code_digest(),
    }  # fmt: skip
    return Order(**{**fields, **changes})


def delivery(**changes: Any) -> RecordDict:
    """The order with its plan."""
    blob = PLAN.canonical().encode()
    return Delivery(order=order_of(**changes), blobs={sha256(blob): blob}).to_record()


def kinds(site: Site) -> list[MessageKind]:
    audit.verify(site.store)
    return [entry.kind for entry in audit.read(site.store)]


def test_a_question_is_answered_with_who_the_site_is(file: Path, site: Site):
    found = Presence.from_record(asked(RecordDict(), file, "query"))
    assert found == Presence(site="north", code=code_digest(), holds=())
    asked(delivery(), file)
    found = Presence.from_record(asked(RecordDict(), file, "query"))
    assert found.holds == (PLAN.digest,)
    assert kinds(site)[:2] == [MessageKind.QUESTION, MessageKind.PRESENCE]


def test_an_order_and_its_update_are_in_the_log_before_it_leaves(file: Path, site: Site):
    order = order_of()
    assert isinstance(read_reply(asked(Delivery(order=order).to_record(), file)), Lacks)
    assert isinstance(read_reply(asked(delivery(), file)), Working)
    for _ in range(3):
        again = Delivery(order=order).to_record()
        assert isinstance(read_reply(asked(again, file)), Working)
    update = Update(
        order=order.digest, site="north", examples=1, steps=1, loss=1.0, regularizer=0.0,
        adapter=b"better",
    )  # fmt: skip
    Jobs(site.store).finish(order, update)
    assert read_reply(asked(Delivery(order=order).to_record(), file)) == update
    assert kinds(site) == ["order", "lacks", "order", "working", "order", "update"]
    sent = list(audit.read(site.store))[-1]
    (part,) = sent.parts
    assert (part.size, part.sha256) == (6, sha256(b"better"))
    assert part.what == "the adapter of stage 1, round 1 of plan demo"


def test_a_refusal_leaves_by_its_reason_and_reference_alone(file: Path, site: Site):
    reply = failed(asked(delivery(code="feed"), file))
    assert (reply.site, reply.error, reply.reason) == ("north", "OrderRefused", Reason.CODE)
    log = (site.store / FAILURES_FILE).read_text()
    assert log.startswith(f"{reply.reference} OrderRefused: ")
    assert kinds(site) == [MessageKind.ORDER, MessageKind.FAILURE]
    told = audit.describe(list(audit.read(site.store))[-1])
    assert Reason.CODE in told
    assert reply.reference in told


def failed(record: RecordDict) -> Failure:
    reply = read_reply(record)
    assert isinstance(reply, Failure)
    return reply


def header(text: str) -> RecordDict:
    return RecordDict({"header": ConfigRecord({"json": text}), "blobs": ArrayRecord({})})


def other_blob() -> RecordDict:
    record = delivery()
    array = Array("uint8", (1,), "safetensors", b"x")
    record["blobs"] = ArrayRecord({PLAN.digest: array})
    return record


@pytest.mark.parametrize(
    "record",
    [
        RecordDict(),
        RecordDict({"header": ConfigRecord({"json": "{}"})}),
        header(""),
        header("[]"),
        header("{}"),
        header('{"order": {}, "wait_s": 0}'),
        header(json.dumps({"order": {**order_of().header(), "work": "steal"}, "wait_s": 0})),
        header(json.dumps({"order": {**order_of().header(), "plan": SECRET}, "wait_s": 0})),
        header(json.dumps({"order": {**order_of().header(), "stage": -1}, "wait_s": 0})),
        header(json.dumps({"order": order_of().header(), "wait_s": SECRET})),
        other_blob(),
    ],
)
def test_what_cannot_be_read_is_refused_as_such(file: Path, site: Site, record: RecordDict):
    assert failed(asked(record, file)).reason is Reason.FORMAT
    assert kinds(site) == [MessageKind.UNREADABLE, MessageKind.FAILURE]
    assert SECRET not in (site.store / audit.AUDIT_FILE).read_text()


@pytest.mark.parametrize("message_type", ["train", "evaluate"])
def test_a_header_that_is_a_trap_is_a_failure_too(file: Path, message_type: str):
    assert failed(asked(header("[" * 100_000), file, message_type)).site == "north"


class Strange(Exception):
    pass


@pytest.mark.parametrize("message_type", ["train", "evaluate"])
@pytest.mark.parametrize(
    "error", [Strange(SECRET), MemoryError(SECRET), RecursionError(SECRET), OSError(5, SECRET)]
)
def test_no_exception_leaves(
    file: Path,
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    message_type: str,
):
    def broken(*_: object) -> Reply:
        raise error

    monkeypatch.setattr(edge, "receive", broken)
    reply = failed(asked(delivery(), file, message_type))
    assert (reply.error, reply.reason) == (type(error).__name__, None)
    assert SECRET in (site.store / FAILURES_FILE).read_text()
    assert kinds(site) == [MessageKind.ORDER, MessageKind.FAILURE]


@pytest.mark.parametrize("message_type", ["query", "train", "evaluate"])
@pytest.mark.parametrize("text", ["name: [", "name: 3", None])
def test_a_site_file_that_cannot_be_used_is_not_told(
    file: Path, text: str | None, message_type: str, caplog: pytest.LogCaptureFixture
):
    if text is None:
        file.unlink()
    else:
        file.write_text(f"{text}\n# {SECRET}")
    with caplog.at_level(logging.ERROR):
        reply = failed(asked(delivery(), file, message_type))
    assert (reply.site, reply.error) == (edge.UNKNOWN_SITE, "SiteFailed")
    assert reply.reference in caplog.text


@pytest.mark.parametrize("message_type", ["query", "train"])
def test_nothing_but_a_failure_leaves_where_the_audit_log_was_cut_off(
    file: Path, site: Site, message_type: str
):
    asked(delivery(), file)
    log = site.store / audit.AUDIT_FILE
    log.write_bytes(log.read_bytes()[:10])
    assert failed(asked(delivery(), file, message_type)).error == "StateError"


def test_an_update_that_cannot_be_logged_does_not_leave(
    file: Path, site: Site, monkeypatch: pytest.MonkeyPatch
):
    whole = audit.write

    def full(store: Path, entry: audit.AuditEntry) -> None:
        if not entry.kind.incoming:
            raise OSError(28, "No space left on device", SECRET)
        whole(store, entry)

    monkeypatch.setattr(audit, "write", full)
    assert failed(asked(delivery(), file)).error == "OSError"
    assert failed(asked(RecordDict(), file, "query")).error == "OSError"


def test_a_wait_has_an_end_whatever_is_asked(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(receive, "LONGEST_WAIT_S", 0.2)
    endless = Delivery(order=order_of(), wait_s=float("inf"))
    asked(delivery(), file)
    assert isinstance(read_reply(asked(endless.to_record(), file)), Working)


def test_neither_a_question_nor_an_order_loads_torch(file: Path):
    code = f"""
import sys
from pathlib import Path
from flwr.supercore.task_identity import TaskIdentity
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
from tests.unit.client.test_app import asked, delivery, read_reply, RecordDict
file = Path({str(file)!r})
print(sorted(asked(RecordDict(), file, "query")))
print(type(read_reply(asked(delivery(), file))).__name__)
heavy = {{"torch", "transformers", "peft", "ray", "pydicom"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[1] == "Working"
