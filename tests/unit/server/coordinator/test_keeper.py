"""The keeper keeps one run of Flower's active for a request, and the nodes as the registry."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from threading import Event

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.errors import StateError
from common.plan_fields import Modality
from common.process.progress import read_events, write_event
from server.coordinator.flower_nodes import sync_nodes
from server.coordinator.init import init_coordinator
from server.coordinator.keeper import Keeper, run_keeper
from server.coordinator.registry import EnrolledSite, enroll, enrolled, leave
from server.coordinator.state import CoordinatorSettings, RequestedRun, State
from server.coordinator.superlink import FlowerRun, Node, SuperLinkRefused, SuperLinkUnavailable
from server.run.folder import run_lock

SETTINGS = CoordinatorSettings(
    hosts=("localhost",),
    port=8443,
    bind="127.0.0.1",
    inner_host="127.0.0.1",
    inner_port=8000,
    wait_s=60.0,
    slack_s=600.0,
)


@dataclass
class Flower:
    """A SuperLink that keeps everything in memory."""

    away: bool = False
    all_runs: list[FlowerRun] = field(default_factory=list[FlowerRun])
    all_nodes: dict[bytes, Node] = field(default_factory=dict[bytes, Node])
    names: list[str] = field(default_factory=list[str])
    configs: list[Mapping[str, str | float]] = field(
        default_factory=list[Mapping[str, str | float]]
    )

    def runs(self) -> list[FlowerRun]:
        if self.away:
            raise SuperLinkUnavailable("away")
        return self.all_runs[::-1]

    def start(self, bundle: bytes, config: Mapping[str, str | float]) -> int:
        assert bundle == b"code"
        number = len(self.all_runs)
        self.all_runs.append(FlowerRun(number, str(config["folder"]), "pending", "", ""))
        self.configs.append(config)
        return number

    def stop(self, run_id: int) -> None:
        self.finish(run_id, "stopped", "")

    def nodes(self) -> list[Node]:
        if self.away:
            raise SuperLinkUnavailable("away")
        return list(self.all_nodes.values())

    def register(self, pem: bytes, name: str) -> int:
        self.all_nodes[pem] = Node(100 + len(self.names), pem, online=False, seen=None)
        self.names.append(name)
        return self.all_nodes[pem].node_id

    def unregister(self, node_id: int) -> None:
        self.all_nodes = {p: node for p, node in self.all_nodes.items() if node.node_id != node_id}

    def finish(self, run_id: int, sub_status: str, details: str) -> None:
        finished = replace(
            self.all_runs[run_id], status="finished", sub_status=sub_status, details=details
        )
        self.all_runs[run_id] = finished


@pytest.fixture
def state(tmp_path: Path) -> State:
    return init_coordinator(tmp_path / "coordinator", SETTINGS)


@pytest.fixture
def flower() -> Flower:
    return Flower()


@pytest.fixture
def keeper(state: State, flower: Flower) -> Keeper:
    return Keeper(state, flower, lambda: b"code")


def site(name: str) -> EnrolledSite:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    line = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return EnrolledSite(name=name, modalities=(Modality.CT,), public_key=line)


def test_nothing_is_started_where_nothing_is_requested(keeper: Keeper, flower: Flower):
    keeper.reconcile(0.0)
    assert flower.all_runs == []


def test_a_damaged_file_is_a_line_of_the_log_until_it_is_mended(
    state: State, flower: Flower, monkeypatch: pytest.MonkeyPatch
):
    (state.root / "wanted.json").write_bytes(b'{"run":"demo","since"')
    said: list[str] = []
    stop = Event()

    def pause(_seconds: float) -> None:
        if flower.all_runs:
            stop.set()
        # As the line says: without the file the run is requested again.
        (state.root / "wanted.json").unlink(missing_ok=True)
        state.request(RequestedRun(run="demo", since=0))

    monkeypatch.setattr("server.coordinator.keeper.time.sleep", pause)
    monkeypatch.setattr("server.coordinator.keeper.make_bundle", lambda: b"code")
    run_keeper(state, flower, stop, said.append)  # pyright: ignore[reportArgumentType]
    assert len(flower.all_runs) == 1
    assert "wanted.json: can't be read" in said[0] and "remove the file" in said[0]
    assert said[1:] == ["the SuperLink answers"]


def test_a_requested_run_is_started_once_with_its_folder(
    state: State, keeper: Keeper, flower: Flower
):
    state.request(RequestedRun(run="demo", since=0))
    for now in (0.0, 2.0, 4.0):
        keeper.reconcile(now)
    assert len(flower.all_runs) == 1
    assert flower.configs == [
        {
            "plan": str(state.root / "runs/demo/plan.json"),
            "folder": str(state.root / "runs/demo"),
            "registry": str(state.root / "sites.json"),
            "wait-s": 60.0,
            "slack-s": 600.0,
        }
    ]


def test_a_run_of_flowers_that_died_is_followed_by_another_and_an_event(
    state: State, keeper: Keeper, flower: Flower
):
    state.request(RequestedRun(run="demo", since=0))
    keeper.reconcile(0.0)
    flower.finish(0, "failed", "No heartbeat")
    keeper.reconcile(100.0)
    assert [run.active for run in flower.all_runs] == [False, True]
    told = read_events(state.run("demo").progress / "keeper.jsonl")[0]
    assert [(news["run"], news["after"]) for news in told] == [
        (0, None),
        (1, "failed: No heartbeat"),
    ]


def running(flower: Flower) -> None:
    flower.all_runs[-1] = replace(flower.all_runs[-1], status="running")


def test_a_run_whose_process_has_died_is_replaced_before_flower_notices(
    state: State, keeper: Keeper, flower: Flower
):
    state.request(RequestedRun(run="demo", since=0))
    keeper.reconcile(0.0)
    running(flower)
    with run_lock(state.run("demo"), lambda: None):
        for now in range(2, 100, 2):
            keeper.reconcile(float(now))
    assert len(flower.all_runs) == 1
    # From here on no process has the lock on the run's folder.
    for now in range(100, 132, 2):
        keeper.reconcile(float(now))
    assert [run.active for run in flower.all_runs] == [False, True]


def test_a_slow_start_is_waited_for_longer_each_time(state: State, keeper: Keeper, flower: Flower):
    state.request(RequestedRun(run="demo", since=0))
    starts: list[int] = []
    for now in range(0, 400, 2):
        before = len(flower.all_runs)
        keeper.reconcile(float(now))
        if len(flower.all_runs) > before:
            starts.append(now)
            running(flower)
    gaps = [after - before for before, after in pairwise(starts)]
    assert gaps == sorted(gaps)
    assert gaps[-1] > 100


def test_a_keeper_that_was_killed_starts_no_second_run(state: State, flower: Flower):
    state.request(RequestedRun(run="demo", since=0))
    for now in (0.0, 1.0):
        Keeper(state, flower, lambda: b"code").reconcile(now)
    assert len(flower.all_runs) == 1


def test_a_run_that_ends_at_once_is_started_more_and_more_rarely(
    state: State, keeper: Keeper, flower: Flower
):
    state.request(RequestedRun(run="demo", since=0))
    starts: list[int] = []
    for now in range(60):
        before = len(flower.all_runs)
        keeper.reconcile(float(now))
        if len(flower.all_runs) > before:
            starts.append(now)
            flower.finish(before, "failed", "")
    # Each pause twice the one before.
    assert starts == [0, 2, 6, 14, 30]


@pytest.mark.parametrize("event", ["done", "failed"])
def test_a_run_that_ended_is_not_requested_any_more(
    state: State, keeper: Keeper, flower: Flower, event: str
):
    state.request(RequestedRun(run="demo", since=0))
    keeper.reconcile(0.0)
    write_event(state.run("demo").progress, "coordinator", {"event": event, "text": "why"})
    flower.finish(0, "completed", "")
    keeper.reconcile(100.0)
    keeper.reconcile(200.0)
    assert state.requested is None
    assert len(flower.all_runs) == 1


def test_a_run_that_failed_before_it_was_requested_again_is_started(
    state: State, keeper: Keeper, flower: Flower
):
    write_event(state.run("demo").progress, "coordinator", {"event": "failed", "text": "why"})
    told = (state.run("demo").progress / "coordinator.jsonl").stat().st_size
    state.request(RequestedRun(run="demo", since=told))
    keeper.reconcile(0.0)
    assert len(flower.all_runs) == 1


def test_a_run_that_is_to_stop_is_stopped_and_others_are_not(
    state: State, keeper: Keeper, flower: Flower
):
    state.request(RequestedRun(run="demo", since=0))
    keeper.reconcile(0.0)
    flower.all_runs.append(FlowerRun(1, "elsewhere", "running", "", ""))
    state.request(RequestedRun(run="demo", since=0, stop=True))
    keeper.reconcile(2.0)
    assert state.requested is None
    assert [run.active for run in flower.all_runs] == [False, True]


def test_a_newer_request_stays(state: State):
    old, new = RequestedRun(run="demo", since=0), RequestedRun(run="demo", since=7)
    state.request(new)
    state.clear_request(old)
    assert state.requested == new
    state.clear_request(new)
    assert state.requested is None


def test_of_two_who_request_a_run_at_once_the_second_is_refused(state: State):
    first = RequestedRun(run="demo", since=0)
    state.request(first)
    state.request(first.model_copy(update={"stop": True}))
    with pytest.raises(StateError, match=r"^run 'other': found another run, 'demo', that"):
        state.request(RequestedRun(run="other", since=0))
    assert state.requested == first.model_copy(update={"stop": True})


def test_while_the_superlink_is_unavailable_nothing_is_forgotten(
    state: State, keeper: Keeper, flower: Flower
):
    flower.away = True
    enroll(state.registry, site("north"))
    state.request(RequestedRun(run="demo", since=0))
    with pytest.raises(SuperLinkUnavailable):
        keeper.reconcile(0.0)
    flower.away = False
    keeper.reconcile(2.0)
    assert flower.names == ["north"]
    assert len(flower.all_runs) == 1


def test_each_site_is_registered_once(state: State, keeper: Keeper, flower: Flower):
    enroll(state.registry, site("north"))
    for now in (0.0, 20.0):
        keeper.reconcile(now)
    enroll(state.registry, site("south"))
    keeper.reconcile(21.0)
    assert flower.names == ["north", "south"]
    assert [one.node_id for one in enrolled(state.registry).values()] == [100, 101]


def test_sites_are_registered_again_at_a_superlink_that_lost_its_database(
    state: State, keeper: Keeper, flower: Flower
):
    enroll(state.registry, site("north"))
    keeper.reconcile(0.0)
    flower.all_nodes.clear()
    keeper.reconcile(20.0)
    assert flower.names == ["north", "north"]
    assert enrolled(state.registry)["north"].node_id == 101


def test_a_site_that_left_may_not_connect_any_more(state: State, keeper: Keeper, flower: Flower):
    enroll(state.registry, site("north"))
    keeper.reconcile(0.0)
    leave(state.registry, "north")
    keeper.reconcile(20.0)
    assert flower.all_nodes == {}


class Raced(Flower):
    """A SuperLink at which another process registers a site just before we do."""

    def register(self, pem: bytes, name: str) -> int:
        super().register(pem, name)
        raise SuperLinkRefused("Public key already in use")


def test_two_who_register_the_same_site_at_once_both_succeed(state: State):
    enroll(state.registry, site("north"))
    sync_nodes(state, Raced())
    assert enrolled(state.registry)["north"].node_id == 100


def test_a_site_that_flower_refuses_is_an_error(state: State):
    class Refusing(Flower):
        def register(self, pem: bytes, name: str) -> int:
            raise SuperLinkRefused("no")

    enroll(state.registry, site("north"))
    with pytest.raises(SuperLinkRefused):
        sync_nodes(state, Refusing())
