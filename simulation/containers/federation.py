"""A federation in the containers of docker/: a coordinator, its sites, and what each of them sees.

Each step is the one that docs/coordinator.md and docs/hospital.md tell, by the same services. What
differs: nothing is published, the sites reach the edge on a network that they share with it, and
the networks have other names than a real machine's.
"""

import json
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import StateError
from common.identity import ROOT
from common.plan.file import load_plan
from common.plan.plan import Plan
from common.process.progress import Say
from simulation.containers.compose import ComposeFile, Service, read_compose
from simulation.containers.engine import ContainerEngine
from simulation.containers.images import image_name

#: The coordinator's name in its certificate.
HOST: Final = "coordinator.example.org"
#: The user of the containers where root runs this; else they run as whoever does.
_USER: Final = 10001
_HEALTHY_S, _RUN_S = 240.0, 1800.0
#: Health checks are asked for by `await_health`. A proxy that an engine hands to its containers
#: knows none of these networks.
_HERE: Final = (
    "--no-healthcheck",
    *(
        word
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        for word in ("--env", f"{name}=", "--env", f"{name.lower()}=")
    ),
)


@dataclass(frozen=True, slots=True)
class ComposeProject:
    """One machine's containers: a compose file in a folder of its own.

    Attributes:
        side: `coordinator` or `site`.
        name: begins the names of its containers and networks.
        shared: its network `outside`, which all machines have in common.
    """

    engine: ContainerEngine
    side: str
    name: str
    folder: Path
    file: ComposeFile
    shared: str

    def make_networks(self) -> None:
        """Make its own networks."""
        for network, internal in self.file.internal.items():
            if network != "outside":
                self.engine.make_network(self._network(network), internal)

    def start(self, *services: str) -> None:
        """Start these services."""
        for name in services:
            service = self.file.services[name]
            first, *more = self._networks(service)
            options = [*service.options, *_HERE, *first]
            container = self.container(name)
            self.engine.create(container, options, image_name(self.side), service.command)
            for words in more:
                _, network, *aliases = words
                self.engine.run("network", "connect", *aliases, network, container)
            self.engine.run("start", container)

    def command(self, service: str, *words: str, timeout_s: float = 600.0) -> str:
        """Run `fedmslora WORDS` in a container of its own, and return what it prints.

        Raises:
            StateError: it failed.
        """
        found = self.file.services[service]
        (networks,) = self._networks(found)
        options = [*found.options, *_HERE, *networks]
        name = f"{self.container(service)}-{secrets.token_hex(4)}"
        self.engine.create(name, options, image_name(self.side), words)
        done = self.engine.attempt("start", "--attach", name, timeout_s=timeout_s)
        if done.returncode:
            said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-8:])
            raise StateError(f"fedmslora {' '.join(words)}: exit code {done.returncode}: {said}")
        self.engine.attempt("rm", name)
        self.engine.containers.remove(name)
        return done.stdout

    def await_health(self, *services: str) -> None:
        """Wait until the health checks of these services pass.

        Raises:
            StateError: one does not.
        """
        deadline = time.monotonic() + _HEALTHY_S
        for name in services:
            check, container = self.file.services[name].health, self.container(name)
            while self.engine.attempt("exec", container, *check).returncode:
                if time.monotonic() > deadline:
                    done = self.engine.attempt("logs", "--tail", "8", container)
                    said = " / ".join((done.stdout + done.stderr).strip().splitlines())
                    raise StateError(f"{container}: its health check still fails: {said}")
                time.sleep(1.0)

    def inside(self, service: str, code: str) -> str:
        """Run Python code in a service's container, and return what it prints."""
        return self.engine.run("exec", self.container(service), "python", "-c", code)

    def container(self, service: str) -> str:
        """Return the name of a service's container."""
        return f"{self.name}-{service}"

    def address(self, service: str) -> str:
        """Return a container's address on the network that all machines share."""
        form = f'{{{{(index .NetworkSettings.Networks "{self.shared}").IPAddress}}}}'
        return self.engine.run("inspect", "--format", form, self.container(service)).strip()

    def _network(self, name: str) -> str:
        return self.shared if name == "outside" else f"{self.name}-{name}"

    def _networks(self, service: Service) -> Sequence[Sequence[str]]:
        """Return the options of each of a service's networks."""
        if not service.networks:
            return [("--network", "none")]
        return [
            ("--network", self._network(name), *(w for a in aliases for w in ("--alias", a)))
            if number
            else (
                "--network",
                self._network(name),
                *(w for a in aliases for w in ("--network-alias", a)),
            )
            for number, (name, aliases) in enumerate(service.networks.items())
        ]


