"""The formulas of dual-modality adaptation: recomputed with loops in fp64, and their gradients."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from client.inference.branches import by_base_prior, by_entropy, by_prototype
from client.methods.dual_modality import class_loss, prompt_distance, separation_from_old
from common.methods.dual_modality import Decide, DualModality, Reuse
from common.methods.registry import parse_method

SCALE = 5.0


def unit(rows: int, seed: int, width: int = 3) -> Tensor:
    drawn = np.random.default_rng(seed).standard_normal((rows, width))
    return torch.tensor(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), requires_grad=True)


def log_p(logits: Sequence[float]) -> list[float]:
    total = math.log(math.fsum(math.exp(one) for one in logits))
    return [one - total for one in logits]


def dot(a: Tensor, b: Tensor) -> float:
    return math.fsum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def entropy_of_labels(images: Tensor, texts: Sequence[Tensor], labels: Sequence[int]) -> float:
    rows = [log_p([SCALE * dot(image, text) for text in texts]) for image in images]
    return -math.fsum(row[label] for row, label in zip(rows, labels, strict=True)) / len(labels)


IMAGES, TEXTS, OLD = unit(4, 1), unit(3, 2), unit(2, 3)
LABELS = torch.tensor([0, 2, 1, 2])


def test_the_cross_entropy_is_that_of_each_image_among_the_classes():
    found = class_loss(IMAGES, TEXTS, LABELS, SCALE)
    assert found.item() == pytest.approx(entropy_of_labels(IMAGES, [*TEXTS], LABELS.tolist()))
    assert torch.autograd.gradcheck(lambda f, g: class_loss(f, g, LABELS, SCALE), (IMAGES, TEXTS))


def test_the_separation_from_old_classes_trains_the_stages_prompts_alone():
    found = separation_from_old(IMAGES, TEXTS, OLD.detach(), LABELS, SCALE)
    shifted = [label + 2 for label in LABELS.tolist()]
    assert found.item() == pytest.approx(entropy_of_labels(IMAGES, [*OLD, *TEXTS], shifted))
    of_images, of_texts = torch.autograd.grad(found, (IMAGES, TEXTS), allow_unused=True)
    assert of_images is None and of_texts.abs().max() > 0

    def of_prompts(texts: Tensor) -> Tensor:
        return separation_from_old(IMAGES, texts, OLD.detach(), LABELS, SCALE)

    assert torch.autograd.gradcheck(of_prompts, (TEXTS,))


@pytest.mark.parametrize("margin", [-0.5, 0.0, 0.3])
def test_the_distance_is_the_mean_over_pairs_of_a_new_class_and_any_other(margin: float):
    every = [*OLD, *TEXTS]
    pairs = [
        max(0.0, dot(TEXTS[c], other) - margin)
        for c in range(3)
        for place, other in enumerate(every)
        if place != c + 2
    ]
    assert len(pairs) == 3 * 4
    found = prompt_distance(TEXTS, OLD.detach(), margin)
    assert found.item() == pytest.approx(math.fsum(pairs) / len(pairs))
    assert torch.autograd.gradcheck(lambda g: prompt_distance(g, OLD.detach(), margin), (TEXTS,))


def test_one_class_without_others_is_at_no_distance():
    alone = unit(1, 4)
    found = prompt_distance(alone, OLD[:0].detach(), 0.0)
    found.backward()
    assert found.item() == 0.0 and alone.grad is not None and not alone.grad.any()


BASE = torch.tensor(np.random.default_rng(7).standard_normal((5, 5)))
OWN = [
    torch.tensor(np.random.default_rng(8 + i).standard_normal((5, n))) for i, n in enumerate((2, 3))
]


def test_the_base_prior_is_the_tasks_probability_times_the_classes_within_it():
    found = by_base_prior(BASE, OWN)
    for row in range(5):
        p_0 = [math.exp(one) for one in log_p(BASE[row].tolist())]
        by_task = (sum(p_0[:2]), sum(p_0[2:]))
        expected = [
            math.log(by_task[task]) + value
            for task, logits in enumerate(OWN)
            for value in log_p(logits[row].tolist())
        ]
        assert found[row].tolist() == pytest.approx(expected)
        # It is a distribution over all classes.
        assert sum(map(math.exp, expected)) == pytest.approx(1.0)


def test_the_branch_of_least_entropy_decides_over_all_classes():
    logits = [torch.tensor(np.random.default_rng(i).standard_normal((6, 4))) for i in range(3)]
    found = by_entropy(logits)
    for row in range(6):
        ps = [log_p(one[row].tolist()) for one in logits]
        entropies = [-sum(math.exp(p) * p for p in one) for one in ps]
        assert found[row].tolist() == pytest.approx(ps[entropies.index(min(entropies))])


def test_told_the_task_the_base_prior_and_entropy_order_its_classes_as_own_max_does():
    # One branch; configs/experiments has one of them for all three.
    logits = OWN[1]
    for found in (by_base_prior(BASE[:, 2:], [logits]), by_entropy([logits])):
        assert found.argsort(1).tolist() == logits.argsort(1).tolist()


def test_prototypes_are_added_with_their_weight_or_decide_alone():
    f, g, mu = [unit(2, 1), unit(2, 2)], [unit(2, 3), unit(1, 4)], unit(2, 5)
    both = by_prototype(f, g, [mu, None], 2.0)
    alone = by_prototype(f, g, [mu, None], None)
    for row in range(2):
        to_mean = [dot(f[0][row], one) for one in mu]
        to_text = [dot(f[0][row], one) for one in g[0]]
        # The second branch has no mean.
        assert both[row].tolist() == pytest.approx(
            [*(t + 2 * m for t, m in zip(to_text, to_mean, strict=True)), dot(f[1][row], g[1][0])]
        )
        assert alone[row].tolist() == pytest.approx([*to_mean, 0.0])


def test_the_settings_are_the_authors_and_every_reading_can_be_compared():
    plain = parse_method({"name": "dual_modality"})
    assert isinstance(plain, DualModality)
    assert (plain.rank, plain.layout.scale, plain.prompt_length) == (24, 1 / 24, 4)
    assert plain.label == "dual_modality" and plain.needs_classes and not plain.routable
    offered = DualModality.comparisons(plain, 4)
    assert len(offered) == len(Reuse) * len(Decide)
    assert {(one.reuse, one.decide) for one in offered.values()} == {
        (reuse, decide) for reuse in Reuse for decide in Decide
    }
    assert offered["dual_modality"] == plain
    wide = parse_method({"name": "dual_modality", "rank": 2, "margin": 0.5})
    assert DualModality.comparisons(wide, 4)["dual_modality_distance_entropy"].rank == 2
    # The plain name is the plan's own, whichever way it decides.
    own = parse_method({"name": "dual_modality", "decide": "prototype"})
    found = DualModality.comparisons(own, 4)
    assert found["dual_modality"] == own
    assert found["dual_modality_prompts_own_max"] == plain


@pytest.mark.parametrize(
    ("weight", "adapted"),
    [
        ("vision_model.encoder.layers.11.self_attn.k_proj.weight", True),
        ("vision_model.encoder.layers.0.self_attn.v_proj.weight", True),
        ("vision_model.encoder.layers.0.self_attn.q_proj.weight", False),
        ("vision_model.encoder.layers.0.self_attn.k_proj.bias", False),
        ("text_model.encoder.layers.0.self_attn.k_proj.weight", False),
        ("model.vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.weight", False),
    ],
)
def test_keys_and_values_of_the_image_tower_are_adapted(weight: str, adapted: bool):
    assert DualModality(name="dual_modality").adapts(weight) is adapted


def test_clip_b_16_has_the_authors_number_of_parameters_a_task_and_a_class():
    settings = DualModality(name="dual_modality")
    assert settings.adapter_parameters([(768, 768)] * 24) == 884_736
    rows = {"prompts": (4, 512), "prompts.weight": ()}
    assert settings.class_arrays(512, 640) == rows
    told = settings.model_copy(update={"decide": Decide.PROTOTYPE})
    assert told.class_arrays(512, 640) == {**rows, "means": (640,), "means.weight": ()}
    assert "mean" not in settings.notes(1)[0] and "of 50" not in " ".join(settings.notes(1))
    assert "fewer than 50 different images" in told.notes(1)[1]
