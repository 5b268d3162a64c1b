"""What the settings of continual fine-tuning ask for, and the labels of the usual baselines."""

import pytest

from common.methods.clip_adapters import Towers
from common.methods.clip_finetune import ClipFinetune, Distil, Ensemble, Hold
from common.methods.dual_modality import DualModality
from common.methods.primed import Primed
from common.methods.registry import parse_method
from common.plan_fields import Modality, ReferencePin

LAYERS = [(6, 4), (6, 4), (4, 6)]


def made(**fields: object) -> ClipFinetune:
    return ClipFinetune.model_validate({"name": "clip_finetune", **fields})


def test_the_usual_baselines_are_offered_on_both_towers_and_on_one():
    offered = ClipFinetune.comparisons(made(rank=4, alpha=4.0, hold="l2", hold_weight=3.0), 3)
    usual = [
        "finetune", "finetune_seen", "l2", "ewc", "lwf", "zscl", "zscl_l2", "wise_ft",
        "wise_ft_previous",
    ]  # fmt: skip
    lora = [*usual, *(f"{name}_image" for name in usual)]
    assert list(offered) == [*lora, *(f"{name}_all" for name in lora)]
    assert all(one.rank == 4 and one.hold_weight == 3.0 for one in offered.values())
    assert offered["zscl"].ensemble is Ensemble.STEPS and offered["zscl"].hold is Hold.NONE
    assert offered["wise_ft"].trained_share == 0.5
    assert offered["wise_ft_previous"].trained_share == 0.8
    assert all(label == one.label for label, one in offered.items())


def test_beside_primed_they_have_its_layout_and_its_pairs():
    pin = ReferencePin(name="pairs", sha256="ab" * 32)
    own = Primed(name="primed", rank=8, alpha=4.0, reference=pin, reference_batch=8)
    zscl = ClipFinetune.comparisons(own, 3)["zscl"]
    assert (zscl.rank, zscl.alpha, zscl.reference_pairs, zscl.reference) == (8, 4.0, 8, pin)
    other = DualModality(name="dual_modality")
    assert ClipFinetune.comparisons(other, 3)["finetune"] == made()


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"distil": "zscl"}, "zscl_unaveraged"),
        ({"distil": "lwf", "train_scope": "seen", "towers": "image"}, "lwf_seen_image"),
        ({"ensemble": "steps"}, "averaged"),
        ({"hold": "ewc", "distil": "lwf"}, "lwf_ewc"),
        ({"hold": "l2", "ensemble": "zero_shot", "towers": "image"}, "l2_wise_ft_image"),
    ],
)
def test_other_switches_have_labels_of_their_own(fields: dict[str, str], label: str):
    method = parse_method({"name": "clip_finetune", **fields})
    assert method.label == label


def test_training_among_a_stages_own_classes_is_no_field_of_a_plan():
    """So that plans from before there was the field keep their digest."""
    assert "train_scope" not in made().model_dump()
    assert made(train_scope="seen").model_dump()["train_scope"] == "seen"


def test_attention_of_both_towers_or_of_the_images_is_adapted():
    layer = "encoder.layers.3.self_attn.v_proj.weight"
    assert made().adapts(f"text_model.{layer}") and made().adapts(f"vision_model.{layer}")
    image = made(towers="image")
    assert not image.adapts(f"text_model.{layer}") and image.adapts(f"vision_model.{layer}")
    assert not made().adapts("vision_model.encoder.layers.3.mlp.fc1.weight")
    assert image.adapted_towers is Towers.IMAGE


def test_only_ewc_has_arrays_of_its_layers_and_only_zscl_pairs():
    assert made().layer_arrays(LAYERS) == {}
    assert made(hold="ewc").layer_arrays(LAYERS) == {
        "fisher.outputs": (1, 16), "fisher.outputs.weight": (1,),
        "fisher.inputs": (1, 14), "fisher.inputs.weight": (1,),
    }  # fmt: skip
    found = [made(distil=name).reference_pairs for name in Distil]
    assert found == [0, 0, 64]
    assert [made(distil=name).texts_of_a_step([2, 3, 4], 1) for name in Distil] == [3, 5, 3]
    assert made(train_scope="seen").texts_of_a_step([2, 3, 4], 1) == 5
    assert [made(hold=name).regularizes_factors for name in Hold] == [False, True, True]
    assert made(ensemble="previous").regularizes_factors
    kept = [made(hold=name, rank=2).regularizer_parameters([], 2, LAYERS) for name in Hold]
    assert kept == [0, 60, 60 + 2 * 30]


def test_the_admin_reads_what_beside_the_lora_leaves():
    assert made().notes(2) == []
    (of_ewc,) = made(hold="ewc").notes(2)
    assert "Fisher information leaves" in of_ewc and "policy.images" in of_ewc
    (of_zscl,) = made(distil="zscl").notes(2)
    assert "`reference` of its site file" in of_zscl
    assert made(distil="lwf", towers="image").summary() == (
        "clip_finetune (lwf_image), rank 16, LoRA of the image tower"
    )
    assert made().answering_stages([Modality.CT, Modality.MR], 0, 1) == (1,)


def test_on_all_parameters_of_the_images_their_tower_alone_changes():
    weights = {"vision_model.x": (2, 3), "visual_projection.weight": (3, 3), "text_model.y": (4,)}
    image = made(towers="image", parameters="all")
    assert image.weight_arrays(weights) == {
        "delta.vision_model.x": (2, 3), "delta.visual_projection.weight": (3, 3),
    }  # fmt: skip
    assert made().weight_arrays(weights) == {}
    ewc = made(hold="ewc", parameters="all")
    assert ewc.layer_arrays(LAYERS) == {}
    beside = {n: s for n, s in ewc.weight_arrays(weights).items() if not n.startswith("delta.")}
    assert beside == {"fisher.diagonal": (1, 19), "fisher.diagonal.weight": (1,)}
    assert ewc.whole_weight_copies(2) == 3 and made().whole_weight_copies(2) == 0
    assert made(distil="zscl", ensemble="steps").whole_weight_copies(2) == 1


def test_a_stage_begins_with_the_release_unless_that_is_a_mean_or_has_more():
    assert not made().begins_with_release
    assert made(parameters="all").begins_with_release
    assert not made(parameters="all", ensemble="zero_shot").begins_with_release
    assert not made(parameters="all", hold="ewc").begins_with_release
