"""This machine's pip configuration for a build: a file, and the folders and files that it names."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Mapping
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from common.errors import StateError

#: Where pip looks in a container, whoever runs it.
_TARGET = "/etc/pip.conf"


def pip_settings() -> Mapping[str, str]:
    """Return what `pip config list` says, environment variables included, by an option's name.

    Raises:
        StateError: this Python has no pip, or pip can't read its configuration.
    """
    words = ("-m", "pip", "config", "list")
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise StateError(f"python {' '.join(words)}: exit code {done.returncode}: {said}")
    listed, found = done.stdout, dict[str, str]()
    # `global.` and `install.` come before `:env:.`, which overrules them.
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        found[name.rpartition(".")[2]] = str(ast.literal_eval(value))
    return found


def mounts(settings: Mapping[str, str], file: Path) -> list[str]:
    """Write the settings to `file`, and return the mounts that a build needs for them.

    The file may hold a password, so only its owner may read it; remove it after the build.
    """
    document = ConfigParser(interpolation=None)
    document["global"] = dict(settings)
    file.touch(mode=0o600)
    with file.open("w", encoding="utf-8") as opened:
        document.write(opened)
    places = [(str(file), _TARGET), *((path, path) for path in local_paths(settings.values()))]
    return [word for source, target in places for word in ("--volume", f"{source}:{target}:ro")]


def local_paths(values: Iterable[str]) -> list[str]:
    """Return the files and folders of this machine that values name, as paths or file: URLs.

    Of an index `.../simple` the folder above: its pages refer to files beside it.
    """
    found: list[str] = []
    for word in (word for value in values for word in value.split()):
        url = urlsplit(word)
        path = Path(url2pathname(url.path)) if url.scheme == "file" else Path(word)
        if url.scheme == "file" and path.name == "simple":
            path = path.parent
        if path.is_absolute() and path.exists():
            found.append(str(path))
    return list(dict.fromkeys(found))