@dataclass(frozen=True, slots=True)
class Round:
    """What a federation in containers did.

    Attributes:
        seconds: from `coordinator init` to the verified bank.
        verified: what `bank verify` said.
        seen: what was found inside the containers, a line each.
    """

    seconds: float
    verified: str
    seen: tuple[str, ...]


def run_federation(engine: ContainerEngine, plan_file: Path, out: Path, say: Say) -> Round:
    """Run the plan in containers, verify its bank, and check what each container sees.

    Args:
        out: a folder with `hospitals`, in which each site has SITE/data.

    Raises:
        StateError: a step failed, or a container sees what it is not to see.
    """
    began, name, plan = time.monotonic(), f"fedmslora-{secrets.token_hex(3)}", load_plan(plan_file)
    shared = f"{name}-outside"
    engine.make_network(shared, internal=False)
    coordinator = _coordinator(engine, out / "coordinator", name, shared)
    shutil.copy(plan_file, coordinator.folder / "plans" / "plan.yaml")
    sites: list[ComposeProject] = []
    for site in plan.sites:
        say(f"{site}: init, enroll, approve, check")
        data = out / "hospitals" / site / "data"
        sites.append(_site(coordinator, site, data, out / site, plan))
    say("running the plan")
    coordinator.command(
        *("admin", "coordinator", "run", "/plans/plan.yaml", "--state", "/state"), timeout_s=_RUN_S
    )
    bank = f"/state/runs/{plan.name}/bank"
    verified = coordinator.command("admin", "bank", "verify", bank).strip()
    coordinator.await_health("superlink", "superexec", "edge", "keeper")
    seen = [line for site in sites for line in _seen(site)]
    return Round(time.monotonic() - began, verified, tuple(seen))


def _coordinator(engine: ContainerEngine, folder: Path, name: str, shared: str) -> ComposeProject:
    for inner in ("plans", "keys"):
        (folder / inner).mkdir(parents=True)
    _own_folder(folder / "state")
    file = read_compose(
        ROOT / "docker" / "coordinator" / "compose.yaml", folder, {"FEDMSLORA_USER": _user()}
    )
    machine = ComposeProject(engine, "coordinator", f"{name}-coordinator", folder, file, shared)
    machine.make_networks()
    where = ("--inner-host", "superlink", "--state", "/state")
    machine.command("admin", "coordinator", "init", "--host", HOST, *where)
    parts = ("superlink", "superexec", "edge", "keeper")
    machine.start(*parts)
    machine.await_health(*parts)
    return machine


def _site(
    coordinator: ComposeProject, site: str, data: Path, folder: Path, plan: Plan
) -> ComposeProject:
    """Set up a site as docs/hospital.md tells, and start it."""
    (folder / "plans").mkdir(parents=True)
    (folder / "empty").mkdir()
    _own_folder(folder / "site")
    _own_folder(folder / "site" / "store")
    shutil.copy(coordinator.folder / "state" / "tls" / "ca.crt", folder / "plans" / "ca.crt")
    shutil.copy(coordinator.folder / "plans" / "plan.yaml", folder / "plans" / "plan.yaml")
    settings = {
        "COORDINATOR_HOST": HOST,
        "COORDINATOR_IP": coordinator.address("edge"),
        "DATA": str(data.resolve()),
        "BASE_MODEL": str(ROOT / "simulation" / "base_model"),
        "FEDMSLORA_USER": _user(),
    }
    file = read_compose(ROOT / "docker" / "site" / "compose.yaml", folder, settings)
    name = f"{coordinator.name.removesuffix('coordinator')}{site}"
    machine = ComposeProject(coordinator.engine, "site", name, folder, file, coordinator.shared)
    machine.make_networks()
    stages = [stage for stage in plan.stages if site in stage.sites]
    modalities = list(dict.fromkeys(str(stage.modality) for stage in stages))
    machine.command(
        *("admin", "site", "init", "--name", site, "--ca", "/plans/ca.crt"),
        *(word for modality in modalities for word in ("--modality", modality)),
        *("--coordinator", f"{HOST}:8443", "--folder", "/site"),
        *("--data", "/data", "--base-model", "/base_model"),
    )
    key = f"{site}.pub"
    shutil.copy(folder / "site" / "keys" / key, coordinator.folder / "keys" / key)
    coordinator.command(
        *("admin", "coordinator", "enroll", f"/keys/{key}", "--name", site),
        *("--modality", modalities[0], "--state", "/state"),
    )
    machine.command("admin", "site", "approve", "/plans/plan.yaml", "--site", "/site")
    machine.command("check", "site", "check", "--plan", "/plans/plan.yaml", "--site", "/site")
    parts = ("supernode", "superexec", "trainer")
    machine.start(*parts)
    machine.await_health(*parts)
    return machine


