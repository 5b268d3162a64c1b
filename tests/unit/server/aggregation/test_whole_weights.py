"""Changes of whole weights in a round: what a site may not send, their mean, and the bounds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.adapter import Adapter, AdapterSource, Pair, to_bytes
from common.methods.interface import AdapterLayout
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.plan.robustness import Robustness
from common.rules.interface import Factor
from common.rules.registry import rule_named, rules
from common.tensors import Array
from server.aggregation.aggregate import SiteUpdate
from server.aggregation.compatibility import TrainedPart, incompatible_updates
from server.aggregation.influence import RoundContext, weigh
from tests.unit.server.aggregation.aggregated import aggregate
from tests.unit.small_round import document, journal, run_context

LAYOUT = AdapterLayout(rank=1, alpha=1.0, deltas=True)
LORA = Adapter({"layer": Pair(np.ones((1, 3), np.float32), np.ones((4, 1), np.float32))}, 1.0)


def changes(value: float, **more: Array) -> Adapter:
    norm = np.full((4,), value / 2, np.float32)
    extras = {"delta.w.weight": np.full((4, 3), value, np.float32), "delta.w.bias": norm, **more}
    return Adapter({}, 1.0, extras)


def faults(update: Adapter, ordered: Adapter | None, layout: AdapterLayout = LAYOUT) -> str | None:
    updates: dict[str, AdapterSource] = {"a": update, "b": changes(1), "c": changes(2)}
    return incompatible_updates(updates, ordered, layout, TrainedPart(Factor.BOTH)).get("a")


ADDED = changes(1, **{"delta.other": np.ones(2, np.float32)})
MISSING = replace(changes(1), extras={"delta.w.weight": changes(1).extras["delta.w.weight"]})
WIDE = changes(1, **{"delta.w.bias": np.ones(5, np.float32)})


@pytest.mark.parametrize("ordered", [None, changes(0.5)], ids=["first", "later"])
@pytest.mark.parametrize(
    ("update", "said"),
    [
        (ADDED, "extras.delta.other: found the shape (2,), expected nothing"),
        (MISSING, "extras.delta.w.bias: found nothing, expected the shape (4,)"),
        (WIDE, "extras.delta.w.bias: found the shape (5,), expected the shape (4,)"),
        (LORA, "layer: found low-rank factors, expected changes of whole weights"),
        (replace(changes(1), scale=3.0), "scale: found 3.0, expected 1.0"),
        (Adapter({}, 1.0), "found no change of a weight, expected those of all that train"),
    ],
)
def test_a_site_can_neither_add_nor_leave_out_an_array(
    update: Adapter, said: str, ordered: Adapter | None
):
    assert faults(update, ordered) == said
    assert faults(changes(3), ordered) is None


def test_where_factors_train_no_whole_weight_changes():
    updates: dict[str, AdapterSource] = {"a": changes(1), "b": LORA, "c": LORA}
    layout = AdapterLayout(rank=1, alpha=1.0)
    found = incompatible_updates(updates, None, layout, TrainedPart(Factor.BOTH))
    assert found == {
        "a": "extras.delta.w.bias: found the change of a whole weight, expected low-rank factors"
    }


@pytest.mark.parametrize("name", ["fedavg", "svd", "rotated"])
def test_every_rule_that_merges_them_is_the_mean_by_examples(name: str):
    updates = [SiteUpdate("a", 1, changes(1)), SiteUpdate("b", 3, changes(5))]
    found = aggregate(rule_named(name), updates, changes(0.5), 1)
    assert found.error == 0.0
    np.testing.assert_array_equal(found.adapter.extras["delta.w.weight"], np.full((4, 3), 4.0))
    np.testing.assert_array_equal(found.adapter.extras["delta.w.bias"], np.full(4, 2.0))


def test_a_robust_rule_merges_them_without_the_liar():
    rule = replace(rule_named("median"), liars=1)
    updates = [SiteUpdate(s, 1, changes(v)) for s, v in (("a", 1), ("b", 1.5), ("c", 900))]
    found = aggregate(rule, updates, None, 1)
    np.testing.assert_array_equal(found.adapter.extras["delta.w.weight"], np.full((4, 3), 1.5))


def test_the_bounds_are_on_the_change_since_the_stage_began():
    """With the release known as the start, what earlier stages have learned is not scaled away."""
    start = changes(10)
    updates = {"a": changes(10.1), "b": changes(10.1), "c": changes(11.0)}
    robustness = Robustness.model_validate({"clip": 2.0})
    context = RoundContext(
        rule=rule_named("fedavg"), robustness=robustness, start=start, learning_rate=1e-4,
        last=None, seed=1,
    )  # fmt: skip
    weighed = weigh(dict(updates), dict.fromkeys(updates, 5), context)
    assert weighed.influences["a"].scaled == 1.0
    assert weighed.influences["c"].scaled == pytest.approx(0.2, rel=1e-3)
    counted = {one.site: one.adapter.extra("delta.w.bias")[0] for one in weighed.updates}
    assert counted["c"] == pytest.approx(5 + 0.1, rel=1e-3)


def plan_of(parameters: str, rule: str = "fedavg") -> Plan:
    stage = {**document()["stages"][0], "classes": ["red", "skin"]}
    second = {**stage, "name": "two", "classes": ["blue", "green"]}
    method = {"name": "clip_finetune", "parameters": parameters}
    given = {**document(), "method": method, "aggregation": rule, "stages": [stage, second]}
    return parse_plan(given, "p")


def test_the_coordinator_has_the_release_that_a_stage_begins_with(tmp_path: Path):
    for parameters, known in (("all", True), ("lora", False)):
        plan, root = plan_of(parameters), tmp_path / parameters
        folder = root / "bank" / "000-one"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(to_bytes(changes(7)))
        run = replace(run_context(journal(root, plan), of=plan)[0], bank=root / "bank")
        assert run.stage_start(0) is None
        begin = run.stage_start(1)
        assert (begin is not None) is known
        assert begin is None or begin.extra("delta.w.bias").tolist() == [3.5] * 4


def test_a_rule_of_factors_is_refused():
    possible = {name for name, rule in rules().items() if rule.merges_whole_weights}
    assert possible == {"fedavg", "svd", "rotated", "krum", "median", "trimmed_mean"}
    for rule in rules().keys() - possible:
        plan_of("lora", rule)
        with pytest.raises(Exception, match=f"aggregation: found '{rule}' with the method 'finet"):
            plan_of("all", rule)
