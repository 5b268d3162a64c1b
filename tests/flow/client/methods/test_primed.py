"""PRIMED on a tiny CLIP: a run of two sites and two stages, and the whole loss's gradient."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional

from client.methods import primed as of
from client.methods import reference_recipe
from client.methods.clip_recipe import ClassLoss, clip_of
from common.adapter import Adapter
from common.bank.bank import Bank
from common.errors import DataError, SiteFailed
from common.methods.primed import Guard, Primed
from common.plan.plan import Plan
from common.plan_fields import Composition
from report.json_file import read_report
from simulation.run import simulate
from tests.flow import clip_run
from tests.flow.clip_run import CLASSES, PAIRS, assignment, examples, reference_pin, write_clip_run
from tests.flow.forked import exit_code_of
from tests.flow.small_run import bank_bytes, killed_after, options


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip_run(tmp_path_factory.mktemp("clip"))


def method_of(folder: Path, **method: Any) -> dict[str, Any]:
    pin = reference_pin(folder)
    fields = {"name": "primed", "rank": 2, "alpha": 2.0, "reference_batch": 4, "reference": pin}
    return {**fields, **method}


def plan_of(folder: Path, **method: Any) -> Plan:
    return clip_run.plan_of(folder, method_of(folder, **method))


def trained(begin: Adapter, seed: int) -> Adapter:
    """An adapter as if trained: its B's are not zero."""
    rng = np.random.default_rng(seed)
    pairs = {
        name: replace(pair, b=rng.normal(0, 0.05, pair.b.shape).astype(np.float32))
        for name, pair in begin.pairs.items()
    }
    return replace(begin, pairs=pairs)


def test_two_stages_at_two_sites_and_resumed_to_the_same_bytes(folder: Path, tmp_path: Path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump(clip_run.document(folder, method_of(folder))))
    where = {"data": folder / "data", "base_model": folder / "clip"}
    simulate(plan, options(tmp_path / "run", **where))
    bank = Bank.open(tmp_path / "run" / "bank")
    assert [release.name for release in bank.releases] == ["s0", "s1"]
    adapter = bank.adapter(1)
    assert {name.split(".")[0] for name in adapter.modules} == {"vision_model", "text_model"}
    assert {name.rsplit(".", 1)[1] for name in adapter.modules} == {
        "q_proj", "k_proj", "v_proj", "out_proj",
    }  # fmt: skip
    (report,) = read_report(tmp_path / "run")
    assert report.classes is not None
    assert report.classes.scores["balanced_accuracy"][1][0] is not None
    killed = partial(killed_after, 7, plan, tmp_path / "cut", **where)
    assert exit_code_of(killed) == -signal.SIGKILL
    simulate(plan, options(tmp_path / "cut", **where))
    first, second = (bank_bytes(tmp_path / run) for run in ("run", "cut"))
    weights = [name for name in first if name.endswith(".safetensors")]
    assert {name: first[name] for name in weights} == {name: second[name] for name in weights}


DRAWN = [0, 4, 1, 3]


