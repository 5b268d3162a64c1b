"""The two ways to run the apps on one machine: Flower's simulation engine, or one process."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from importlib.util import find_spec
from multiprocessing.context import ForkServerContext
from pathlib import Path

from common.errors import Refusal, SiteFailed, StateError
from common.network.proxies import NO_PROXIES
from common.process.flower_environment import OFFLINE

#: Neither Flower nor Ray looks for updates, sends telemetry or uses a proxy; Ray logs every line.
QUIET = {
    **OFFLINE,
    **NO_PROXIES,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
#: Ray's object store holds one order or update at a time; its default is a third of the RAM.
_OBJECT_STORE_BYTES = 256 * 1024 * 1024
#: Ray's own start has 30 s, a constant of its code, which a busy machine exceeds.
_RAY_STARTS = 3
_START_TIMED_OUT = "timed out during startup"
_POLL_S = 0.5
#: The path of a socket has at most 107 bytes (sun_path of unix(7)), and Ray's name below the
#: folder is /ray/session_2026-11-29_16-45-55_123456_1234567/sockets/plasma_store.
_LONGEST_TMPDIR = 107 - 68


class Engine(StrEnum):
    """What runs the sites of a simulation."""

    FLOWER = "flower"
    IN_PROCESS = "inprocess"


def forkserver_context() -> ForkServerContext:
    """Return a context whose processes are forked from one that has imported the model's code.

    torch and Transformers take every other process several seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["client.backbones.llava", "client.orders.execute"])
    return context


def run_apps(engine: Engine, plan: Path, folder: Path, sites: Path, count: int) -> None:
    """Run the ServerApp on `plan` in `folder`, with the `count` sites of the folder `sites`.

    Raises:
        Refusal: the ServerApp's; a site's failure has the text of the site's own log.
        StateError: Flower's engine itself failed.
    """
    from simulation.failures import with_log_texts

    try:
        if engine is Engine.IN_PROCESS:
            with _environment(QUIET):
                _in_process(plan, folder, sites)
        else:
            # The API below has no run config, so the apps read the same settings from here;
            # the sites' processes inherit it.
            settings = {
                "FEDMSLORA_PLAN": str(plan),
                "FEDMSLORA_FOLDER": str(folder),
                "FEDMSLORA_SIMULATED_SITES": str(sites),
            }
            with _environment({**QUIET, **settings}):
                _flower(count)
    except SiteFailed as failure:
        raise SiteFailed(with_log_texts(str(failure), sites)) from None


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


def check_engine(engine: Engine) -> None:
    """Check that the engine can run here, before anything is prepared.

    Raises:
        StateError: it can't.
    """
    if engine is not Engine.FLOWER:
        return
    if find_spec("ray") is None:
        raise StateError(
            "--engine flower: found no package 'ray', expected the packages of the extra 'sim'"
        )
    variable = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    folder = os.environ.get(variable, "")
    if len(os.fsencode(folder)) > _LONGEST_TMPDIR:
        raise StateError(
            f"{variable}: found a path of {len(os.fsencode(folder))} bytes, expected at most "
            f"{_LONGEST_TMPDIR}, as Ray's sockets are in it; set RAY_TMPDIR to a shorter folder, "
            "or use --engine inprocess"
        )


def _flower(count: int) -> None:
    """Run Flower's engine in a thread of its own, and wait for it.

    Ctrl-C is then never raised in the middle of Flower or Ray. The thread and those that it
    starts are daemons: a ServerApp that waits for an engine that is gone does not keep the
    process alive.
    """
    errors: list[BaseException] = []

    def engine() -> None:
        try:
            _simulation(count)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=engine, name="flower", daemon=True)
    thread.start()
    # Where this is interrupted, the process is about to end, and Ray's processes with it.
    # Shutting Ray down while the thread still uses it would abort this process.
    while thread.is_alive():
        thread.join(_POLL_S)
        _reinstall_sigterm_handler()
    _stop_ray()
    if errors:
        raise _as_refusal(errors[0]) or errors[0]


def _simulation(count: int) -> None:
    from client.app import app as client
    from server.app import app as server

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from flwr.simulation import run_simulation

        for name in ("flwr", "ray"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        # Flower uses a Ray that is there, and would not try again.
        start_ray(count)
        run_simulation(
            server_app=server,
            client_app=client,
            num_supernodes=count,
            backend_config={"client_resources": {"num_cpus": 1.0, "num_gpus": 0.0}},
        )


def start_ray(count: int) -> None:
    """Start Ray for `count` sites; on a busy machine again, where its start took too long.

    Raises:
        StateError: it took too long each time.
    """
    import ray

    python_path = os.pathsep.join([*sys.path, *filter(None, [os.environ.get("PYTHONPATH")])])
    for start in range(1, _RAY_STARTS + 1):
        try:
            ray.init(  # pyright: ignore[reportUnknownMemberType]
                num_cpus=min(count, os.cpu_count() or 1),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {"PYTHONPATH": python_path}},
            )
            return
        except Exception as error:
            # Ray raises an Exception of no class of its own.
            if _START_TIMED_OUT not in str(error):
                raise
            print(
                f"Ray's start took longer than its 30 s ({start} of {_RAY_STARTS})",
                file=sys.stderr,
                flush=True,
            )
    raise StateError(
        f"--engine flower: found that Ray did not start within 30 s in {_RAY_STARTS} tries, "
        "expected a less busy machine; the same command continues from here, and --engine "
        "inprocess needs no Ray"
    )


def _as_refusal(error: BaseException) -> Refusal | None:
    """Return the refusal that caused the error, if any; a bug of ours keeps its traceback."""
    cause, last = error.__cause__ or error.__context__, error
    while not isinstance(last, Refusal) and cause is not None:
        last, cause = cause, cause.__cause__ or cause.__context__
    if isinstance(last, Refusal):
        return last
    if isinstance(error, RuntimeError | SystemExit):
        reason = " ".join(str(last).split())
        return StateError(f"Flower's simulation engine failed: {type(last).__name__}: {reason}")
    return None


def _reinstall_sigterm_handler() -> None:
    """Restore this process's SIGTERM handler: Ray's core replaces it to print its own stack."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _stop_ray() -> None:
    ray = sys.modules.get("ray")
    # A module whose import was interrupted is there in part.
    is_initialized = getattr(ray, "is_initialized", None)
    if ray is not None and is_initialized is not None and is_initialized():
        ray.shutdown()


@contextmanager
def _environment(changes: Mapping[str, str]) -> Generator[None]:
    """Change the process's environment during the body, and restore it afterwards."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
