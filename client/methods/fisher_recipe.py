"""The Fisher information of a stage's task on a CLIP: extra arrays of its release.

Later stages hold their weights by it (client/training/weight_hold.py).
Legend of shapes: C classes that are trained among.
"""
# torch leaves parts of its interface untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Mapping, Sequence
from hashlib import sha256

import numpy as np
import torch

from client.data.task import Example, images_of
from client.methods.clip_recipe import ClassLoss
from client.methods.interface import Assignment
from client.model.clip.model import ClipModel
from client.training.fisher import DiagonalGradients, as_rows, from_rows, squared_gradients
from client.training.optimizer import backward
from client.training.weight_hold import LayerImportance
from common.adapter import DELTA_PREFIX, ROW_WEIGHT_SUFFIX
from common.identity import seed_for
from common.methods.clip_finetune import FISHER_DIAGONAL, FISHER_INPUTS, FISHER_OUTPUTS
from common.tensors import Array


def earlier_importances(
    assignment: Assignment, model: ClipModel
) -> list[Mapping[str, LayerImportance]]:
    """Return the importances of the attached layers' weights for each earlier stage."""
    shapes = model.adapted.layer_shapes()
    layers = {name: shapes[name] for name in model.adapted.attached_pairs()}
    return [
        from_rows(adapter.extra(FISHER_OUTPUTS), adapter.extra(FISHER_INPUTS), layers, model.device)
        for _, adapter in sorted(assignment.bank.items())
    ]


def fisher_arrays(
    assignment: Assignment,
    model: ClipModel,
    classes: Sequence[str],
    examples: Sequence[Example],
    most_images: int,
) -> dict[str, Array]:
    """Return the Fisher information of the stage's task at the attached weights, as extras.

    Shapes are those of the method's `layer_arrays` and `weight_arrays`. It is of at most
    `most_images` different images, drawn from (plan seed, stage, site). The label of each is drawn
    from the model's own probabilities of `classes`, those that it trains among, as the Fisher
    information has it, and not its true one. Of fewer different pictures than the site's policy
    wants, none leaves: it is 0 with weight 0.
    """
    images = images_of(examples)
    seed = seed_for(assignment.plan.seed, "fisher", assignment.stage, assignment.site)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(images))[:most_images]
    loss = ClassLoss(model, classes, 0.0)
    squared, different = squared_gradients(model.adapted), set[bytes]()
    try:
        for number in order:
            pixels = model.pixel_values([images[number]])
            different.add(sha256(pixels.numpy().tobytes()).digest())
            logits_1C = loss.logits(pixels)
            shares = logits_1C.detach().double().softmax(1)[0].cpu().numpy()
            label = torch.tensor([generator.choice(len(classes), p=shares / shares.sum())])
            backward(loss.cross_entropy(logits_1C, label))
            squared.end_example()
    finally:
        squared.close()
    for factor in model.adapted.trainable_parameters():
        factor.grad = None
    if len(different) < assignment.fewest_images:
        return no_fisher(assignment)
    weight, found = np.array([len(order)], np.float32), dict[str, Array]()
    if isinstance(squared, DiagonalGradients):
        found[FISHER_DIAGONAL] = squared.row()
    else:
        found[FISHER_OUTPUTS], found[FISHER_INPUTS] = as_rows(squared.importances())
    return {**found, **{f"{name}{ROW_WEIGHT_SUFFIX}": weight for name in found}}


def no_fisher(assignment: Assignment) -> dict[str, Array]:
    """Return the arrays of the Fisher information as zeros; none without `hold: ewc`."""
    adapted, method = assignment.backbone.adapted, assignment.plan.method
    layers = [s for name, s in adapted.layer_shapes().items() if method.adapts(f"{name}.weight")]
    weights = {} if adapted.weights is None else adapted.weights.shapes()
    arrays = {**method.layer_arrays(layers), **method.weight_arrays(weights)}
    return {
        name: np.zeros(shape, np.float32)
        for name, shape in arrays.items()
        if not name.startswith(DELTA_PREFIX)
    }
