"""The two images of docker/, and a base for them where no registry is: Debian's, by debootstrap."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import StateError
from common.identity import ROOT
from common.process.progress import Say
from simulation.containers.engine import ContainerEngine
from simulation.containers.pip_settings import mounts, pip_settings

SIDES: Final = ("coordinator", "site")
#: A base that was made here; Debian 12 has Python 3.11.
DEBIAN_BASE: Final = "localhost/fedmslora-base:bookworm"
_SUITE: Final = "bookworm"
_PACKAGES: Final = "python3,python3-venv,ca-certificates"
#: What no program of an image needs.
_UNNEEDED: Final = ("var/lib/apt/lists", "var/cache/apt", "usr/share/doc", "usr/share/man")
_BUILD_S, _PULL_S = 3600.0, 300.0


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is there, how long it took, and its size."""

    name: str
    seconds: float
    size: int

    @property
    def line(self) -> str:
        """Its name, the time and the size."""
        minutes, seconds = divmod(round(self.seconds), 60)
        return f"{self.name}: {minutes}:{seconds:02d}, {self.size / 1e6:,.0f} MB"


def image_name(side: str) -> str:
    """Return the name of the image of `coordinator` or `site` here; no release's."""
    return f"localhost/fedmslora-{side}:here"


def find_base(engine: ContainerEngine, wanted: str | None, say: Say) -> Image:
    """Return the base: the wanted one, or the Dockerfiles' own, or one that debootstrap makes.

    Raises:
        StateError: there is none, and none can be made here.
    """
    began = time.monotonic()
    name = wanted or default_base()
    if not engine.has_image(name):
        say(f"pulling {name}")
        if engine.attempt("pull", name, timeout_s=_PULL_S).returncode:
            if wanted is not None and wanted != DEBIAN_BASE:
                raise StateError(f"{wanted}: found no such image, and no registry has it")
            name = DEBIAN_BASE
            if not engine.has_image(name):
                say(f"no registry has it: making {name} by debootstrap")
                _bootstrap(engine)
    return Image(name, time.monotonic() - began, engine.image_bytes(name))


def build(engine: ContainerEngine, side: str, base: str, fresh: bool) -> Image:
    """Build the image of `coordinator` or `site` from its Dockerfile.

    podman gets this machine's pip configuration; with Docker a build can mount no folder.

    Args:
        fresh: whether no step of an earlier build is used.

    Raises:
        StateError: the build failed.
    """
    began, name = time.monotonic(), image_name(side)
    words = ["build", "--build-arg", f"BASE={base}", "--tag", name]
    words += ["--file", str(ROOT / "docker" / f"{side}.Dockerfile")]
    words += ["--no-cache"] if fresh else []
    with tempfile.TemporaryDirectory() as folder:
        if engine.program == "podman":
            # Docker's format keeps health checks.
            words += ["--format", "docker", "--pull=never", "--network", "host"]
            if settings := pip_settings():
                words += mounts(settings, Path(folder) / "pip.conf")
        engine.run(*words, str(ROOT), timeout_s=_BUILD_S)
    return Image(name, time.monotonic() - began, engine.image_bytes(name))


def default_base() -> str:
    """Return the base that the Dockerfiles name."""
    text = (ROOT / "docker" / "site.Dockerfile").read_text(encoding="utf-8")
    found = re.search(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert found is not None
    return found[1]


def _bootstrap(engine: ContainerEngine) -> None:
    """Make a base of Debian's packages.

    Raises:
        StateError: debootstrap is not installed, not run by root, or failed.
    """
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        raise StateError(
            "debootstrap: found no debootstrap that root runs, expected one where no registry is; "
            "or an image with Python 3.11 and its venv: --base IMAGE"
        )
    with tempfile.TemporaryDirectory() as folder:
        root, archive = Path(folder) / "root", Path(folder) / "base.tar"
        _run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(root))
        for unneeded in _UNNEEDED:
            shutil.rmtree(root / unneeded, ignore_errors=True)
        _run("tar", "-C", str(root), "-cf", str(archive), ".")
        path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        engine.run("import", "--change", path, str(archive), DEBIAN_BASE)


def _run(*words: str) -> None:
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise StateError(f"{words[0]}: exit code {done.returncode}: {said}")
