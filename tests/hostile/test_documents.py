"""Files from outside that hang or burst whoever reads them: each is refused in one sentence."""

import resource
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from client.node.receive import plan_of
from client.site.config import load_site
from common.documents.bounded import MOST_DEPTH
from common.documents.yaml_text import MOST_NODES, MOST_YAML_BYTES
from common.errors import PlanError, Refusal, SiteFailed
from common.plan.file import MOST_MISTAKES, load_plan

NAMES = "abcdefghijklmnop"


def nested(value: str) -> str:
    """Lines of which each stands for nine of the line before; `value` makes one of nine aliases."""
    lines = ["a: &a {x: 1}"]
    for before, name in pairwise(NAMES):
        nine = ", ".join([f"*{before}"] * 9)
        lines.append(f"{name}: &{name} {value.format(nine)}")
    return "\n".join(lines)


BOMBS = {
    "aliases": nested("[{}]"),
    "merges": nested("{{<<: [{}]}}"),
    "a loop": "a: &a [*a]",
    "20,000 keys": "".join(f"k{number}: 1\n" for number in range(20_000)),
    "brackets": "[" * 100_000,
    "braces": "{a: " * 100_000,
    "dashes": "- " * 100_000,
    "digits": "seed: " + "7" * 5000,
    "base 60": "seed: " + ":".join(["10"] * 50_000),
    "base 16": "seed: 0x" + "f" * 100_000,
    "a float": "seed: 1." + "0" * 100_000,
    "a tag": "seed: !!python/object/apply:os.system [x]",
    "a set": "seed: !!set {a, b}",
    "month 13": "seed: 2026-13-45",
    "a list as a key": "? [1, 2]\n: 3",
    "large": "a: " + "x" * MOST_YAML_BYTES,
    "no YAML": "\x00\x1b[31m",
}


#: What is said of those that are YAML, and out of bounds: what was found, and what is allowed.
_VALUES = (
    f"found more than {MOST_NODES:,} values, an alias counted with all it stands for, expected"
)
_DEEP = f"found values nested deeper than {MOST_DEPTH} levels, expected at most so many"
BOUNDS = {
    "aliases": _VALUES,
    "merges": _VALUES,
    "20,000 keys": _VALUES,
    "brackets": _DEEP,
    "braces": _DEEP,
    "dashes": _DEEP,
    "a loop": "found *a, expected an anchor before it",
    "digits": "line 1, column 7: found a number of 5000 digits, expected at most 80",
    "a tag": "found the tag 'tag:yaml.org,2002:python/object/",
    "month 13": "found a value or a name that YAML can't make",
    "large": f"found more than {MOST_YAML_BYTES:,} bytes, expected at most so many",
    "no YAML": "not YAML: unacceptable character #x0000",
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize(("load", "kind"), [(load_plan, PlanError), (load_site, SiteFailed)])
def test_a_file_that_would_hang_or_burst_is_refused_in_a_sentence(
    bomb: str, load: Callable[[Path], object], kind: type[Refusal], tmp_path: Path
):
    file = tmp_path / "plan.yaml"
    file.write_text(BOMBS[bomb], encoding="utf-8")
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(kind) as caught:
        load(file)
    after = resource.getrusage(resource.RUSAGE_SELF)
    said = BOUNDS.get(bomb, "")
    assert str(caught.value).startswith(f"{file}: {said}")
    assert ("not YAML" in str(caught.value)) is (bomb == "no YAML")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "\x1b" not in str(caught.value)
    assert after.ru_maxrss - before.ru_maxrss < 200 * 1024
    # Of this process's own time, so that a busy machine does not count.
    assert after.ru_utime - before.ru_utime < 20


def test_an_endless_file_is_not_read_to_its_end():
    with pytest.raises(PlanError, match="found more than"):
        load_plan(Path("/dev/zero"))


def test_aliases_and_merges_that_people_write_are_read(tmp_path: Path):
    file = tmp_path / "plan.yaml"
    stages = "".join(f"  - {{<<: *stage, name: s{number}}}\n" for number in range(300))
    file.write_text(
        "name: many\nseed: 1\nbase_model: {name: tiny, sha256: " + "a" * 64 + "}\n"
        "method: {name: sequential, rank: 2, alpha: 2}\naggregation: fedavg\nstages:\n"
        "  - &stage {name: first, modality: ct, task: t, sites: [a, b], rounds: 1, "
        "local_epochs: 1.0, learning_rate: 1e-3, batch_size: 1}\n" + stages
    )
    plan = load_plan(file)
    assert len(plan.stages) == 301
    assert plan.stages[300].learning_rate == 0.001


def test_of_thousands_of_mistakes_the_first_are_told_and_the_rest_counted(tmp_path: Path):
    file, count = tmp_path / "plan.yaml", MOST_NODES // 2 - 10
    file.write_text("".join(f"k{number}: 1\n" for number in range(count)))
    with pytest.raises(PlanError) as caught:
        load_plan(file)
    lines = str(caught.value).splitlines()
    assert len(lines) == MOST_MISTAKES + 1
    more = lines[-1].removeprefix(f"{file}: and ").removesuffix(" mistakes more")
    # Each unknown field, and the six that a plan must have.
    assert int(more) + MOST_MISTAKES == count + 6


@pytest.mark.parametrize(
    "blob",
    [
        b"[" * 100_000,
        b'{"seed": ' + b"7" * 5000 + b"}",
        b'{"a":' * 100_000,
        b'{"name": "' + b"x" * 5_000_000 + b'"}',
    ],
)
def test_a_plan_of_an_order_is_bounded_too(blob: bytes):
    with pytest.raises(PlanError, match=r"^the order's plan: "):
        plan_of(blob, "0" * 64)
