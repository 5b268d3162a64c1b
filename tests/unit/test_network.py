"""Meeting the sites and reading what they send, over an in-process Grid with real messages."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from common.adapter import Adapter, Pair, to_bytes
from common.errors import SiteFailed
from common.exchange import Order, Presence, Update, Work
from common.identity import code_digest
from server import network
from server.accept import Received, Refused
from server.network import Network, meet
from simulation.inprocess import run_in_process

ORDER = Order(
    work=Work.TRAIN, plan="{}", stage=0, round=1, releases=(), active=(), adapter=None, code="c"
)


def in_federation(client: ClientApp, nodes: Sequence[str], body: Callable[[Grid], None]) -> None:
    server = ServerApp()

    @server.main()
    def main(grid: Grid, _context: Context) -> None:  # pyright: ignore[reportUnusedFunction]
        body(grid)

    run_in_process(server, client, [{"name": name} for name in nodes], {})


def sites(code: str | None = None, errors: int = 0) -> ClientApp:
    """Sites that say the name of their node config; each first gives so many errors."""
    client, left = ClientApp(), {"errors": errors}

    @client.query()
    def introduce(message: Message, context: Context) -> Message:  # pyright: ignore[reportUnusedFunction]
        if left["errors"]:
            left["errors"] -= 1
            return Message(Error(code=2), reply_to=message)
        name = str(context.node_config["name"])
        presence = Presence(site=name, code=code or code_digest(), holds=("d",))
        return Message(presence.to_record(), reply_to=message)

    return client


def no_release(_digest: str) -> bytes:
    raise AssertionError("no release is asked for")


def test_every_expected_site_is_met_and_strangers_are_left_alone():
    def body(grid: Grid) -> None:
        met = meet(grid, ["a", "b"], no_release)
        assert sorted(met.nodes) == ["a", "b"]
        assert met.holds == {"a": {"d"}, "b": {"d"}}

    in_federation(sites(), ["b", "stranger", "a"], body)


def test_a_node_that_answers_with_an_error_is_asked_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(network, "AGAIN_S", 0.01)

    def body(grid: Grid) -> None:
        assert list(meet(grid, ["a"], no_release).nodes) == ["a"]

    in_federation(sites(errors=2), ["a"], body)


def test_a_site_that_never_comes_is_named_and_not_waited_for_for_ever():
    def body(grid: Grid) -> None:
        said = r"found no answer from the sites b, c within 0\.05 s, expected a, b, c"
        with pytest.raises(SiteFailed, match=said):
            meet(grid, ["a", "b", "c"], no_release, patience_s=0.05)

    in_federation(sites(), ["a"], body)


def test_a_site_with_other_code_is_named_before_any_work():
    def body(grid: Grid) -> None:
        with pytest.raises(
            SiteFailed, match=f"site a runs code old, the coordinator {code_digest()}"
        ):
            meet(grid, ["a"], no_release)

    in_federation(sites(code="old"), ["a"], body)


def test_two_nodes_cannot_be_one_site():
    def body(grid: Grid) -> None:
        with pytest.raises(SiteFailed, match="two nodes say that they are the site 'a'"):
            meet(grid, ["a", "b"], no_release)

    in_federation(sites(), ["a", "a"], body)


def adapter() -> bytes:
    pair = Pair(np.ones((2, 3), np.float32), np.ones((4, 2), np.float32))
    return to_bytes(Adapter({"layer": pair}, 1.0))


def update(site: str) -> Update:
    return Update(
        order=ORDER.digest, site=site, examples=1, steps=1, loss=0.5, regularizer=0.0,
        adapter=adapter(),
    )  # fmt: skip


def without_header(record: RecordDict) -> RecordDict:
    record["header"] = ConfigRecord({"json": "["})
    return record


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (RecordDict(), "found a message that can't be read (KeyError)"),
        (without_header(update("a").to_record()), "found a message that can't be read (JSON"),
        (update("b").to_record(), "it answered as 'b'"),
    ],
)
def test_an_answer_that_cannot_be_read_is_refused_and_the_run_goes_on(
    record: RecordDict, said: str
):
    client = ClientApp()

    @client.train()
    def train(message: Message, _context: Context) -> Message:  # pyright: ignore[reportUnusedFunction]
        return Message(record, reply_to=message)

    def body(grid: Grid) -> None:
        (node,) = grid.get_node_ids()
        (answer,) = Network(grid, {"a": node}, {"a": set()}, no_release).ask(ORDER, ["a"])
        assert isinstance(answer, Refused)
        assert (answer.site, said in answer.why) == ("a", True), answer.why

    in_federation(client, ["a"], body)


def test_an_answer_is_received_with_what_it_cost():
    client = ClientApp()

    @client.train()
    def train(message: Message, _context: Context) -> Message:  # pyright: ignore[reportUnusedFunction]
        return Message(update("a").to_record(), reply_to=message)

    def body(grid: Grid) -> None:
        (node,) = grid.get_node_ids()
        (answer,) = Network(grid, {"a": node}, {"a": set()}, no_release).ask(ORDER, ["a"])
        assert isinstance(answer, Received)
        assert answer.answer == update("a")
        assert answer.bytes_up > len(adapter())

    in_federation(client, ["a"], body)
