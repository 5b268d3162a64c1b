"""The two ways to run the apps on one machine: Flower's simulation engine, or one process."""

import logging
import os
import sys
import warnings
from enum import StrEnum
from pathlib import Path

from common.errors import Refusal, StateError

#: Flower and Ray ask the outside for updates and send telemetry unless told not to.
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
#: Ray's shared memory holds one order or update at a time; its default is a third of the RAM.
_OBJECT_STORE_BYTES = 256 * 1024 * 1024


class Engine(StrEnum):
    """What runs the sites of a simulation."""

    FLOWER = "flower"
    IN_PROCESS = "inprocess"


def run_apps(engine: Engine, plan: Path, folder: Path, sites: Path, count: int) -> None:
    """Run the ServerApp on `plan` in `folder`, with the `count` sites beneath `sites`.

    Raises:
        Refusal: what the ServerApp refused, unchanged.
        StateError: Flower's engine itself failed.
    """
    os.environ.update(_QUIET)
    if engine is Engine.IN_PROCESS:
        _in_process(plan, folder, sites)
    else:
        _flower(plan, folder, sites, count)


def _in_process(plan: Path, folder: Path, sites: Path) -> None:
    from client.app import app as client
    from server.app import app as server
    from simulation.inprocess import run_in_process

    files = sorted(sites.glob("*/site.yaml"))
    run_in_process(
        server,
        client,
        [{"site-file": str(file)} for file in files],
        {"plan": str(plan), "folder": str(folder)},
    )


def _flower(plan: Path, folder: Path, sites: Path, count: int) -> None:
    # The API below has no run config, so the apps read the same settings from here; the
    # sites' processes inherit it.
    os.environ["FEDMSLORA_PLAN"] = str(plan)
    os.environ["FEDMSLORA_FOLDER"] = str(folder)
    os.environ["FEDMSLORA_SIMULATED_SITES"] = str(sites)
    from client.app import app as client
    from server.app import app as server

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from flwr.simulation import run_simulation

        logging.getLogger("flwr").setLevel(logging.CRITICAL)
        try:
            run_simulation(
                server_app=server,
                client_app=client,
                num_supernodes=count,
                backend_config={
                    "client_resources": {"num_cpus": 1.0, "num_gpus": 0.0},
                    "init_args": {
                        "num_cpus": min(count, os.cpu_count() or 1),
                        "object_store_memory": _OBJECT_STORE_BYTES,
                        "log_to_driver": False,
                        "logging_level": "ERROR",
                    },
                },
            )
        except Refusal:
            raise
        except RuntimeError as error:
            refusal = _refusal_behind(error)
            if refusal is not None:
                raise refusal from None
            raise StateError(f"Flower's simulation engine failed: {error}") from error
        finally:
            _stop_ray()


def _refusal_behind(error: BaseException) -> Refusal | None:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Refusal):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def _stop_ray() -> None:
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()
