"""Compose files as options of an engine: what is known is one, anything else is refused."""

from pathlib import Path

import pytest
import yaml

from common.errors import StateError
from common.identity import ROOT
from simulation.containers.compose import read_compose
from simulation.containers.engine import find_engine
from simulation.containers.images import default_base
from simulation.containers.pip_settings import local_paths, mounts

SITE = ROOT / "docker" / "site" / "compose.yaml"
SETTINGS = {
    "COORDINATOR_HOST": "hub.example.org",
    "COORDINATOR_IP": "10.0.0.2",
    "DATA": "/srv/data",
    "BASE_MODEL": "/srv/model",
}


def pairs(options: tuple[str, ...], name: str) -> list[str]:
    """The values of an option that may be given several times."""
    return [options[i + 1] for i, word in enumerate(options) if word == name]


def test_a_service_becomes_the_options_of_create(tmp_path: Path):
    found = read_compose(SITE, tmp_path, SETTINGS)
    assert found.internal == {"inside": True, "outside": False}
    supernode = found.services["supernode"]
    assert supernode.networks == {
        "inside": ("supernode", "supernode-inside"),
        "outside": ("supernode",),
    }
    assert pairs(supernode.options, "--volume") == [
        f"{tmp_path}/site/site.yaml:/site/site.yaml:ro",
        f"{tmp_path}/site/ca.crt:/site/ca.crt:ro",
        f"{tmp_path}/site/keys:/site/keys:ro",
        f"{tmp_path}/site/store/flower:/site/store/flower",
        f"{tmp_path}/site/store/secrets:/site/store/secrets",
    ]
    assert pairs(supernode.options, "--add-host") == ["hub.example.org:10.0.0.2"]
    assert pairs(supernode.options, "--user") == ["10001:10001"]
    assert pairs(supernode.options, "--memory") == ["4g"]
    assert pairs(supernode.options, "--stop-timeout") == ["60"]
    assert {"--read-only", "--init"} <= set(supernode.options)
    trainer = found.services["trainer"]
    assert trainer.networks == {} and "/srv/data:/data:ro" in trainer.options
    assert trainer.health[:2] == ("python", "-c")


def test_nothing_is_published_on_the_machine(tmp_path: Path):
    file = ROOT / "docker" / "coordinator" / "compose.yaml"
    assert yaml.safe_load(file.read_text("utf-8"))["services"]["edge"]["ports"]
    edge = read_compose(file, tmp_path, {}).services["edge"]
    assert not {"-p", "--publish", "-P", "--publish-all"} & set(edge.options)


def test_a_field_that_is_not_known_is_named(tmp_path: Path):
    document = yaml.safe_load(SITE.read_text("utf-8"))
    document["services"]["trainer"]["privileged"] = True
    file = tmp_path / "compose.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(StateError, match=r"services\.trainer: found privileged"):
        read_compose(file, tmp_path, SETTINGS)


def test_a_variable_without_a_value_is_named(tmp_path: Path):
    with pytest.raises(StateError, match="found no value of COORDINATOR_HOST"):
        read_compose(SITE, tmp_path, {})


def test_an_engine_that_is_not_there_is_one_sentence():
    with pytest.raises(StateError, match="no-such-engine: found no engine that answers"):
        find_engine("no-such-engine")


def test_the_base_is_the_one_that_the_dockerfiles_name():
    assert default_base().startswith("docker.io/library/python:3.11-slim")


def test_what_pips_settings_name_on_this_machine_is_mounted(tmp_path: Path):
    index, wheels = tmp_path / "index" / "simple", tmp_path / "wheels"
    for folder in (index, wheels):
        folder.mkdir(parents=True)
    # An index' pages refer to files beside it.
    values = [f"{index.as_uri()} https://index.example.org/simple", str(wheels), "180", "/no/such"]
    assert local_paths(values) == [str(index.parent), str(wheels)]
    file = tmp_path / "pip.conf"
    found = mounts({"find-links": str(wheels), "timeout": "180"}, file)
    assert found == [
        *("--volume", f"{file}:/etc/pip.conf:ro"),
        *("--volume", f"{wheels}:{wheels}:ro"),
    ]
    assert file.read_text() == f"[global]\nfind-links = {wheels}\ntimeout = 180\n\n"
    # It may hold the password of an index.
    assert file.stat().st_mode & 0o077 == 0
