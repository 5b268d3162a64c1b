"""What PRIMED's settings ask for, and the labels of its ablation."""

from common.methods.mslora_cr import MSLoRACR
from common.methods.primed import DistillationTeacher, Formulas, Guard, Primed, Transfer
from common.methods.registry import parse_method
from common.plan_fields import Modality


def test_each_switch_of_the_ablation_is_offered_one_at_a_time():
    own = Primed(name="primed", rank=4, alpha=4.0)
    offered = Primed.comparisons(own, 3)
    switches = [
        "primed", "primed_initial", "primed_mean_teacher", "primed_image", "primed_text",
        "primed_ewc", "primed_l2", "primed_unguarded", "primed_printed",
    ]  # fmt: skip
    assert list(offered) == [*switches, *(f"{name}_all" for name in switches)]
    assert all(settings.rank == 4 for settings in offered.values())
    assert offered["primed_unguarded"].guard is Guard.NONE
    both = Primed(name="primed", teacher=DistillationTeacher.INITIAL, formulas=Formulas.PRINTED)
    assert both.label == "primed_initial_printed"
    assert both.transfer is Transfer.BOTH


def test_without_an_own_one_it_is_offered_by_default():
    other = MSLoRACR.model_validate({"name": "mslora_cr", "rank": 2, "alpha": 2, "contrast": None})
    assert Primed.comparisons(other, 3)["primed"] == Primed(name="primed")


def test_it_adapts_attention_in_both_towers_and_answers_with_the_latest_release():
    method = parse_method({"name": "primed"})
    assert isinstance(method, Primed)
    for tower in ("vision_model", "text_model"):
        layer = f"{tower}.encoder.layers.3"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            assert method.adapts(f"{layer}.self_attn.{part}.weight")
        assert not method.adapts(f"{layer}.mlp.fc1.weight")
    modalities = (Modality.CT, Modality.MR)
    assert method.answering_stages(modalities, 0, 1) == (1,)
    assert method.frozen_stages(modalities, 1) == ()


def test_the_admin_reads_where_the_pairs_are_from():
    (told,) = Primed(name="primed").notes(1)
    assert "`reference` of its site file" in told and "from the plan alone" in told
    pinned = parse_method({"name": "primed", "reference": {"name": "pairs", "sha256": "ab" * 32}})
    assert "list abababababababab," in pinned.notes(1)[0]


WEIGHTS = {
    "vision_model.post_layernorm.bias": (6,), "text_model.embeddings.token.weight": (9, 4),
    "visual_projection.weight": (5, 6), "text_projection.weight": (5, 4), "logit_scale": (),
}  # fmt: skip


def test_on_all_parameters_there_is_a_change_of_every_weight_but_the_scale():
    method = parse_method({"name": "primed", "parameters": "all"})
    assert not method.adapts("vision_model.encoder.layers.3.self_attn.q_proj.weight")
    assert method.weight_arrays(WEIGHTS) == {
        f"delta.{name}": shape for name, shape in WEIGHTS.items() if name != "logit_scale"
    }
    assert method.layout.deltas and method.layout.scale == 1.0
    assert method.summary().startswith("primed_all, all weights of both towers")
    assert "the whole model, both towers (parameters: all)" in method.notes(1)[0]
    copies = [Primed(name="primed", guard=guard).whole_weight_copies(0) for guard in Guard]
    assert copies == [3, 3, 2, 1]


def test_a_plan_on_lora_does_not_have_the_field():
    given = {"name": "primed", "rank": 4}
    assert (
        parse_method(given).model_dump()
        == parse_method({**given, "parameters": "lora"}).model_dump()
    )
    assert "parameters" not in Primed(name="primed").model_dump(mode="json")
    whole = Primed.model_validate({"name": "primed", "parameters": "all"})
    assert whole.model_dump(mode="json")["parameters"] == "all"
    assert Primed.model_validate_json(whole.model_dump_json()) == whole