def terms_by_hand(
    z: torch.Tensor, t: torch.Tensor, gift: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """CKT and CMC of the drawn pairs, of which the first two share a caption."""
    heat, size = (2.0, 1) if gift else (1.0, len(DRAWN))
    targets = torch.eye(4)
    if gift:
        targets[:2, :2] = 0.5
    ckt = cmc = torch.zeros(())
    for student, teacher in ((z, t), (z.T, t.T)):
        soft = torch.softmax(teacher / heat, 1)
        rows = -(soft * torch.log_softmax(student / heat, 1)).sum(1)
        entropy = 0.0 if gift else -(soft * soft.log()).sum(1)
        ckt = ckt + size * heat**2 * (rows - entropy).mean()
        smooth = 0.8 * targets + 0.2 / 4
        cmc = cmc - size * (smooth * torch.log_softmax(student, 1)).sum(1).mean()
    return ckt, cmc


class Step:
    """A model in the middle of stage 2, and what one step of it is made of."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        given = assignment(folder, plan, 1)
        self.last = trained(of.start(given, ()), 1)
        given = replace(given, bank={0: self.last})
        assert isinstance(plan.method, Primed)
        self.model, self.pairs = clip_of(given), reference_recipe.reference_pairs(given)
        self.teacher = reference_recipe.teacher_embeddings(self.model, [self.last], self.pairs)
        self.model.adapted.freeze_adapters([], Composition.FOLD)
        self.model.adapted.attach(self.last, plan.rule.trained_factors(1))
        self.guard = of.ParameterGuard(self.model.adapted.trainable_parameters(), plan.method)
        self.model.adapted.attach(trained(self.last, 2), plan.rule.trained_factors(1))
        self.factors = self.guard.parameters = self.model.adapted.trainable_parameters()
        self.pixels = self.model.pixel_values([self.pairs.files[n] for n in DRAWN])
        batch = reference_recipe.ReferenceBatch(self.model, self.pairs, self.teacher)
        batch.take(DRAWN, self.pixels)
        self.reference = of.ReferenceLoss(batch, self.model.logit_scale, plan.method)
        asked = examples(folder, 1)
        self.batch = self.model.pixel_values([one.image for one in asked])
        self.labels = torch.tensor(of.class_labels(asked, CLASSES[1], "t"))

    def similarities(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the student and of the teacher."""
        images = self.model.image_embeddings(self.pixels)
        texts = self.model.text_embeddings([self.pairs.captions[n] for n in DRAWN])
        scale, (of_images, of_texts) = self.model.logit_scale, self.teacher
        return scale * images @ texts.T, scale * of_images[DRAWN] @ of_texts[DRAWN].T

    def cross_entropy(self) -> torch.Tensor:
        images = self.model.image_embeddings(self.batch)
        texts = self.model.text_embeddings([f"a photo of a {name}." for name in CLASSES[1]])
        logits = self.model.logit_scale * images @ texts.T
        return functional.cross_entropy(logits, self.labels, label_smoothing=0.2)

    def moved(self) -> list[torch.Tensor]:
        """theta - theta', with the graph of theta."""
        names = self.model.adapted.attached_pairs()
        start = [
            torch.tensor(f) for n in names for f in (self.last.pairs[n].a, self.last.pairs[n].b)
        ]
        return [p - q for p, q in zip(self.factors, start, strict=True)]


@pytest.mark.parametrize("guard", list(Guard))
@pytest.mark.parametrize("gift", [True, False])
def test_a_steps_gradient_is_that_of_the_whole_formula(folder: Path, guard: Guard, gift: bool):
    """CE + alpha CKT + beta CMC + lambda sum W (theta - theta')^2, by autograd of the sum."""
    formulas = "gift" if gift else "printed"
    step = Step(folder, plan_of(folder, guard=guard.value, formulas=formulas, guard_weight=0.7))
    if guard is Guard.EWC:
        step.guard.weights = [torch.full_like(p, 0.3) for p in step.factors]
    ClassLoss(step.model, CLASSES[1], 0.2)(step.batch, step.labels).backward()
    value, gradients = step.reference.add_gradient(step.factors)
    value = value + step.guard.add_gradient(gradients)
    found = [p.grad.clone() for p in step.factors if p.grad is not None]

    ckt, cmc = terms_by_hand(*step.similarities(), gift)
    on_pairs = ckt + 0.25 * cmc
    grads = torch.autograd.grad(on_pairs, step.factors, retain_graph=True)
    weights = {
        Guard.NONE: [torch.zeros_like(g) for g in grads],
        Guard.L2: [torch.ones_like(g) for g in grads],
        Guard.EWC: [torch.full_like(g, 0.3) for g in grads],
        Guard.DYNAMIC: [g.square() / (g.square().mean() if gift else 1.0) for g in grads],
    }[guard]
    held = torch.stack(
        [(w * by.square()).sum() for w, by in zip(weights, step.moved(), strict=True)]
    ).sum()
    expected = torch.autograd.grad(step.cross_entropy() + on_pairs + 0.7 * held, step.factors)
    torch.testing.assert_close(value, (on_pairs + 0.7 * held).detach(), rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(found, expected, strict=True):
        scale = float(theirs.abs().max()) + 1e-6
        torch.testing.assert_close(mine / scale, theirs / scale, rtol=1e-3, atol=1e-4)


def test_the_teacher_is_the_release_before_the_base_or_half_of_it(folder: Path):
    given = assignment(folder, plan_of(folder), 1)
    last = trained(of.start(given, ()), 3)
    given = replace(given, bank={0: last})
    model, pairs = clip_of(given), reference_recipe.reference_pairs(given)
    found: dict[str, torch.Tensor] = {}
    for name in ("initial", "last", "mean"):
        one = replace(given, plan=plan_of(folder, teacher=name))
        adapters = of.teacher_adapters(one)
        found[name] = reference_recipe.teacher_embeddings(model, adapters, pairs)[0]
    with torch.no_grad():
        model.adapted.freeze_adapters([], Composition.FOLD)
        files = pairs.files
        base = model.image_embeddings(model.pixel_values(files))
        half = {n: replace(p, b=p.b / 2) for n, p in last.pairs.items()}
        model.adapted.freeze_adapters([replace(last, pairs=half)], Composition.FOLD)
        mean = model.image_embeddings(model.pixel_values(files))
    torch.testing.assert_close(found["initial"], base)
    torch.testing.assert_close(found["mean"], mean)
    assert (found["last"] - found["mean"]).abs().max() > 1e-3


def test_the_teacher_embeds_once_a_stage(folder: Path, monkeypatch: pytest.MonkeyPatch):
    given = assignment(folder, plan_of(folder))
    model, pairs = clip_of(given), reference_recipe.reference_pairs(given)
    first = reference_recipe.teacher_embeddings(model, [], pairs)
    other = reference_recipe.teacher_embeddings(model, [trained(of.start(given, ()), 4)], pairs)
    assert not torch.equal(first[0], other[0])
    monkeypatch.setattr(reference_recipe, "_embedded", None)
    again = reference_recipe.teacher_embeddings(model, [trained(of.start(given, ()), 4)], pairs)
    assert torch.equal(other[0], again[0]) and torch.equal(other[1], again[1])


def test_a_first_step_of_distillation_alone_moves_nothing(folder: Path):
    """Where student and teacher are one, CKT has no gradient, and the guard holds nothing."""
    given = assignment(folder, plan_of(folder, matching=0.0))
    model, settings = clip_of(given), given.plan.method
    assert isinstance(settings, Primed)
    pairs = reference_recipe.reference_pairs(given)
    teacher = reference_recipe.teacher_embeddings(model, [], pairs)
    batch = reference_recipe.ReferenceBatch(model, pairs, teacher)
    reference = of.ReferenceLoss(batch, model.logit_scale, settings)
    model.adapted.attach(of.start(given, ()), given.plan.rule.trained_factors(1))
    batch.take([0, 1, 2], model.pixel_values(pairs.files[:3]))
    factors = model.adapted.trainable_parameters()
    _, gradients = reference.add_gradient(factors)
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-5


def test_a_plan_of_some_of_the_lists_stages_has_the_pairs_of_its_own(folder: Path):
    """As a hospital alone has, whose stages are some of the federation's."""
    whole = plan_of(folder)
    pairs = [reference_recipe.reference_pairs(assignment(folder, whole, n)) for n in (0, 1)]
    assert len(pairs[0].files) != len(pairs[1].files)
    second = whole.model_copy(update={"stages": whole.stages[1:]})
    own = reference_recipe.reference_pairs(assignment(folder, second))
    assert (own.files, own.captions) == (pairs[1].files, pairs[1].captions)
    for stages in (whole.stages[::-1], (whole.stages[0].model_copy(update={"name": "other"}),)):
        other = whole.model_copy(update={"stages": stages})
        with pytest.raises(SiteFailed, match=r"found the stages \['s0', 's1'\], expected \["):
            reference_recipe.reference_pairs(assignment(folder, other))


def test_a_site_without_the_plans_pairs_is_refused(folder: Path, tmp_path: Path):
    given = assignment(folder, plan_of(folder))
    with pytest.raises(SiteFailed, match="site a, reference: found no folder, expected that of"):
        reference_recipe.reference_pairs(replace(given, reference=None))
    other = plan_of(folder, reference={"name": "small", "sha256": "0" * 64})
    with pytest.raises(DataError, match="expected 0000000000000000, which the plan pins"):
        reference_recipe.reference_pairs(replace(given, plan=other))
    with pytest.raises(DataError, match="found no list of reference pairs"):
        reference_recipe.reference_pairs(replace(given, reference=tmp_path))


def test_a_steps_pairs_are_drawn_again_and_differ_from_step_to_step(folder: Path):
    given = assignment(folder, plan_of(folder))
    one, again, other = (
        reference_recipe.draw_pairs(given, chosen, PAIRS) for chosen in ([1, 2], [1, 2], [2, 1])
    )
    assert one == again != other
    assert len(set(one)) == 4
