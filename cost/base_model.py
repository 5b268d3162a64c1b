"""What a plan's cost asks of a base model, a LLaVA or a CLIP: its sizes, and those of adapters."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from common.adapter import DELTA_PREFIX
from common.clip_shape import ClipShape, is_clip, read_clip_shape
from common.methods.interface import LayerShape
from common.plan.plan import Plan
from cost.geometry import Geometry, read_geometry

#: The sizes of a base model.
BaseModel: TypeAlias = Geometry | ClipShape


def read_base_model(folder: Path) -> BaseModel:
    """Read the sizes of the model in `folder` from its config.

    Raises:
        ModelError: there is no config, or it is that of neither.
    """
    return read_clip_shape(folder) if is_clip(folder) else read_geometry(folder)


def adapted_layers(plan: Plan, model: BaseModel) -> dict[str, LayerShape]:
    """Return (outputs, inputs) of every layer that the plan's method adapts, by its path."""
    if isinstance(model, Geometry):
        return model.decoder.adapted()
    return {
        name: shape
        for name, shape in model.linears().items()
        if plan.method.adapts(f"{name}.weight")
    }


def class_arrays(plan: Plan, model: BaseModel, stage: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays that an adapter of the stage has for its classes."""
    if isinstance(model, Geometry):
        return {}
    rows = len(plan.stages[stage].classes or ())
    found = plan.method.class_arrays(model.text.width, model.embedding)
    return {name: (rows, *shape) for name, shape in found.items()}


def extra_arrays(plan: Plan, model: BaseModel, stage: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays that an adapter of the stage has beside its pairs."""
    layers = list(adapted_layers(plan, model).values())
    return {
        **class_arrays(plan, model, stage),
        **plan.method.layer_arrays(layers),
        **_weight_arrays(plan, model),
    }


def whole_weights(plan: Plan, model: BaseModel) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of which the plan's method trains the whole, by name."""
    return {
        name.removeprefix(DELTA_PREFIX): shape
        for name, shape in _weight_arrays(plan, model).items()
        if name.startswith(DELTA_PREFIX)
    }


def _weight_arrays(plan: Plan, model: BaseModel) -> Mapping[str, tuple[int, ...]]:
    weights = {} if isinstance(model, Geometry) else model.weights()
    return plan.method.weight_arrays(weights)


def feature_width(model: BaseModel) -> int:
    """Return the width of an image's features, which a prototype has."""
    return model.feature_width if isinstance(model, Geometry) else model.embedding
