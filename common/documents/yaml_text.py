"""YAML from outside, read in time and memory that its bounds say.

A few lines of YAML may stand for gigabytes: an alias stands for all that its anchor has, and an
anchor may hold aliases. So the text is first read event by event, which costs no more than its
length, and what it would become is counted; only then anything is made of it.
"""

import json
import re
from collections.abc import Hashable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import yaml

from common.documents.bounded import MOST_DEPTH, OutOfBounds, read_text
from common.printable import has_broken_letter

#: Most bytes of a YAML file; the largest plan of ours has 4,000.
MOST_YAML_BYTES: Final = 2**20
#: Most values and names, each counted as often as an alias repeats it. A plan of 300 stages has
#: about 10,000.
MOST_NODES: Final = 30_000
#: Longest number; YAML 1.1 also reads `1:2:3` as one, in time quadratic in its length.
_MOST_DIGITS: Final = 80
_TRUSTED_TAGS: Final = (None, "!")
#: What the name of a field may be to YAML: a text, a whole number, or `<<`.
_NAME_TAGS: Final = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "merge"))


class _Refused(yaml.MarkedYAMLError):
    """What is YAML, and is not taken."""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, without its traps: see the functions below."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set[Any]()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                problem = None
                if key_node.value in seen:
                    # YAML's own loader silently keeps the last of two equal keys.
                    problem = f"the field {key_node.value[:80]!r} stands twice"
                elif key_node.tag not in _NAME_TAGS:
                    # `on` is a Boolean, and 2024-01-01 a date, which JSON has not at all.
                    problem = (
                        f"found the name {key_node.value[:80]}, which is no text to YAML, expected "
                        "it in quotation marks"
                    )
                if problem is not None:
                    raise _Refused(problem=problem, problem_mark=key_node.start_mark)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        r"""Return the text, of whole letters.

        JSON writes a letter beyond 0xFFFF as two escapes, such as "\ud83d\ude00", which YAML's own
        loader leaves apart.
        """
        text = str(self.construct_scalar(node))
        if not has_broken_letter(text):
            return text
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise _Refused(
                problem="found half of a letter (an escape from d800 to dfff), expected both",
                problem_mark=node.start_mark,
            ) from None

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Return the number, unless it is longer than any that is meant, or not read in tens."""
        if len(node.value) > _MOST_DIGITS:
            raise _Refused(
                problem=f"found a number of {len(node.value)} digits, expected at most "
                f"{_MOST_DIGITS}",
                problem_mark=node.start_mark,
            )
        if ":" in node.value or re.fullmatch(r"[-+]?0[0-7_]+", node.value):
            meant = "in sixties" if ":" in node.value else "in eights"
            raise _Refused(
                problem=f"found {node.value}, which YAML reads {meant}, expected a number without "
                "zeros in front and colons, or a text in quotation marks",
                problem_mark=node.start_mark,
            )
        integer = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if integer else self.construct_yaml_float(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)
# YAML 1.1 reads 1e-3 as text because it has no dot; people write it all the time.
_Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load_yaml(file: Path) -> object:
    """Return what a YAML file says.

    Raises:
        yaml.YAMLError: it is not YAML, names a field twice, or is out of bounds; says which of
            them in one line.
        UnicodeDecodeError: it is not UTF-8.
        OSError: it can't be read.
    """
    try:
        return deepcopy(_read(read_text(file, MOST_YAML_BYTES)))
    except (_Refused, yaml.constructor.ConstructorError) as error:
        raise yaml.YAMLError(_with_line(error)) from None
    except yaml.YAMLError as error:
        marked = isinstance(error, yaml.MarkedYAMLError)
        said = " ".join((_with_line(error) if marked else str(error)).split())
        raise yaml.YAMLError(f"not YAML: {said}") from None
    except OutOfBounds as error:
        raise yaml.YAMLError(str(error)) from None
    except (ValueError, RecursionError, TypeError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        # A date of month 13, or a list as the name of a field.
        raise yaml.YAMLError("found a value or a name that YAML can't make") from None


def _with_line(error: yaml.MarkedYAMLError) -> str:
    """Return where a text is refused, and why."""
    mark = error.problem_mark or error.context_mark
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    return where + ", ".join(filter(None, (error.context, error.problem)))


def yaml_name(name: str) -> str:
    """Return a name of letters, digits, - and _ as YAML reads it back as this very text.

    It is quoted where YAML would take it for something else: `12`, `null`, `no`, `2024-01-01`.
    """
    try:
        same = yaml.load(name, _Loader) == name
    except (yaml.YAMLError, ValueError):
        same = False
    return name if same else json.dumps(name)


@lru_cache(maxsize=16)
def _read(text: str) -> object:
    """Read a text; a simulated site's file is read for every message, and YAML is slow."""
    check_bounds(text)
    return yaml.load(text, _Loader)


def check_bounds(text: str) -> None:
    """Check how much a YAML text would become, without making anything of it.

    Raises:
        OutOfBounds: more values than `MOST_NODES`, deeper than `MOST_DEPTH`, or a tag.
        yaml.YAMLError: it is not YAML.
    """
    found = _Expansion()
    for event in yaml.parse(text, yaml.SafeLoader):
        found.add(event)
        if found.count > MOST_NODES:
            raise OutOfBounds(
                f"found more than {MOST_NODES:,} values, an alias counted with all it stands for, "
                "expected at most so many"
            )
        if len(found.open) > MOST_DEPTH:
            raise OutOfBounds(
                f"found values nested deeper than {MOST_DEPTH} levels, expected at most so many"
            )


@dataclass(slots=True)
class _Expansion:
    """What the events so far would become.

    Attributes:
        count: values and names, an alias with all that it stands for.
        open: of each list or mapping that has not ended: its anchor, and the count before it.
        sizes: the count of each anchor's value.
    """

    count: int = 0
    open: list[tuple[str | None, int]] = field(default_factory=list[tuple[str | None, int]])
    sizes: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, event: yaml.Event) -> None:
        """Count one event more."""
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = self.open.pop()
            self._ended(anchor, before)
        elif isinstance(event, yaml.AliasEvent):
            # An alias within its own anchor would be endless: there it has no size yet.
            name = event.anchor or ""
            if (size := self.sizes.get(name)) is None:
                raise OutOfBounds(f"found *{name[:40]}, expected an anchor before it")
            self.count += size
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            if event.tag not in _TRUSTED_TAGS:
                raise OutOfBounds(f"found the tag {str(event.tag)[:40]!r}, expected none")
            if isinstance(event, yaml.ScalarEvent):
                self._ended(event.anchor, self.count)
                self.count += 1
            else:
                self.open.append((event.anchor, self.count))
                self.count += 1

    def _ended(self, anchor: str | None, before: int) -> None:
        if anchor is not None:
            self.sizes[anchor] = max(self.count - before, 1)
