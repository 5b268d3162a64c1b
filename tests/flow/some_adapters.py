"""Adapters as after training, for the models of the tests."""

import numpy as np

from client.model.llava import LlavaModel
from client.model.lora_init import kaiming_adapter
from common.adapter import Adapter, Pair


def some_adapter(model: LlavaModel, seed: int) -> Adapter:
    """Drawn from `seed`, of rank 2; neither factor is zero."""
    fresh = kaiming_adapter(model.adapted.layer_shapes(), 2, 1.0, seed)
    generator = np.random.default_rng(seed)
    pairs = {
        name: Pair(pair.a, generator.normal(0, 0.1, pair.b.shape).astype(np.float32))
        for name, pair in fresh.pairs.items()
    }
    return Adapter(pairs, 1.0)
