"""A new rule: one file, in a folder that the package of rules gets for the time of a test."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import common.rules
from common.rules.registry import rules

#: Takes the factors of the site with the most examples; B is trained in round 1, then both.
LARGEST_SITE = """
from common.adapter import Pair
from common.linear_algebra.layer_factors import in_float32
from common.rules.interface import Factor, FirstA, LayerError, MaskedSums, MergedLayer, Rule

def trained_factors(round):
    return Factor.B if round == 1 else Factor.BOTH

def merge(layer):
    largest = max(layer.sites, key=lambda site: site.weight).factors
    return MergedLayer(Pair(in_float32(largest.a), in_float32(largest.b)), LayerError(1.0, 4.0))

RULE = Rule(
    name="largest_site", trained_factors=trained_factors, first_a=FirstA.ORTHONORMAL,
    starts_may_differ=True, layouts_may_differ=False, masked_sums=MaskedSums.IMPOSSIBLE,
    merge=merge,
)
"""


@contextmanager
def rule_file(folder: Path, name: str, text: str = LARGEST_SITE) -> Generator[None]:
    """Let `folder` be a part of the package of rules, with this file in it."""
    path = list(common.rules.__path__)
    folder.mkdir()
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    common.rules.__path__ = [*path, str(folder)]
    rules.cache_clear()
    try:
        yield
    finally:
        common.rules.__path__ = path
        del sys.modules[f"common.rules.{name}"]
        rules.cache_clear()
