"""Flower's own way, as its examples have it: FedAvg over float32 arrays, all replies at once."""

import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from safetensors.numpy import save

from common.adapter import from_bytes

RESULT = "plain.safetensors"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run `rounds` rounds; the last one's arrays are in `folder`/RESULT."""
    folder = Path(str(context.run_config["folder"]))
    sites, rounds = (int(str(context.run_config[key])) for key in ("sites", "rounds"))
    layout = from_bytes((folder / "layout.safetensors").read_bytes(), "layout").layout()
    nothing = ArrayRecord({name: Array(np.zeros(s, np.float32)) for name, s in layout.items()})
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
    while len(list(grid.get_node_ids())) < sites:
        time.sleep(0.1)
    began = time.monotonic()
    result = strategy.start(grid, nothing, num_rounds=rounds, timeout=3600)
    seconds = time.monotonic() - began
    named = {name: array.numpy() for name, array in result.arrays.items()}
    (folder / "writing").write_bytes(save(named))
    (folder / "seconds").write_text(str(seconds))
    (folder / "writing").rename(folder / RESULT)
