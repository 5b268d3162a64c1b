"""What a plan costs: the sizes of real blobs, and arithmetic redone by hand."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.adapter import to_bytes
from common.errors import ModelError
from common.identity import canonical_json
from common.language_shape import DecoderShape
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.plan_fields import Composition, Precision
from common.tensors import read_header
from cost.geometry import LLAVA_MED, Geometry, TowerShape, read_geometry
from cost.plan import (
    PATHVQA,
    DataAssumptions,
    default_assumptions,
    micro_batch,
    plan_cost,
    questions_and_steps,
)
from cost.sizes import adapter_bytes, blank_adapter, blob_sizes, release_bytes
from cost.step import (
    AttachedAdapters,
    MemorySettings,
    MicroBatch,
    question_operations,
    step_memory,
)
from cost.traffic import PARCEL_BYTES, order_traffic
from server import network
from simulation.hospitals import BASE_MODELS

EMBEDDED = read_geometry(BASE_MODELS["tiny-llava"])
#: Small enough for a calculation on paper.
TOY = Geometry(
    tower=TowerShape(width=2, inner=3, layers=1, heads=1, pixels=4, patch=2),
    decoder=DecoderShape(width=4, inner=6, layers=1, heads=2, kv_heads=1, head=2, vocabulary=10),
)
ASSUMED = DataAssumptions(questions=100, images=50, tokens=16, labels=3)


def plan(**changes: Any) -> Plan:
    """Three stages of two modalities; `changes` take the place of fields."""
    stages = [
        {
            "name": name, "modality": modality, "task": name, "sites": sites, "rounds": 2,
            "local_epochs": 1.5, "learning_rate": 0.1, "batch_size": 8,
        }
        for name, modality, sites in (
            ("one", "ct", ["a", "b"]), ("two", "mr", ["b", "c"]), ("three", "ct", ["a", "c"]),
        )
    ]  # fmt: skip
    document: dict[str, Any] = {
        "name": "p", "seed": 3, "base_model": {"name": "tiny", "sha256": "ab" * 32},
        "method": {"name": "mslora_cr", "rank": 2, "alpha": 2, "active": "all", "contrast": {}},
        "aggregation": "fedavg", "wire": "bf16", "stages": stages, **changes,
    }  # fmt: skip
    return parse_plan(document, "p")


def with_method(**changes: Any) -> Plan:
    return plan(method={**plan().method.model_dump(mode="json"), **changes})


def test_the_7b_has_the_parameters_that_its_checkpoint_lists():
    # model.safetensors.index.json: 15,132,438,528 bytes of 16 bits.
    assert LLAVA_MED.decoder.parameters == 7_241_732_096
    assert LLAVA_MED.projector_parameters == 20_979_712
    assert LLAVA_MED.tower.parameters == 303_507_456
    assert LLAVA_MED.parameters == 15_132_438_528 // 2
    assert LLAVA_MED.image_tokens == 576
    assert LLAVA_MED.decoder.adapter_parameters(64) == 167_772_160
    assert len(LLAVA_MED.decoder.adapted()) == 224


def test_the_embedded_model_has_the_parameters_of_its_file():
    blob = (BASE_MODELS["tiny-llava"] / "model.safetensors").read_bytes()
    found = read_header(lambda start, count: blob[start : start + count], len(blob), "the model")
    shapes = [tensor.shape for tensor in found.tensors.values()]
    assert EMBEDDED.parameters == sum(map(math.prod, shapes))


def test_llava_meds_own_config_is_read_as_the_7b(tmp_path: Path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "llava_mistral", "hidden_size": 4096, "intermediate_size": 14336,'
        ' "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,'
        ' "vocab_size": 32000, "tie_word_embeddings": false}'
    )
    assert read_geometry(tmp_path) == LLAVA_MED


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "No such file"), ("{", "not JSON"), ("[]", "AttributeError"),
        ("{}", "KeyError: 'vision_config'"),
        ('{"vision_config": {}, "text_config": 3}', "KeyError: 'hidden_size'"),
    ],
)  # fmt: skip
def test_a_config_of_something_else_is_refused_by_name(
    tmp_path: Path, text: str | None, found: str
):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=found):
        read_geometry(tmp_path)


@pytest.mark.parametrize("wire", list(Precision))
@pytest.mark.parametrize("rank", [1, 8, 13])
def test_an_adapters_bytes_are_those_of_its_file(wire: Precision, rank: int):
    adapter = blank_adapter(with_method(rank=rank, alpha=1.5), EMBEDDED)
    assert adapter_bytes(adapter, wire) == len(to_bytes(adapter, wire))
    assert sum(p.a.size + p.b.size for p in adapter.pairs.values()) == (
        EMBEDDED.decoder.adapter_parameters(rank)
    )


def test_the_7bs_adapter_takes_no_memory_to_be_weighed():
    adapter = blank_adapter(with_method(rank=64), LLAVA_MED)
    assert all(array.strides == (0, 0) for p in adapter.pairs.values() for array in (p.a, p.b))
    size = adapter_bytes(adapter, Precision.BF16)
    assert 0 < size - 2 * 167_772_160 < 70_000


def test_the_coordinators_parcels_are_as_large_as_ours():
    assert PARCEL_BYTES == network.PARCEL_BYTES


def test_a_step_of_a_toy_is_what_paper_says():
    # 2 rows of 5 tokens, 3 labels each. Linears: q 16, k 8, v 8, o 16, gate, up, down 24 each.
    rows = MicroBatch(questions=2, prefix=4, tail=1, labels=3)
    found = question_operations(
        TOY,
        rows,
        AttachedAdapters(rank=1, earlier=0, composition=Composition.FOLD),
        checkpointed=False,
    )
    linear, low = 120, 8 + 6 + 6 + 8 + 10 + 10 + 10
    attention = 2 * 5 * 5 * 4
    head = 2 * 3 * 4 * 10
    assert found.forward == 2 * 5 * (linear + low) + attention * 2 + head
    # Without the first queries, keys and values, whose inputs (4) need no gradient.
    inputs = linear - 32 + low - 12
    assert found.backward == 2 * 5 * (inputs + low) + attention * 5 + head
    assert found.head == 2 * head
    assert found.prefix + found.tails + found.head == pytest.approx(found.forward + found.backward)
    assert found.projector == 2 * 4 * (2 * 4 + 16)
    # 5 tokens with the class's; 4 patches of 12 numbers.
    assert found.tower == TOY.tower_operations == 2 * 5 * (16 + 12) + 4 * 25 * 2 + 2 * 4 * 24


def test_folded_adapters_cost_no_operation_and_stacked_ones_do():
    rows = MicroBatch(questions=1, prefix=20, tail=10, labels=3)

    def question(earlier: int, hold: Composition) -> float:
        adapters = AttachedAdapters(rank=8, earlier=earlier, composition=hold)
        return question_operations(EMBEDDED, rows, adapters, checkpointed=False).question

    assert (
        question(200, Composition.FOLD)
        == question(0, Composition.FOLD)
        == question(0, Composition.STACK)
    )
    steps = np.diff([question(earlier, Composition.STACK) for earlier in range(5)])
    assert steps[0] > 0
    np.testing.assert_allclose(steps, steps[0])


def test_gradient_checkpointing_pays_memory_with_operations():
    rows = MicroBatch(questions=8, prefix=581, tail=23, labels=7)
    adapters = AttachedAdapters(rank=64, earlier=7, composition=Composition.FOLD)
    plain, again = (
        question_operations(LLAVA_MED, rows, adapters, checkpointed=checkpointed).question
        for checkpointed in (False, True)
    )
    small, large = (
        step_memory(
            LLAVA_MED, rows, adapters, MemorySettings(Precision.BF16, checkpointed), 0
        ).activations
        for checkpointed in (True, False)
    )
    assert 1.3 < again / plain < 1.5
    assert small < large / 8


def test_seven_questions_behind_one_picture_cost_a_fraction():
    adapters = AttachedAdapters(rank=64, earlier=7, composition=Composition.FOLD)
    alone, packed = (
        question_operations(
            LLAVA_MED,
            MicroBatch(questions=24, prefix=581, tail=23, labels=7, together=together),
            adapters,
            checkpointed=False,
        )
        for together in (1.0, 7.6)
    )
    assert 4 < alone.question / packed.question < 7
    assert packed.head == alone.head
    assert packed.prefix == pytest.approx(alone.prefix / 7.6, rel=0.2)


def test_a_plan_that_packs_is_reckoned_as_packed():
    training = {"micro_batch": 8, "gradient_checkpointing": True, "precision": "bf16"}
    alone, together = (
        plan_cost(plan(training={**training, "packing": packing}), LLAVA_MED, "7b", PATHVQA)
        for packing in (False, True)
    )
    for one, other in zip(alone.stages, together.stages, strict=True):
        assert 4 < one.operations.question / other.operations.question < 7
        assert other.memory.activations < one.memory.activations / 3
        assert (other.steps, other.drawn) == (one.steps, one.drawn)


@pytest.mark.parametrize("rule", ["fedavg", "frozen_a"])
def test_a_proximal_term_keeps_a_copy_of_what_trains(rule: str):
    free, near = (
        plan_cost(plan(aggregation=rule, training=training), EMBEDDED, "tiny", ASSUMED).stages[0]
        for training in ({}, {"proximal": 0.1})
    )
    layers = EMBEDDED.decoder.adapted().values()
    trained = sum(2 * (rows + (columns if rule == "fedavg" else 0)) for rows, columns in layers)
    assert near.memory.trained - free.memory.trained == 4 * trained


def test_what_a_fold_holds_does_not_grow_and_a_stack_does():
    rows, setting = (
        MicroBatch(questions=8, prefix=20, tail=10, labels=3),
        MemorySettings(Precision.FP32, False),
    )

    def held(earlier: int, hold: Composition) -> float:
        return step_memory(
            EMBEDDED, rows, AttachedAdapters(rank=8, earlier=earlier, composition=hold), setting, 0
        ).held

    assert [held(k, Composition.FOLD) for k in (0, 1, 200)] == [0, 0, 0]
    assert [held(k, Composition.STACK) for k in (0, 1, 200)] == [
        k * 4 * EMBEDDED.decoder.adapter_parameters(8) for k in (0, 1, 200)
    ]


@pytest.mark.parametrize(
    ("contrast", "adapters"),
    [
        (None, (0, 0, 0)),
        ({}, (0, 1, 2)),
        ({"prototypes": "modality"}, (0, 1, 2)),
        ({"similarity": "attract"}, (0, 0, 1)),
        ({"similarity": "none"}, (0, 0, 0)),
    ],
)
def test_what_is_compared_with_is_in_the_memory(
    contrast: Mapping[str, Any] | None, adapters: tuple[int, ...]
):
    found = plan_cost(with_method(contrast=contrast), EMBEDDED, "embedded", ASSUMED)
    size = 4 * found.adapter
    assert tuple(stage.memory.compared / size for stage in found.stages) == adapters


def test_prototypes_of_modalities_stop_growing_with_the_tasks():
    stages = [
        {**stage, "name": f"{stage['name']}{number}"}
        for number in range(3)
        for stage in plan().model_dump(mode="json")["stages"]
    ]
    grown = plan(
        stages=stages,
        method={**with_method().method.model_dump(), "contrast": {"prototypes": "modality"}},
    )
    found = plan_cost(grown, EMBEDDED, "embedded", ASSUMED)
    compared = [stage.memory.compared / 4 / found.adapter for stage in found.stages]
    assert compared == [0, 1, 2, 2, 2, 2, 2, 2, 2]


def test_steps_are_those_of_the_training_loop():
    one = plan()
    # 1.5 epochs of 100 questions in batches of 8, twice.
    assert questions_and_steps(one, one.stages[0], ASSUMED) == (300, 38)
    shared = plan(stages=[{**one.stages[0].model_dump(mode="json"), "batch": "global"}])
    # Of 8 questions of both sites each takes 4: twice the steps, a smaller micro-batch.
    assert questions_and_steps(shared, shared.stages[0], ASSUMED) == (300, 76)
    assert micro_batch(shared, 0, EMBEDDED, ASSUMED).questions == 4
    idle = plan(method={"name": "zero_shot", "rank": 2, "alpha": 2})
    assert questions_and_steps(idle, idle.stages[0], ASSUMED) == (0, 0)
    assert plan_cost(idle, EMBEDDED, "embedded", ASSUMED).total()["operations"] == 0


def test_earlier_adapters_are_those_that_the_plan_sums():
    def earlier(of: Plan) -> list[int]:
        return [stage.earlier for stage in plan_cost(of, EMBEDDED, "m", ASSUMED).stages]

    assert earlier(with_method(active="all")) == [0, 1, 2]
    assert earlier(with_method(active="same_modality")) == [0, 0, 1]
    assert earlier(with_method(active="none")) == [0, 0, 0]


def test_a_release_goes_to_each_site_once():
    one = plan(evaluation={"earlier": "none", "zero_shot": False})
    sizes = blob_sizes(one, EMBEDDED)
    got: dict[str, int] = {}
    for exchange in order_traffic(one, sizes):
        got[exchange.site] = got.get(exchange.site, 0) + exchange.releases
    # a learns of stage 1 by its scores, so only the second stage's is new to it; c likewise.
    assert got == {"a": sizes.adapter, "b": 0, "c": sizes.adapter}
    again = list(order_traffic(one, sizes))
    assert [x.down for x in order_traffic(one, sizes)] == [x.down for x in again]


def test_an_adapter_that_never_changes_goes_to_each_site_once():
    idle = plan(method={"name": "zero_shot", "rank": 2, "alpha": 2})
    sizes = blob_sizes(idle, EMBEDDED)
    large = [x.site for x in order_traffic(idle, sizes) if x.down > sizes.adapter]
    assert sorted(large) == ["a", "b", "c"]


def test_a_large_bank_goes_to_a_site_parcel_by_parcel():
    one = plan(evaluation={"earlier": "none", "zero_shot": False}, method={
        **plan().method.model_dump(mode="json"), "rank": 64})  # fmt: skip
    sizes = blob_sizes(one, LLAVA_MED)
    first = next(x for x in order_traffic(one, sizes) if x.site == "c" and x.stage == 1)
    # Plan and release are one parcel, and one order goes with them.
    assert first.releases == sizes.adapter
    assert 0 < first.down - sizes.adapter - sizes.plan < 1000
    assert first.up > sizes.adapter


def test_the_banks_bytes_are_its_adapters_and_little_else():
    found = plan_cost(plan(), LLAVA_MED, "7b", ASSUMED)
    for number, stage in enumerate(found.stages, 1):
        assert stage.bank_parameters == number * found.adapter
        assert 0 < stage.bank - number * found.adapter_bytes < number * 30_000


def test_of_all_earlier_adapters_one_layer_is_in_the_machines_memory():
    found = plan_cost(plan(), EMBEDDED, "embedded", ASSUMED)
    each = 4 * plan().method.layout.rank * (EMBEDDED.decoder.width + EMBEDDED.decoder.inner)
    assert [stage.host for stage in found.stages] == [0, each, 2 * each]
    some = plan_cost(with_method(active="same_modality"), EMBEDDED, "embedded", ASSUMED)
    assert [stage.host for stage in some.stages] == [0, 0, each]


def test_what_is_taken_at_once_is_no_more_than_a_batch_has():
    def rows(questions: int, **training: Any) -> float:
        assumed = replace(ASSUMED, questions=questions)
        return micro_batch(plan(training=training), 0, EMBEDDED, assumed).questions

    assert (rows(100), rows(100, micro_batch=3), rows(100, micro_batch=64)) == (8, 3, 8)
    # 1.5 epochs of 6 questions are 9: two steps of 5 and 4; of 2 they are one of 3.
    assert (rows(6), rows(2), rows(6, micro_batch=4)) == (5, 3, 4)


def test_the_questions_and_body_parts_of_a_stage_are_in_its_release():
    told = {"questions": ["is there bone?", "is there air?"], "body_parts": ["CHEST"]}
    stages = plan().model_dump(mode="json")["stages"]
    more = plan(stages=[{**stages[0], **told}, *stages[1:]])
    written = sum(len(canonical_json({name: value})) - 2 for name, value in told.items())
    without, with_them = (
        [*release_bytes(one, EMBEDDED, blob_sizes(one, EMBEDDED))] for one in (plan(), more)
    )
    assert with_them[1:] == without[1:]
    # Written with an indent, for people.
    assert written <= with_them[0] - without[0] < written + 60


def test_the_totals_are_the_sums_of_the_stages():
    found = plan_cost(plan(), EMBEDDED, "embedded", ASSUMED)
    document = found.to_json()
    stages, total = document["stages"], document["total"]
    assert total["down"] == sum(stage["down"] for stage in stages)
    assert total["steps"] == sum(stage["steps"] * stage["sites"] for stage in stages)
    assert total["operations"] == sum(stage["all_operations"] for stage in stages)
    assert total["memory"] == max(stage["memory"]["total"] for stage in stages)
    parts = {name: value for name, value in stages[0]["memory"].items() if name != "total"}
    least = min(parts["logits"], parts["working"])
    assert stages[0]["memory"]["total"] == sum(parts.values()) - least


def test_what_is_assumed_follows_from_the_model():
    assert default_assumptions(LLAVA_MED) is PATHVQA
    assert default_assumptions(EMBEDDED).together == 1.0
    assert PATHVQA.together == pytest.approx(7.6, rel=1e-3)
