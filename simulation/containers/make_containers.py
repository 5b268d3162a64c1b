"""Build both images and run a one-round federation in them, on podman or Docker.

    python -m simulation.containers.make_containers --out runs/containers

Opt-in: it needs an engine, a package index, and a registry or debootstrap. What it starts it
removes; nothing is published, so nothing of this machine's network is bound. The images stay, under
names of their own.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common.errors import StateError
from common.identity import ROOT
from common.plan.file import load_plan
from common.process.supervise import log_to_stderr
from simulation.command_line.exit_codes import with_exit_codes
from simulation.containers.engine import ENGINES, ContainerEngine, find_engine
from simulation.containers.federation import Round, run_federation
from simulation.containers.images import SIDES, build, find_base
from simulation.hospitals import check, prepare

PLAN = ROOT / "configs" / "containers.yaml"


def make_containers(engine: ContainerEngine, base: str | None, out: Path, fresh: bool) -> Round:
    """Build both images, then run the plan in them.

    Raises:
        StateError: `out` exists, an image can't be built, or the federation failed.
    """
    if out.exists():
        raise StateError(f"{out}: found it, expected a new folder")
    plan = load_plan(PLAN)
    base_model = check(plan, str(PLAN), None, None)
    prepare(plan, out / "hospitals", None, base_model)
    found = find_base(engine, base, log_to_stderr)
    log_to_stderr(found.line)
    for side in SIDES:
        log_to_stderr(f"building the {side}'s image")
        log_to_stderr(build(engine, side, found.name, fresh).line)
    return run_federation(engine, PLAN, out, log_to_stderr)


@with_exit_codes
def main(arguments: Sequence[str] | None = None) -> int:
    """Run it from the command line, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m simulation.containers.make_containers", description=__doc__
    )
    parser.add_argument("--engine", choices=ENGINES, help="by default the first that answers")
    parser.add_argument("--base", help="an image with Python 3.11 and its venv")
    parser.add_argument("--fresh", action="store_true", help="use no step of an earlier build")
    parser.add_argument("--out", type=Path, default=Path("runs/containers"), help="a new folder")
    options = parser.parse_args(arguments)
    # As Ctrl-C does: no container is left running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    engine, began = ContainerEngine(options.engine or ENGINES[0]), time.monotonic()
    try:
        engine = find_engine(options.engine)
        done = make_containers(engine, options.base, options.out.resolve(), options.fresh)
    finally:
        _clean_up(engine)
    for line in done.seen:
        print(line)
    print(done.verified)
    print(f"the federation took {done.seconds:.0f} s, all {time.monotonic() - began:.0f} s")
    return 0


def _clean_up(engine: ContainerEngine) -> None:
    try:
        engine.clean_up()
    except StateError as error:
        print(error, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
