"""podman or Docker, by the command line that both have."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.errors import StateError

ENGINES = ("podman", "docker")
#: So long an engine may take for anything but a build, a pull or a run.
_PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class ContainerEngine:
    """An engine, and what was made with it here.

    Attributes:
        program: the name of its command.
        containers: those that were started and not removed.
        networks: likewise.
    """

    program: str
    containers: list[str] = field(default_factory=list[str])
    networks: list[str] = field(default_factory=list[str])

    def run(self, *words: str, timeout_s: float = _PATIENCE_S) -> str:
        """Run the engine's command with these words, and return what it prints.

        Raises:
            StateError: it failed; with the last lines that it printed.
        """
        done = self.attempt(*words, timeout_s=timeout_s)
        if done.returncode:
            said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-8:])
            shown = " ".join(words[:3])
            raise StateError(f"{self.program} {shown}: exit code {done.returncode}: {said}")
        return done.stdout

    def attempt(
        self, *words: str, timeout_s: float = _PATIENCE_S
    ) -> subprocess.CompletedProcess[str]:
        """Run the engine's command with these words, whatever its exit code.

        Raises:
            StateError: it did not end in time.
        """
        try:
            return subprocess.run(
                [self.program, *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired:
            shown = " ".join(words[:3])
            raise StateError(
                f"{self.program} {shown}: has not ended within {timeout_s:g} s, expected it to"
            ) from None

    def has_image(self, name: str) -> bool:
        """Return whether this machine has the image."""
        return self.attempt("image", "inspect", name).returncode == 0

    def image_bytes(self, name: str) -> int:
        """Return an image's size."""
        return int(self.run("image", "inspect", "--format", "{{.Size}}", name))

    def make_network(self, name: str, internal: bool) -> None:
        """Make a bridge network, which `clean_up` removes."""
        # First: a command that is cut off may have made it.
        self.networks.append(name)
        self.run("network", "create", *(["--internal"] if internal else []), name)

    def start(self, name: str, options: Sequence[str], image: str, command: Sequence[str]) -> None:
        """Create and start a container, which `clean_up` removes."""
        self.create(name, options, image, command)
        self.run("start", name)

    def create(self, name: str, options: Sequence[str], image: str, command: Sequence[str]) -> None:
        """Create a container, which `clean_up` removes."""
        self.containers.append(name)
        self.run("create", "--name", name, *options, image, *command)

    def clean_up(self) -> None:
        """Remove the containers and networks that were made here; images stay.

        Raises:
            StateError: some could not be removed in time; the others are.
        """
        left: list[str] = []
        while self.containers or self.networks:
            words = ("rm", "--force", "--volumes") if self.containers else ("network", "rm")
            name = (self.containers or self.networks).pop()
            try:
                self.attempt(*words, name)
            except StateError:
                left.append(name)
        if left:
            raise StateError(
                f"{self.program}: found that {', '.join(left)} can't be removed in time, expected "
                "it; remove them by hand"
            )


def find_engine(wanted: str | None) -> ContainerEngine:
    """Return the engine of this name, or the first that answers here.

    Raises:
        StateError: none answers.
    """
    for program in (wanted,) if wanted else ENGINES:
        if shutil.which(program) and ContainerEngine(program).attempt("info").returncode == 0:
            return ContainerEngine(program)
    raise StateError(
        f"{wanted or 'podman, docker'}: found no engine that answers, expected one of the two"
    )
