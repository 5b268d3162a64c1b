"""What must not count is refused over the whole path: named with its site, and nothing is lost.

Site a is well, site b is not; the stage goes on with one of them. Elsewhere: a key that is not
enrolled (tests/federated/test_coordinator.py), a wrong certificate
(tests/unit/client/node/test_check.py) and a clock that is ahead (tests/federated/test_site.py),
whose sites never get so far.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import yaml
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from client.app import app as client_app
from client.node.jobs import Jobs
from common.adapter import Adapter, from_bytes, to_bytes
from common.bank.bank import Bank
from common.exchange import Delivery, Order, Update, read_reply
from common.plan.file import load_plan
from common.plan.plan import Plan
from common.process.progress import ProgressEvent
from common.work import Work
from server import asked_site, network
from server.app import SiteConnection, run
from server.asked_site import Patience
from server.run.folder import RunFolder
from server.run.journal import Journal
from simulation.hospitals import BASE_MODELS, prepare
from simulation.inprocess import run_in_process
from tests.flow.small_run import STAGE, small_plan

PATIENT = Patience(wait_s=0.0, slack_s=100.0, poll_s=0.01, appear_s=None)
#: What site b sends in place of its update to an order.
Spoil = Callable[[Order, Update], RecordDict]


class Sites:
    """The real ClientApp, whose site b says something else.

    Args:
        spoil: the record in place of an update.
        introduce: the record in place of who it is.
    """

    def __init__(self, spoil: Spoil | None = None, introduce: RecordDict | None = None) -> None:
        self._spoil, self._introduce = spoil, introduce

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if context.node_config["name"] != "b":
            return reply
        if message.metadata.message_type == "query":
            return Message(self._introduce or reply.content, reply_to=message)
        update = read_reply(reply.content)
        if self._spoil is None or not isinstance(update, Update):
            return reply
        order = Delivery.from_record(message.content).order
        return Message(self._spoil(order, update), reply_to=message)


def plan_of(folder: Path, **changes: Any) -> Plan:
    simulation = {"data": "phantoms", "train_fraction": 0.1, "test_questions": 4}
    stage = {**STAGE, "quorum": 1, "rounds": 1, **changes}
    return load_plan(small_plan(folder / "plan.yaml", stages=[stage], simulation=simulation))


def made(folder: Path, plan: Plan) -> RunFolder:
    prepare(plan, folder / "run" / "sites", None, BASE_MODELS["tiny-llava"])
    return RunFolder(folder / "run")


def run_with(
    plan: Plan, folder: RunFolder, sites: Sites, change: Callable[[Grid], None] | None = None
) -> None:
    """The whole run; `change` may have a hand in the Grid."""
    server = ServerApp()

    @server.main()
    def main(grid: Grid, _context: Context) -> None:  # pyright: ignore[reportUnusedFunction]
        if change is not None:
            change(grid)
        run(plan, folder, grid, SiteConnection(PATIENT, lambda: ["a", "b"]))

    homes = {name: folder.root / "sites" / name / "site.yaml" for name in ("a", "b")}
    nodes = [{"name": name, "site-file": str(file)} for name, file in homes.items()]
    run_in_process(server, cast(ClientApp, sites), nodes, {})


def told(folder: RunFolder) -> list[ProgressEvent]:
    lines = (folder.progress / "coordinator.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def refusals(folder: RunFolder) -> list[str]:
    """What was told of refused trainings; all of site b."""
    news = [one for one in told(folder) if one["event"] == "refused" and " train " in one["text"]]
    assert {one["site"] for one in news} <= {"b"}
    assert all(one["text"].isprintable() and len(one["text"]) < 600 for one in news)
    return [one["text"] for one in news]


def store_of(folder: RunFolder, site: str) -> Path:
    return folder.root / "sites" / site / "store"


def check_nothing_is_lost(folder: RunFolder, alone: bytes) -> None:
    """The run came to its end with what site a alone learned, and nothing of b."""
    assert told(folder)[-1]["event"] == "scores"
    bank = Bank.open(folder.bank)
    bank.verify()
    (release,) = bank.releases
    assert list(release.sites) == ["a"]
    assert bank.adapter_bytes(0) == alone
    journal = Journal(folder, None)
    assert {update.site for _, update in journal.updates(0)} == {"a"}
    journal.close()
    assert list(folder.blobs.iterdir()) == []


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter of a run in which site b gave no update."""
    folder = tmp_path_factory.mktemp("alone")
    plan = plan_of(folder)
    run_folder = made(folder, plan)
    rubbish = RecordDict()
    run_with(plan, run_folder, Sites(lambda _order, _update: rubbish))
    return Bank.open(run_folder.bank).adapter_bytes(0)


