"""The images and the compose files: valid, and as closed as docs/hospital.md says."""

import ast
import json
import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from typer.main import get_command

from commands import bank, coordinator, plan, site

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
COMPOSE_FILES = sorted(DOCKER.glob("*/compose*.yaml"))
COORDINATOR = DOCKER / "coordinator" / "compose.yaml"
SITE = DOCKER / "site" / "compose.yaml"
SITE_GPU = DOCKER / "site" / "compose.gpu.yaml"
PACKAGES = {file.parent.name for file in ROOT.glob("*/__init__.py")}
#: The containers that run for as long as the machine takes part.
PARTS = [
    *((COORDINATOR, name) for name in ("superlink", "superexec", "edge", "keeper")),
    *((SITE, name) for name in ("supernode", "superexec", "trainer")),
]
#: These and those that an admin's commands run in.
CONTAINERS = [*PARTS, (COORDINATOR, "admin"), (SITE, "admin"), (SITE, "check")]
#: What of a site's store is made of images and questions.
PATIENT_DATA = ("/site/store/features", "/site/store/answers")
#: Linux takes no longer name of a bridge.
LONGEST_BRIDGE = 15

COMMANDS = {
    "site": site.app,
    "coordinator": coordinator.app,
    "bank": bank.app,
    "plan": plan.app,
}

Service = dict[str, Any]


def services(file: Path) -> dict[str, Service]:
    document = cast(dict[str, Any], yaml.safe_load(file.read_text(encoding="utf-8")))
    return cast(dict[str, Service], document["services"])


def mounts(service: Service) -> dict[str, tuple[str, bool]]:
    """Each place where a volume is mounted: its source, and whether it is written."""
    found: dict[str, tuple[str, bool]] = {}
    for volume in service["volumes"]:
        if isinstance(volume, str):
            # A variable's default has no colon of its own but that of `:-`, `:?`.
            source, target, *mode = re.sub(r":([-?])", r"\1", volume).split(":")
            found[target] = source, mode != ["ro"]
        else:
            source = volume["source"].replace(":-", "-")
            found[volume["target"]] = source, not volume.get("read_only", False)
    return found


def seen_at(service: Service, path: str) -> str | None:
    """What a container has at a path: the source of the mount that is nearest above, or none."""
    above = [target for target in mounts(service) if f"{path}/".startswith(f"{target}/")]
    if not above:
        return None
    nearest = max(above, key=len)
    return mounts(service)[nearest][0] + path.removeprefix(nearest)


