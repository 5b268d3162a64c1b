"""What a plan's cost asks of a base model: its sizes, and those of adapters."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from common.adapter import DELTA_PREFIX
from common.clip_shape import ClipShape, is_clip, read_clip_shape
from common.methods.interface import LayerShape
from common.plan.plan import Plan
from cost.geometry import read_geometry
from cost.step import LanguageShape

#: The sizes of a base model.
BaseModel: TypeAlias = LanguageShape | ClipShape


def read_base_model(folder: Path) -> BaseModel:
    """Read the sizes of the LLaVA or CLIP in `folder` from its config.

    Those of a model with its own processor are in client/model/image_text/sizes.py.

    Raises:
        ModelError: there is no config, or it is that of neither.
    """
    return read_clip_shape(folder) if is_clip(folder) else read_geometry(folder)


def adapted_layers(plan: Plan, model: BaseModel) -> dict[str, LayerShape]:
    """Return (outputs, inputs) of every layer that the plan's method adapts, by its path."""
    if not isinstance(model, ClipShape):
        return model.decoder.adapted()
    return {
        name: shape
        for name, shape in model.linears().items()
        if plan.method.adapts(f"{name}.weight")
    }


def class_arrays(plan: Plan, model: BaseModel, stage: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays that an adapter of the stage has for its classes."""
    if not isinstance(model, ClipShape):
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
    weights = model.weights() if isinstance(model, ClipShape) else {}
    return plan.method.weight_arrays(weights)


def feature_width(model: BaseModel) -> int:
    """Return the width of an image's features, which a prototype has."""
    return model.embedding if isinstance(model, ClipShape) else model.feature_width