#: What a container finds out about itself, as JSON. Run as its user.
_LOOK: Final = """
import json, os, pathlib
def names(path):
    try:
        return sorted(str(one.relative_to(path)) for one in pathlib.Path(path).rglob("*"))
    except OSError:
        return []
def writes(path):
    try:
        pathlib.Path(path, "x").touch()
    except OSError:
        return False
    return True
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(json.dumps({
    "uid": os.getuid(),
    "capabilities": int(status["CapEff"], 16),
    "privileges": int(status["NoNewPrivs"]),
    "root": writes("/") or writes("/opt/fedmslora"),
    "interfaces": sorted(os.listdir("/sys/class/net")),
    "data": names("/data"),
    "key": [one for one in names("/site/keys") if not one.endswith(".pub")],
    "features": [one for one in names("/site/store/features") if one != ".gitignore"],
    "answers": [one for one in names("/site/store/answers") if one != ".gitignore"],
    "store": sorted(os.listdir("/site/store")),
}))
"""


def _seen(site: ComposeProject) -> list[str]:
    """Check what each part of a site sees of it, and say so in lines.

    Raises:
        StateError: one sees what it is not to see, or the site did not do what was to be hidden.
    """
    here = site.folder / "site" / "store"
    features = [one for one in (here / "features").rglob("*") if one.is_file()]
    if not features:
        raise StateError(f"{here}: found no features of images, expected some to be hidden")
    if kept := [one for one in (here / "answers").iterdir() if one.name != ".gitignore"]:
        raise StateError(f"{here}: found {len(kept)} files of answers, expected none")
    lines: list[str] = []
    for part in ("supernode", "superexec", "trainer"):
        found = json.loads(site.inside(part, _LOOK))
        wanted = {
            "uid": int(_user().partition(":")[0]),
            "capabilities": 0,
            "privileges": 1,
            "root": False,
            "data": part == "trainer",
            "features": part == "trainer",
            "answers": False,
            "key": part == "supernode",
        }
        plain = ("uid", "capabilities", "privileges")
        wrong = [
            name
            for name, expected in wanted.items()
            if (found[name] if name in plain else bool(found[name])) != expected
        ]
        if part == "trainer" and found["interfaces"] != ["lo"]:
            wrong.append("interfaces")
        if part == "supernode" and found["store"] != ["flower", "secrets"]:
            wrong.append("store")
        if wrong:
            listed = ", ".join(f"{name}: {found[name]}" for name in wrong)
            raise StateError(f"{site.container(part)}: sees what it is not to see: {listed}")
        sees = [name for name in ("key", "data", "features") if found[name]]
        lines.append(
            f"{site.container(part)}: uid {found['uid']}, {', '.join(found['interfaces'])}; "
            f"of key, data and features it sees {' and '.join(sees) or 'none'}"
        )
    return lines


def _own_folder(folder: Path) -> None:
    """Make a folder that only the containers' user can enter."""
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(folder, _USER, _USER)


def _user() -> str:
    return f"{_USER}:{_USER}" if os.geteuid() == 0 else f"{os.geteuid()}:{os.getegid()}"