def instructions(file: Path) -> list[tuple[str, str]]:
    """(instruction, arguments), continued lines joined, comments left out."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    text = "\n".join(lines).replace("\\\n", " ")
    pairs = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, " ".join(arguments.split())) for name, arguments in pairs]


def named_in(code: str) -> set[str]:
    """The dotted names of our packages in Python code, such as `client.node.trainer.main`."""
    nodes = list(ast.walk(ast.parse(code)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    return {name for name in names if name.split(".")[0] in PACKAGES}


def exists(name: str) -> bool:
    """Whether a dotted name is a package, a module, or what a module defines at its top."""
    file = ROOT / f"{name.replace('.', '/')}.py"
    if file.exists() or file.with_suffix("").is_dir():
        return True
    module, _, attribute = name.rpartition(".")
    file = ROOT / f"{module.replace('.', '/')}.py"
    if not file.exists():
        return False
    defined = ast.parse(file.read_text(encoding="utf-8")).body
    return attribute in {getattr(node, "name", None) for node in defined}


def python_code_in(file: Path) -> list[str]:
    """The Python programs in a Dockerfile's or a compose file's health checks."""
    if file.suffix == ".Dockerfile":
        checks = [arguments for name, arguments in instructions(file) if name == "HEALTHCHECK"]
        return [json.loads(check.partition("CMD ")[2])[2] for check in checks]
    tests = [service.get("healthcheck", {}).get("test") for service in services(file).values()]
    return [test[3] for test in tests if test]


@pytest.mark.parametrize("file", [*DOCKERFILES, COORDINATOR, SITE], ids=lambda file: file.name)
def test_no_health_check_uses_a_proxy_of_the_environment(file: Path):
    # http.client has none; urllib takes that of HTTP_PROXY, also to a name of the inner network.
    for code in python_code_in(file):
        assert "urllib" not in code


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    path = Path(sysconfig.get_path("scripts")) / program
    assert path.exists(), f"{program} is not installed; the extra `test` has it"
    return subprocess.run(
        [str(path), *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_a_dockerfile_has_no_fault_that_hadolint_knows(file: Path):
    linted = run("hadolint", "--no-color", file)
    assert linted.returncode == 0, linted.stdout
    assert linted.stdout == ""


def test_compose_files_fit_the_compose_specification():
    checked = run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *COMPOSE_FILES)
    assert checked.returncode == 0, checked.stdout


def test_a_compose_file_with_a_wrong_field_would_be_noticed(tmp_path: Path):
    document = yaml.safe_load(COORDINATOR.read_text(encoding="utf-8"))
    document["services"]["edge"]["read-only"] = True
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(yaml.safe_dump(document), encoding="utf-8")
    checked = run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", wrong)
    assert checked.returncode == 1
    assert "read-only" in checked.stdout


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_runs_as_a_user_who_may_write_nothing_of_it(file: Path):
    found = instructions(file)
    users = [arguments for name, arguments in found if name == "USER"]
    assert users == ["10001:10001"]
    # What comes after USER would belong to that user.
    after = [name for name, _ in found[found.index(("USER", users[0])) :]]
    assert not {"RUN", "COPY", "ADD"} & set(after)
    assert "ENTRYPOINT" in after and "HEALTHCHECK" in after
    assert dict(found)["ENTRYPOINT"] == '["fedmslora"]'


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_has_the_tested_packages_and_all_the_code_of_the_digest(file: Path):
    found = instructions(file)
    assert found[0][0] == "ARG" and found[1] == ("FROM", "${BASE}")
    installed = [arguments for name, arguments in found if name == "RUN" and " pip " in arguments]
    assert len(installed) == 1 and "--constraint constraints.txt" in installed[0]
    copied = " ".join(arguments for name, arguments in found if name == "COPY")
    for room in ("common/", "server/", "client/"):
        assert f"{room} {room}" in copied
    ignored = Path(f"{file}.dockerignore").read_text(encoding="utf-8").splitlines()
    wanted = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    sources = {word.rstrip("/") for word in copied.split() if word != "./"}
    assert sources == wanted


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_all_that_a_dockerfile_copies_is_there(file: Path):
    copies = [arguments.split() for name, arguments in instructions(file) if name == "COPY"]
    sources = [source for copy in copies for source in copy[:-1]]
    assert len(sources) >= 12
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_packages_that_the_command_line_imports_are_in_both_images():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    # Only a developer's machine simulates, measures and retrieves reference pairs.
    needed = set(wheel) - {"simulation", "benchmarks", "retrieval"}
    for file in DOCKERFILES:
        copies = [arguments.split() for name, arguments in instructions(file) if name == "COPY"]
        assert needed <= {source.rstrip("/") for copy in copies for source in copy[:-1]}, file.name


@pytest.mark.parametrize("file", [*DOCKERFILES, *COMPOSE_FILES], ids=lambda file: file.name)
def test_every_module_that_a_health_check_names_exists(file: Path):
    for code in python_code_in(file):
        assert [name for name in sorted(named_in(code)) if not exists(name)] == []


def test_a_module_that_a_health_check_names_wrongly_would_be_noticed():
    checks = python_code_in(SITE)
    assert len(checks) == 3
    named = set[str]().union(*map(named_in, checks))
    assert "client.node.trainer" in named and len(named) >= 2
    assert not exists("client.trainer") and not exists("client.node.trainer.no_such_function")


def test_a_site_file_s_path_in_a_command_is_the_one_that_is_mounted():
    for name in ("supernode", "superexec", "trainer"):
        service = services(SITE)[name]
        command = service["command"]
        assert command[command.index("--site") + 1] == "/site/site.yaml"
        assert mounts(service)["/site/site.yaml"] == ("${SITE-./site}/site.yaml", False)


def test_the_coordinators_image_installs_no_torch_and_the_sites_does():
    extras = {
        file.name: re.findall(r"--editable \"?\.(\[.*\])?", file.read_text(encoding="utf-8"))
        for file in DOCKERFILES
    }
    assert extras == {"coordinator.Dockerfile": [""], "site.Dockerfile": ["[${EXTRAS}]"]}
    # DeepSpeed is for several GPUs, which few sites have.
    assert ("ARG", "EXTRAS=site") in instructions(DOCKER / "site.Dockerfile")
    assert "${EXTRAS:-site}" in SITE.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_a_build_asks_no_registry_but_for_its_base(file: Path):
    text = file.read_text(encoding="utf-8")
    # BuildKit would ask for the front end that such a line names.
    assert not re.search(r"^#\s*(syntax|check|escape)\s*=", text, re.MULTILINE)
    found = instructions(file)
    assert [arguments for name, arguments in found if name == "FROM"] == ["${BASE}"]
    assert not [arguments for _, arguments in found if "--from=" in arguments]


def test_both_images_and_both_compose_files_have_one_base():
    bases = {
        arguments.removeprefix("BASE=")
        for file in DOCKERFILES
        for name, arguments in instructions(file)
        if name == "ARG" and arguments.startswith("BASE=")
    }
    assert len(bases) == 1
    (base,) = bases
    assert re.fullmatch(r"docker\.io/library/python:3\.11-slim-\w+(@sha256:[0-9a-f]{64})?", base)
    for file in (COORDINATOR, SITE):
        (part,) = {str(service["build"]["args"]["BASE"]) for service in services(file).values()}
        assert part == f"${{BASE:-{base}}}"
        example = (file.parent / ".env.example").read_text(encoding="utf-8")
        assert f"\nBASE={base}\n" in example


def test_a_sites_image_says_which_driver_it_needs():
    (environment,) = [
        args for name, args in instructions(DOCKER / "site.Dockerfile") if name == "ENV"
    ]
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in environment
    # torch 2.13 from a package index is built for CUDA 13.0.
    assert 'NVIDIA_REQUIRE_CUDA="cuda>=13.0"' in environment


def test_what_a_build_installs_itself_is_pinned():
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(r"^setuptools==[\d.]+$", pinned, re.MULTILINE)


@pytest.mark.parametrize(("file", "name"), CONTAINERS)
def test_a_container_can_write_nowhere_but_to_its_volumes(file: Path, name: str):
    service = services(file)[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == "${FEDMSLORA_USER:-10001:10001}"
    assert "/tmp" in service["tmpfs"]
    assert "privileged" not in service
    assert not [place for place in mounts(service) if "docker.sock" in place]


@pytest.mark.parametrize(("file", "name"), PARTS)
def test_a_part_comes_back_after_a_kill_and_says_whether_it_is_well(file: Path, name: str):
    service = services(file)[name]
    assert service["restart"] == "unless-stopped"
    assert service["init"] is True
    assert re.fullmatch(r"\d+s", service["stop_grace_period"])
    check = service["healthcheck"]["test"]
    assert check[:3] == ["CMD", "python", "-c"]
    compile(check[3], "healthcheck", "exec")


@pytest.mark.parametrize(("file", "name"), PARTS)
def test_a_container_starts_the_part_of_its_name(file: Path, name: str):
    command = services(file)[name]["command"]
    assert command[:2] == [file.parent.name, "start"]
    assert command[command.index("--part") + 1] == name


def test_the_edge_alone_has_a_port():
    published = [
        (file.parent.name, name)
        for file in (COORDINATOR, SITE)
        for name, service in services(file).items()
        if "ports" in service
    ]
    assert published == [("coordinator", "edge")]


def test_the_superlink_is_on_the_inner_network_alone():
    document = yaml.safe_load(COORDINATOR.read_text(encoding="utf-8"))
    assert document["networks"]["inside"]["internal"] is True
    on = {name: service["networks"] for name, service in document["services"].items()}
    assert on == {
        **{name: ["inside"] for name in ("superlink", "superexec", "keeper", "admin")},
        "edge": ["inside", "outside"],
    }


def test_at_a_site_what_has_the_network_has_no_images_and_the_other_way_round():
    document = yaml.safe_load(SITE.read_text(encoding="utf-8"))
    assert document["networks"]["inside"]["internal"] is True
    parts = document["services"]
    assert set(parts["supernode"]["networks"]) == {"inside", "outside"}
    assert parts["superexec"]["networks"] == ["inside"]
    for name in ("trainer", "admin"):
        assert parts[name]["network_mode"] == "none" and "networks" not in parts[name]
    with_images = {name for name, part in parts.items() if seen_at(part, "/data")}
    # `check` tries the connection and a step of training, and is there for one command.
    assert with_images == {"trainer", "check"}
    assert parts["check"]["profiles"] == ["admin"]


@pytest.mark.parametrize("name", ["supernode", "superexec"])
@pytest.mark.parametrize("place", PATIENT_DATA)
def test_a_part_with_a_network_sees_nothing_that_is_made_of_images(name: str, place: str):
    service = services(SITE)[name]
    there = seen_at(service, place)
    assert there in (None, "./empty")
    if there is not None:
        assert mounts(service)[place] == ("./empty", False)
    # podman copies into a tmpfs what it lies over, so none may hide a part of a mounted folder.
    assert service["tmpfs"] == ["/tmp"]


def test_the_folder_that_lies_over_patient_data_is_there_and_empty():
    assert [file.name for file in (SITE.parent / "empty").iterdir()] == [".gitignore"]


def test_of_the_store_the_supernode_sees_flowers_files_and_the_shared_secret_alone():
    seen = {place for place in mounts(services(SITE)["supernode"]) if "/store" in place}
    assert seen == {"/site/store/flower", "/site/store/secrets"}


def test_a_mounted_file_that_is_not_there_is_no_folder_that_the_engine_makes():
    for service in services(SITE).values():
        for volume in service["volumes"]:
            if not isinstance(volume, str):
                assert volume["bind"] == {"create_host_path": False}, volume["target"]


def test_at_a_site_images_model_and_settings_are_only_read():
    for name in ("supernode", "superexec", "trainer"):
        written = {place for place, (_, writes) in mounts(services(SITE)[name]).items() if writes}
        assert written <= {"/site/store", "/site/store/flower", "/site/store/secrets"}


def test_the_key_is_the_supernodes_alone():
    with_key = {name for name, part in services(SITE).items() if seen_at(part, "/site/keys")}
    assert with_key == {"supernode", "admin", "check"}


@pytest.mark.parametrize(("file", "name"), CONTAINERS)
def test_a_container_has_a_bound_of_memory(file: Path, name: str):
    bound = services(file)[name]["mem_limit"]
    wanted = "TRAINER_MEMORY:-32g" if name in ("trainer", "check") else "MEMORY:-4g"
    assert bound == f"${{{wanted}}}"


@pytest.mark.parametrize(
    ("file", "guide"), [(SITE, "hospital.md"), (COORDINATOR, "coordinator.md")]
)
def test_each_bridge_has_a_name_for_which_the_guide_has_a_rule(file: Path, guide: str):
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    text = (ROOT / "docs" / guide).read_text(encoding="utf-8")
    for network in document["networks"].values():
        bridge = network["driver_opts"]["com.docker.network.bridge.name"]
        assert len(bridge) <= LONGEST_BRIDGE
        assert re.search(rf"iptables -I INPUT -i {bridge} .*-j DROP$", text, re.MULTILINE), bridge


def test_no_part_of_a_site_asks_a_hub_or_has_the_gpu_but_the_trainer():
    for name, service in services(SITE).items():
        assert service["environment"]["HF_HUB_OFFLINE"] == "1", name
        assert service["environment"]["NVIDIA_VISIBLE_DEVICES"] == "void", name
    # `check` is no part: it is there for one command.
    added = services(SITE_GPU)
    assert set(added) == {"trainer", "check"}
    devices = added["trainer"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]


def test_the_check_of_the_connection_goes_the_supernodes_way_out():
    supernode, check = (services(SITE)[name]["environment"] for name in ("supernode", "check"))
    for name in ("HTTPS_PROXY", "NO_PROXY"):
        assert check[name] == supernode[name] == f"${{{name}:-}}"


@pytest.mark.parametrize("file", [COORDINATOR, SITE], ids=lambda file: file.parent.name)
def test_the_example_settings_name_every_variable(file: Path):
    used = set(re.findall(r"\$\{(\w+)", file.read_text(encoding="utf-8")))
    example = (file.parent / ".env.example").read_text(encoding="utf-8")
    set_there = set(re.findall(r"^(\w+)=", example, flags=re.MULTILINE))
    assert used == set_there - {"COMPOSE_FILE"}


GUIDES = {"hospital.md": SITE, "coordinator.md": COORDINATOR}


@pytest.mark.parametrize("guide", sorted(GUIDES))
def test_every_compose_command_of_a_guide_names_a_service_and_a_command(guide: str):
    text = (ROOT / "docs" / guide).read_text(encoding="utf-8").replace("\\\n", " ")
    typed = re.findall(r"docker compose run --rm (\w+) ([^\n`]+)", text)
    assert len(typed) >= 6
    known = services(GUIDES[guide])
    for service, words in typed:
        group, *more = words.split()
        assert known[service]["profiles"] == ["admin"], service
        if group == "--version":
            continue
        # What needs the images has a container of its own.
        with_images = group == "site" and more[0] in ("check", "answers")
        assert (service == "check") == with_images, words
        # The stubs of typer 0.20 do not say what it is.
        command = cast(Any, get_command(COMMANDS[group]))
        assert more[0] in command.commands, words
        options = {str(name) for one in command.commands[more[0]].params for name in one.opts}
        assert {word for word in more if word.startswith("--")} <= options, words


def test_a_commands_paths_in_a_guide_are_mounted():
    for guide, file in GUIDES.items():
        text = (ROOT / "docs" / guide).read_text(encoding="utf-8").replace("\\\n", " ")
        for service, words in re.findall(r"docker compose run --rm (\w+) ([^\n`]+)", text):
            paths = [word for word in words.split() if word.startswith("/")]
            lost = [path for path in paths if seen_at(services(file)[service], path) is None]
            # `init` writes down where other containers will have the images.
            assert not set(lost) - {"/data"}, words


def test_project_changes_and_images_have_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.findall(r"^## (\d+\.\d+\.\d+) \((\d{4}-\d{2}-\d{2})\)$", changes, re.MULTILINE)
    assert len(found) == len(re.findall(r"^## ", changes, re.MULTILINE)) > 5
    assert found[0][0] == project["version"]
    assert [day for _, day in found] == sorted((day for _, day in found), reverse=True)
    named = "".join(file.read_text(encoding="utf-8") for file in (*COMPOSE_FILES, *DOCKERFILES))
    assert set(re.findall(r"fedmslora-\w+:(\S+)", named)) == {project["version"]}
