"""What the methods on a CLIP share."""

from client.backbones.clip import ClipBackbone
from client.methods.interface import Assignment
from client.model.clip.model import ClipModel
from common.errors import ModelError


def clip_of(assignment: Assignment) -> ClipModel:
    """Return the assignment's base model, which these methods need to be a CLIP.

    Raises:
        ModelError: it is another.
    """
    backbone = assignment.backbone
    if not isinstance(backbone, ClipBackbone):
        raise ModelError(
            f"plan {assignment.plan.name}, method {assignment.plan.method.name!r}: found the base "
            f"model {backbone.kind}, expected a CLIP"
        )
    return backbone.model
