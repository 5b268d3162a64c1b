"""In which fields two plans differ."""

from typing import Any, cast


def differing_fields(before: object, after: object, path: str = "") -> list[str]:
    """Return the fields in which two plans' JSON differs, like `stages.1.rounds`.

    A plan of another version may lack a field, or have one that this version does not know.
    """
    if before == after:
        return []
    left, right = _children(before), _children(after)
    if not left or not right:
        return [path]
    names: list[str] = []
    for key in sorted(left.keys() | right.keys()):
        name, both = f"{path}.{key}".lstrip("."), key in left and key in right
        names += differing_fields(left[key], right[key], name) if both else [name]
    return names


def _children(value: object) -> dict[str, object]:
    if isinstance(value, dict):
        return cast(dict[str, object], value)
    items = cast(list[Any], value) if isinstance(value, list) else []
    return {str(number): item for number, item in enumerate(items, 1)}
