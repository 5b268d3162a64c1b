"""Sites that train nothing: each answers every order at once with a made-up adapter.

They use Flower's fleet protocol as a SuperNode does (flwr 1.42, `http_request_response`),
without a model, a ClientApp's process or a trainer, so the cost of a round is that of the
coordinator and the wire. They take turns, so that one site's adapters are in memory at a time.

Run as `python -m benchmarks.canned_sites SETTINGS`, a JSON file (`CannedSettings`).
"""

import sys
import threading
import time
from pathlib import Path

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supernode.fleet_http_connection import http_request_response
from pydantic import BaseModel

from client.site.keys import load_key
from common.adapter import Adapter, Pair, arrays, from_bytes, to_bytes
from common.code_digest import code_digest
from common.exchange import Delivery, Lacks, Order, Presence, Scores, Update
from common.plan.plan import Metric
from common.plan_fields import Precision
from common.tensors import Array
from common.work import Work

#: (outputs, inputs) of the linear layers of one block of the 7B's language model (Mistral).
BLOCK = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
RANK = 64
IDLE_S = 0.5


class CannedSettings(BaseModel, extra="forbid"):
    """Where the sites connect to, and who they are.

    Attributes:
        address: HOST:PORT of the coordinator, or of a line that leads to it.
        ca: the coordinator's certificate authority.
        keys: each site's private node key, by the site's name.
        blocks: transformer blocks of the adapter; one is 10.5 MB.
    """

    address: str
    ca: Path
    keys: dict[str, Path]
    blocks: int


def adapter_bytes(blocks: int, site: int) -> bytes:
    """Return an adapter in bf16, another for every `site`: Flower sends no equal chunk twice."""
    pairs: dict[str, Pair] = {}
    random = np.random.default_rng(site)
    for number in range(blocks):
        for name, (outputs, inputs) in BLOCK.items():
            pair = Pair(_factor(random, RANK, inputs), _factor(random, outputs, RANK))
            pairs[f"model.language_model.layers.{number}.{name}"] = pair
    return to_bytes(Adapter(pairs, scale=1.0), Precision.BF16)


def _factor(random: np.random.Generator, rows: int, columns: int) -> Array:
    return random.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.01)


class _CannedSite:
    """One site: the blobs that it has, and its canned answer."""

    def __init__(self, name: str, number: int, blocks: int) -> None:
        self._name = name
        self._number = number
        self._blocks = blocks
        self._holds: set[str] = set()

    def answer(self, message: Message) -> RecordDict:
        """Return the site's reply."""
        if message.metadata.message_type == "query":
            held = tuple(sorted(self._holds))
            return Presence(site=self._name, code=code_digest(), holds=held).to_record()
        if "arrays" in message.content.array_records:
            return self._reply_to_fedavg(message.content)
        delivery = Delivery.from_record(message.content)
        self._holds |= delivery.blobs.keys()
        order = delivery.order
        missing = tuple(name for name in order.needs if name not in self._holds)
        if missing:
            return Lacks(order=order.digest, site=self._name, digests=missing).to_record()
        return self._update(order) if order.work is Work.TRAIN else self._scores(order)

    def _update(self, order: Order) -> RecordDict:
        return Update(
            order=order.digest,
            site=self._name,
            examples=100 + self._number,
            steps=1,
            loss=1.0,
            regularizer=0.0,
            adapter=self._learned(order.round),
        ).to_record()

    def _learned(self, round_number: int) -> bytes:
        return adapter_bytes(self._blocks, 1000 * round_number + self._number)

    def _reply_to_fedavg(self, asked: RecordDict) -> RecordDict:
        """Reply to Flower's own strategy with the same numbers."""
        number = int(str(asked.config_records["config"]["server-round"]))
        named = arrays(from_bytes(self._learned(number), self._name))
        content = {name: FlowerArray(value) for name, value in named.items()}
        metrics = MetricRecord({"num-examples": 100 + self._number})
        return RecordDict({"arrays": ArrayRecord(content), "metrics": metrics})

    def _scores(self, order: Order) -> RecordDict:
        metrics = {str(metric): 0.5 for metric in Metric}
        return Scores(
            order=order.digest, site=self._name, questions=2, metrics=metrics, majority=metrics
        ).to_record()


def serve(canned: CannedSettings, name: str, number: int, turn: threading.Lock) -> None:
    """Answer as this site, until the process ends."""
    key = load_key(canned.keys[name])
    site = _CannedSite(name, number, canned.blocks)
    with http_request_response(
        canned.address, False, canned.ca.read_bytes(), (key, key.public_key())
    ) as connection:
        _, receive, send, _, _, pull, push, confirm = connection
        while True:
            received = receive()
            if received is None:
                time.sleep(IDLE_S)
                continue
            with turn:
                message, tree = received
                run = message.metadata.run_id
                contents = pull_objects(_ids(tree), lambda name, run=run: pull(run, name))
                confirm(run, tree.object_id)
                reply = Message(site.answer(_inflated(tree, contents)), reply_to=message)
                with no_object_id_recompute():
                    reply.metadata.__dict__["_message_id"] = reply.object_id
                    wanted, session = send(reply, get_object_tree(reply), 0.0)
                    for name_, part in get_all_nested_objects(reply).items():
                        if name_ in wanted:
                            push(run, session, name_, part.deflate())
                del reply, contents, message


def _ids(tree: ObjectTree) -> list[str]:
    return [part.object_id for part in iterate_object_tree(tree)]


def _inflated(tree: ObjectTree, contents: dict[str, bytes]) -> Message:
    message = inflate_object_from_contents(tree.object_id, contents)
    assert isinstance(message, Message)
    return message


def main() -> None:
    """Run all sites of the settings, each in a thread, until the process is ended."""
    canned = CannedSettings.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    turn = threading.Lock()
    threads = [
        threading.Thread(target=serve, args=(canned, name, number, turn), daemon=True)
        for number, name in enumerate(sorted(canned.keys))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
