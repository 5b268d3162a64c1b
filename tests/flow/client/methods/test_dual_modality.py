"""Dual-modality adaptation on a tiny CLIP, each part of it by itself."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from client.backbones.registry import load_backbone
from client.methods import dual_modality as of
from client.methods.clip_recipe import clip_of
from client.methods.interface import Assignment
from client.training.optimizer import LocalOptimizer
from common.adapter import Adapter
from common.errors import ModelError, SiteFailed
from common.partial_adapter import AdapterPart, part_of, three_factors
from common.plan.file import parse_plan
from common.plan_fields import Composition, Precision
from simulation.hospitals import BASE_MODELS
from tests.flow.client.methods.two_class_stages import (
    CLASSES,
    assignment,
    document,
    examples,
    plan_of,
    write_stages,
)
from tests.flow.clip_run import copied


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stages(tmp_path_factory.mktemp("clip"))


def some_branch(given: Assignment, seed: int) -> Adapter:
    """A branch as if trained: no factor and no prompt is what a stage starts with."""
    torch.set_num_threads(1)
    begin, rng = of.start(given, ()), np.random.default_rng(seed)
    pairs = {
        name: replace(pair, b=rng.normal(0, 0.3, pair.b.shape).astype(np.float32))
        for name, pair in begin.pairs.items()
    }
    extras = {
        name: (value + rng.normal(0, 0.3, value.shape)).astype(np.float32)
        for name, value in begin.extras.items()
    }
    return replace(begin, pairs=pairs, extras=extras)


def test_a_stage_starts_the_same_everywhere_near_the_words_and_changes_nothing(folder: Path):
    given = assignment(folder, plan_of(folder))
    first, second = of.start(given, ()), of.start(replace(given, site="a"), examples(folder, 0))
    assert first.extras["prompts"].tobytes() == second.extras["prompts"].tobytes()
    words = clip_of(given).word_embeddings("a photo of a red.", 4).numpy()
    noise = first.extras["prompts"] - words
    assert 0.01 < noise.std() < 0.03 and abs(noise.mean()) < 0.01
    assert not any(pair.b.any() for pair in first.pairs.values())
    assert not first.extras["prompts.weight"].any()


def test_a_class_without_examples_goes_back_as_it_came_with_weight_zero(folder: Path):
    given = assignment(folder, plan_of(folder))
    begin = some_branch(given, 3)
    trained, result = of.train(given, begin, examples(folder, 0, "b"), lambda _: None)
    rows, before = trained.extras["prompts"], begin.extras["prompts"]
    assert rows[1].tobytes() == before[1].tobytes() and not np.array_equal(rows[0], before[0])
    assert trained.extras["prompts.weight"].tolist() == [6.0, 0.0]
    assert any(not np.array_equal(trained.pairs[n].b, begin.pairs[n].b) for n in begin.pairs)
    assert result.steps == 3 and np.isfinite(result.loss)
    # A start is not trained in place.
    assert before.tobytes() == some_branch(given, 3).extras["prompts"].tobytes()


def gradients(folder: Path, reuse: str) -> tuple[float, torch.Tensor, torch.Tensor]:
    """The loss of stage 2 on all its examples, and its gradients of prompts and of one B."""
    plan = plan_of(folder, reuse=reuse, margin=0.1)
    old = some_branch(assignment(folder, plan), 1)
    given = assignment(folder, plan, 1, bank={0: old})
    begin, model = some_branch(given, 2), clip_of(given)
    model.adapted.freeze_adapters([], Composition.FOLD)
    model.adapted.attach(begin, plan.rule.trained_factors(1))
    asked = examples(folder, 1)
    prompts = of.StagePrompts(
        model, CLASSES[1], begin.extras["prompts"], torch.tensor([True, True])
    )
    settings = plan.method
    assert isinstance(settings, of.DualModality)
    texts = of.earlier_texts(given, model)
    loss = of.StageLoss(model, prompts, texts, settings)
    labels = torch.tensor(of.class_labels(asked, CLASSES[1], "t"))
    found = loss(model.pixel_values([one.image for one in asked]), labels)
    (_, b) = next(iter(model.adapted.attached_pairs().values()))
    of_prompts, of_b = torch.autograd.grad(found, (prompts.trained, b))
    return found.item(), of_prompts, of_b


def test_each_reuse_changes_the_gradient_of_what_it_should(folder: Path):
    none, prompts, distance, negatives = (
        gradients(folder, name) for name in ("none", "prompts", "distance", "negatives")
    )
    # `prompts` and `distance` leave the LoRA's gradient alone, to the last bits of a sum.
    for added in (prompts, distance):
        torch.testing.assert_close(added[2], none[2], rtol=1e-4, atol=1e-7)
        assert added[0] > none[0]
        assert (added[1] - none[1]).abs().max() > 1e-4
    assert (negatives[2] - none[2]).abs().max() > 1e-4 and negatives[0] > none[0]


@pytest.mark.parametrize("decide", ["base_prior", "prototype", "entropy", "own_max"])
def test_answers_come_from_all_branches_by_the_rule(folder: Path, decide: str):
    plan = plan_of(folder, decide=decide)
    given = assignment(folder, plan)
    branches = [some_branch(given, 1), some_branch(replace(given, stage=1), 2)]
    given = replace(given, bank=dict(enumerate(branches)), round=0)
    asked = examples(folder, 0)[:3]
    found = of.answer(given, asked)
    model, names = clip_of(given), [*CLASSES[0], *CLASSES[1]]
    pixels = model.pixel_values([one.image for one in asked])
    model.adapted.freeze_adapters([], Composition.FOLD)
    scale, texts = model.logit_scale, []
    for names_of, branch in zip(CLASSES, branches, strict=True):
        prompts = torch.tensor(branch.extras["prompts"])
        texts.append(model.prompted_embeddings(prompts, [f"a photo of a {n}." for n in names_of]))
    plain = model.text_embeddings([f"a photo of a {name}." for name in names])
    with torch.no_grad():
        base = model.image_embeddings(pixels)
        features: list[torch.Tensor] = []
        for branch in branches:
            model.adapted.attach(replace(branch, extras={}), plan.rule.trained_factors(1))
            features.append(model.image_embeddings(pixels))
            model.adapted.detach()
    for row, said in enumerate(found):
        cosines = [features[i][row] @ texts[i].T for i in range(2)]
        match decide:
            case "base_prior":
                p_0 = (scale * base[row] @ plain.T).softmax(0)
                expected = [
                    torch.log(p_0[2 * i : 2 * i + 2].sum() * (scale * cosines[i]).softmax(0))
                    for i in range(2)
                ]
            case "prototype":
                means = [torch.tensor(branch.extras["means"]) for branch in branches]
                expected = [cosines[i] + means[i] @ features[i][row] for i in range(2)]
            case "entropy":
                ps = [(scale * f[row] @ torch.cat(texts).T).softmax(0) for f in features]
                surest = min(ps, key=lambda p: -(p * p.log()).sum())
                expected = [surest.log()]
            case _:
                expected = cosines
        assert said.class_scores is not None and list(said.class_scores) == names
        scores = torch.tensor([*said.class_scores.values()])
        torch.testing.assert_close(scores, torch.cat(expected).detach(), rtol=1e-4, atol=1e-5)
        assert said.text == names[int(scores.argmax())]


def test_told_the_task_its_own_branch_answers_and_a_branch_that_is_missing_is_the_base_model(
    folder: Path,
):
    told = document(folder, decide="own_max")
    told["stages"] = [{**stage, "scope": "own"} for stage in told["stages"]]
    given = assignment(folder, parse_plan(told, "p"))
    branches = [some_branch(given, 1), some_branch(replace(given, stage=1), 2)]
    asked = examples(folder, 0)[:2]
    after_both = of.answer(replace(given, bank=dict(enumerate(branches))), asked)
    alone = of.answer(replace(given, candidate=branches[0]), asked)
    assert [one.class_scores for one in after_both] == [one.class_scores for one in alone]
    assert [*(after_both[0].class_scores or {})] == list(CLASSES[0])
    # A site alone at its second stage: the first one's classes are asked, too.
    second = assignment(folder, plan_of(folder, decide="own_max"), 1, candidate=branches[1])
    found, model = of.answer(second, asked)[0], clip_of(second)
    with torch.no_grad(), model.adapted.bypassed():
        image = model.image_embeddings(model.pixel_values([asked[0].image]))[0]
        plain = model.text_embeddings([f"a photo of a {name}." for name in CLASSES[0]])
    assert [*(found.class_scores or {})] == [*CLASSES[0], *CLASSES[1]]
    expected = functional.normalize(plain, dim=1) @ image
    assert list((found.class_scores or {}).values())[:2] == pytest.approx(
        expected.tolist(), abs=1e-5
    )


def test_a_mean_leaves_in_the_last_round_alone_of_enough_different_pictures(folder: Path):
    plan = plan_of(folder, decide="prototype", prototype_minimum=4)
    given = assignment(folder, plan)
    begin, own = of.start(given, ()), examples(folder, 0)
    # A picture that comes twice is one picture.
    own = (*own, replace(own[0], question_id="again"))
    early, _ = of.train(replace(given, round=1), begin, own, lambda _: None)
    assert early.extras["means.weight"].tolist() == [0.0, 0.0] and not early.extras["means"].any()
    last, _ = of.train(given, begin, own, lambda _: None)
    assert last.extras["prompts.weight"].tolist() == [5.0, 4.0]
    assert last.extras["means.weight"].tolist() == [4.0, 4.0]
    model = clip_of(given)
    model.adapted.freeze_adapters([replace(last, extras={})], Composition.FOLD)
    for place, name in enumerate(CLASSES[0]):
        images = [one.image for one in own[:-1] if one.answer.lower() == name]
        with torch.no_grad():
            mean = model.image_embeddings(model.pixel_values(images)).double().mean(0)
        np.testing.assert_allclose(last.extras["means"][place], mean.numpy(), atol=1e-5)
    # The site's own policy asks for more, and no plan can change that.
    strict, _ = of.train(replace(given, fewest_images=5), begin, own, lambda _: None)
    assert strict.extras["means.weight"].tolist() == [0.0, 0.0] and not strict.extras["means"].any()
    # Nor does a picture count more often that is there in several files.
    of_each = {one.answer: one for one in own}.values()
    same = [replace(one, image=copied(one.image, n)) for one in of_each for n in range(5)]
    alike, _ = of.train(given, begin, same, lambda _: None)
    assert alike.extras["prompts.weight"].tolist() == [5.0, 5.0]
    assert alike.extras["means.weight"].tolist() == [0.0, 0.0] and not alike.extras["means"].any()


@pytest.mark.parametrize("reuse", ["prompts", "distance", "negatives"])
def test_the_micro_batch_and_a_proximal_term_of_nothing_change_no_step(folder: Path, reuse: str):
    given = document(folder, reuse=reuse, margin=0.0)
    old = some_branch(assignment(folder, parse_plan(given, "p")), 1)
    found: list[Adapter] = []
    for training in ({"micro_batch": 1}, {"micro_batch": 4, "proximal": 1e-12}, {}):
        plan = parse_plan({**given, "training": {"warmup": 0.0, **training}}, "p")
        own = assignment(folder, plan, 1, bank={0: old}, round=1)
        found.append(of.train(own, some_branch(own, 2), examples(folder, 1), lambda _: None)[0])
    for one in found[1:]:
        for name in ("prompts", *found[0].pairs):
            expected, value = (
                a.extras[name] if name == "prompts" else a.pairs[name].b for a in (found[0], one)
            )
            # A thousandth of what four steps of AdamW move a number.
            np.testing.assert_allclose(value, expected, atol=1e-4)


def test_several_workers_are_refused_in_a_sentence(folder: Path):
    class OfTwo(LocalOptimizer):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.shard = (0, 2)

    given = assignment(folder, plan_of(folder), make_optimizer=OfTwo)
    with pytest.raises(SiteFailed, match="site b: found several workers, expected 1"):
        of.train(given, of.start(given, ()), examples(folder, 0), lambda _: None)
    assert not clip_of(given).adapted.attached_factors()


def test_another_base_model_is_refused_in_a_sentence(folder: Path):
    llava = load_backbone(BASE_MODELS["tiny-llava"], Precision.FP32, torch.device("cpu"))
    given = assignment(folder, plan_of(folder), backbone=llava)
    with pytest.raises(ModelError, match="found the base model LLaVA, expected a CLIP"):
        of.start(given, ())


def test_a_rule_of_which_a_part_travels_sends_the_prompts_whole(folder: Path):
    plan = parse_plan({**document(folder), "aggregation": "fed_sb"}, "p")
    assert plan.rule.part(2, 2) is AdapterPart.CORE
    given = assignment(folder, plan)
    begin = three_factors(some_branch(given, 1), None)
    trained, _ = of.train(given, begin, examples(folder, 0), lambda _: None)
    sent = part_of(trained, AdapterPart.CORE)
    assert not sent.pairs and {"prompts", "prompts.weight"} <= set(sent.extras)
    changed = [n for n in begin.extras if n.startswith("part.")]
    assert changed and any(not np.array_equal(trained.extras[n], begin.extras[n]) for n in changed)