def changed(change: Callable[[Adapter], Adapter]) -> Spoil:
    def spoil(_order: Order, update: Update) -> RecordDict:
        adapter = change(from_bytes(update.adapter, "b"))
        return replace(update, adapter=to_bytes(adapter)).to_record()

    return spoil


def with_fields(**fields: Any) -> Spoil:
    return lambda _order, update: replace(update, **fields).to_record()


def header(text: str) -> Spoil:
    record = RecordDict({"header": ConfigRecord({"json": text}), "blobs": ArrayRecord({})})
    return lambda _order, _update: record


def with_pairs(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Spoil:
    return changed(lambda adapter: replace(adapter, pairs=change(dict(adapter.pairs))))


def without_first(pairs: dict[str, Any]) -> dict[str, Any]:
    return dict(list(pairs.items())[1:])


def with_another(pairs: dict[str, Any]) -> dict[str, Any]:
    return {**pairs, "another.layer": next(iter(pairs.values()))}


def transposed(pairs: dict[str, Any]) -> dict[str, Any]:
    name, pair = next(iter(pairs.items()))
    wider = np.concatenate([pair.a, pair.a], axis=1)
    return {**pairs, name: replace(pair, a=wider)}


def scaled(factor: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def scale(pairs: dict[str, Any]) -> dict[str, Any]:
        return {name: replace(pair, b=pair.b * np.float32(factor)) for name, pair in pairs.items()}

    return scale


UPDATES: Mapping[str, tuple[Spoil, str]] = {
    "a value that is NaN": (with_pairs(scaled(float("nan"))), "a value that is not finite"),
    "a missing tensor": (with_pairs(without_first), "found nothing, expected the shape"),
    "an extra tensor": (with_pairs(with_another), "another.layer"),
    "a wrong shape": (with_pairs(transposed), "lora_A.weight: found the shape"),
    "values that overflow": (with_pairs(scaled(1e30)), "expected at most 1e+15"),
    "no tensor at all": (with_pairs(lambda _pairs: {}), "found no array"),
    "0 examples": (with_fields(examples=0), "examples: found 0, expected at least 1"),
    "more examples than there are": (with_fields(examples=10**15), "examples: found 1000000000"),
    "a negative count": (with_fields(peak_memory=-1), "peak_memory: found -1"),
    "a loss that is not a number": (with_fields(loss=float("nan")), "loss: found nan"),
    "an adapter that is none": (with_fields(adapter=b"junk"), "not an adapter in safetensors"),
    "the answer to another order": (with_fields(order="0" * 64), "order: found 000000000000"),
    "another site's name": (with_fields(site="a"), "it answered as 'a'"),
    "no header": (lambda _order, _update: RecordDict(), "can't be read (KeyError)"),
    "no JSON": (header("{"), "can't be read (JSONDecodeError)"),
    "a JSON trap": (header("[" * 100_000), "can't be read (RecursionError)"),
    "a huge number": (header('{"kind":"update","adapter":null,"order":"o","site":"b","steps":1,'
        '"loss":1,"regularizer":0,"seconds":0,"peak_memory":1,"examples":1' + "0" * 999 + "}"),
        "can't be read (ValueError)"),
    "an unknown reason": (header('{"kind":"failure","site":"b","error":"e","ref":"r","reason":[]}'),
        "can't be read (TypeError)"),
    "words for a terminal": (header(
        '{"kind":"failure","site":"b","ref":"r","reason":null,"error":"\\u001b[2J\\ud800\\n' +
        "a" * 60 + '"}'), "?[2J??aaa"),
    "too many words": (header(
        '{"kind":"failure","site":"b","ref":"r","reason":null,"error":"' + "a" * 9999 + '"}'),
        "can't be read (ValueError)"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "said"), UPDATES.values(), ids=UPDATES.keys())
def test_an_update_that_must_not_count(tmp_path: Path, alone: bytes, spoil: Spoil, said: str):
    plan = plan_of(tmp_path)
    folder = made(tmp_path, plan)
    run_with(plan, folder, Sites(spoil))
    (text,) = refusals(folder)
    assert text.startswith("site b could not train stage 1, round 1: ")
    assert said in text
    check_nothing_is_lost(folder, alone)
    # The site itself still has what it learned.
    assert isinstance(Jobs(store_of(folder, "b")).answer(first_order(plan).digest), Update)


def first_order(plan: Plan) -> Order:
    from common.code_digest import code_digest

    return Order(
        work=Work.TRAIN, plan=plan.digest, stage=0, round=1, releases=(), active=(),
        adapter=None, code=code_digest(),
    )  # fmt: skip


def test_an_update_that_is_replayed_from_an_earlier_round(tmp_path: Path):
    plan = plan_of(tmp_path, rounds=2)
    folder, first = made(tmp_path, plan), list[Update]()

    def replayed(_order: Order, update: Update) -> RecordDict:
        first.append(update)
        return first[0].to_record()

    run_with(plan, folder, Sites(replayed))
    (text,) = refusals(folder)
    assert text.startswith("site b could not train stage 1, round 2: order: found ")
    journal = Journal(folder, None)
    counted = {(number, update.site) for number, update in journal.updates(0)}
    assert counted == {(1, "a"), (1, "b"), (2, "a")}
    Bank.open(folder.bank).verify()


def test_a_site_that_answers_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for module in (asked_site, network):
        monkeypatch.setattr(module, "RETRY_S", 0.0)
    monkeypatch.setattr(network, "SLOWEST_BYTES_S", 1e12)
    monkeypatch.setattr(
        "tests.flow.federation.test_refused_by_name.PATIENT", replace(PATIENT, slack_s=0.01)
    )
    plan = plan_of(tmp_path, quorum=2)
    folder, late, answers = made(tmp_path, plan), list[Message](), list[str]()

    def count(_order: Order, update: Update) -> RecordDict:
        answers.append(update.order)
        return update.to_record()

    def lose_the_first(grid: Grid) -> None:
        pull = grid.pull_messages

        def pulls(message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(pull(message_ids))
            if answers and not late and any(m.metadata.src_node_id == 101 for m in replies):
                # Held back until it counts as lost; then it comes with the second one.
                late.extend(replies)
                return []
            return [*replies, *late] if replies else []

        grid.pull_messages = pulls

    run_with(plan, folder, Sites(count), lose_the_first)
    assert len(late) == 1 and len(set(answers)) == 1 < len(answers)
    journal = Journal(folder, None)
    assert sorted(update.site for _, update in journal.updates(0)) == ["a", "b"]
    traffic = [one.site for one in journal.traffic() if one.work == "train"]
    assert traffic == ["a", "b"]
    assert list(Bank.open(folder.bank).releases[0].sites) == ["a", "b"]


def change_site_file(folder: RunFolder, **fields: Any) -> None:
    file = folder.root / "sites" / "b" / "site.yaml"
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump({**document, **fields}), encoding="utf-8")


def other_base_model(folder: RunFolder, _plan: Plan) -> None:
    base = folder.root / "other"
    base.mkdir()
    for file in BASE_MODELS["tiny-llava"].iterdir():
        blob = file.read_bytes()
        flipped = blob[:-1] + bytes([blob[-1] ^ 1]) if file.suffix == ".safetensors" else blob
        (base / file.name).write_bytes(flipped)
    change_site_file(folder, base_model=str(base))


def other_plan_approved(folder: RunFolder, _plan: Plan) -> None:
    approved = folder.root / "approved"
    approved.mkdir()
    (approved / f"{'0' * 64}.json").write_text("{}", encoding="utf-8")
    federation = {"address": "hub:1", "ca": "ca", "key": "key", "approved": str(approved)}
    file = folder.root / "sites" / "b" / "site.yaml"
    policy = yaml.safe_load(file.read_text(encoding="utf-8"))["policy"]
    change_site_file(folder, federation=federation, policy={**policy, "plans": "approved"})


def stage_released(folder: RunFolder, plan: Plan) -> None:
    chain = store_of(folder, "b") / "chain" / plan.digest
    chain.mkdir(parents=True)
    (chain / f"0-{'ab' * 32}").touch()


def few_examples(folder: RunFolder, _plan: Plan) -> None:
    file = folder.root / "sites" / "b" / "site.yaml"
    policy = yaml.safe_load(file.read_text(encoding="utf-8"))["policy"]
    change_site_file(folder, policy={**policy, "examples": 10**6})


@pytest.mark.parametrize(
    ("prepared", "said"),
    [
        (other_base_model, "its base model is not the plan's"),
        (other_plan_approved, "it has not approved this plan"),
        (stage_released, "the stage is already released"),
        (few_examples, "it has fewer examples than its policy asks for"),
    ],
)
def test_an_order_that_the_site_refuses(
    tmp_path: Path, alone: bytes, prepared: Callable[[RunFolder, Plan], None], said: str
):
    plan = plan_of(tmp_path)
    folder = made(tmp_path, plan)
    prepared(folder, plan)
    chain = set((store_of(folder, "b") / "chain").rglob("*"))
    run_with(plan, folder, Sites())
    (text,) = refusals(folder)
    assert text.startswith(f"site b could not train stage 1, round 1: {said} (")
    check_nothing_is_lost(folder, alone)
    reference = text.rpartition(" ")[2].rstrip(")")
    assert reference in (store_of(folder, "b") / "failures.log").read_text(encoding="utf-8")
    assert Jobs(store_of(folder, "b")).answer(first_order(plan).digest) is None
    if prepared is stage_released:
        # What was begun is on record, and of the stage's training nothing.
        found = set((store_of(folder, "b") / "chain").rglob("*"))
        assert {file for file in found if not file.name.startswith("score-")} == chain


def test_an_order_of_other_code(tmp_path: Path, alone: bytes, monkeypatch: pytest.MonkeyPatch):
    plan = plan_of(tmp_path)
    folder = made(tmp_path, plan)

    class Upgraded(Sites):
        """Site b was upgraded since it said who it is."""

        def __call__(self, message: Message, context: Context) -> Message:
            with monkeypatch.context() as patched:
                if context.node_config["name"] == "b":
                    patched.setattr("client.site.policy.code_digest", lambda: "other")
                return super().__call__(message, context)

    run_with(plan, folder, Upgraded())
    (text,) = refusals(folder)
    said = "its code is not the coordinator's"
    assert text.startswith(f"site b could not train stage 1, round 1: {said} (")
    check_nothing_is_lost(folder, alone)
    assert not (store_of(folder, "b") / "jobs").exists()


def introduction(text: str) -> RecordDict:
    return RecordDict({"header": ConfigRecord({"json": text}), "blobs": ArrayRecord({})})


@pytest.mark.parametrize(
    ("introduce", "said"),
    [
        ('{"site":"b","code":"other","holds":[]}', "site b runs code other, the coordinator "),
        ('{"site":"a","code":"other","holds":[]}', "its site file says that it is 'a'"),
        ('{"site":"b","code":"other","holds":[[]]}', "it can't say who it is"),
        ("[" * 100_000, "it can't say who it is"),
    ],
)
def test_a_site_that_says_what_it_should_not_of_itself(
    tmp_path: Path, alone: bytes, introduce: str, said: str
):
    # The others wait for nobody; the plan's digest is another, the training the same.
    plan = plan_of(tmp_path, deadline_hours=1e-6)
    folder = made(tmp_path, plan)
    run_with(plan, folder, Sites(introduce=introduction(introduce)))
    waiting = [one["for"] for one in told(folder) if one["event"] == "waiting"]
    assert any(said in states.get("b", "") for states in waiting)
    (text,) = refusals(folder)
    assert text.startswith("site b could not train stage 1, round 1: it was late")
    check_nothing_is_lost(folder, alone)
    # It was never sent anything but the question.
    assert not (store_of(folder, "b") / "blobs").exists()
