"""Options that several commands share, so that they read alike everywhere."""

# typer 0.20 leaves a type of click's open in its overloads; not ours to fix.
# pyright: reportUnknownMemberType=false

import json
import os
import re
from collections.abc import Collection, Mapping
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final

import click
import typer
from typer.models import TyperPath

from common.errors import EMPTY_PATH, StateError


class Tower(StrEnum):
    """The values of a plan's `VisionWeights`, without importing plans."""

    OPENAI = "openai"
    CHECKPOINT = "checkpoint"


class Bits(StrEnum):
    """The values of a plan's `Precision`, without importing plans."""

    FP32 = "fp32"
    BF16 = "bf16"


#: The file that makes a folder a bank (common/bank/release.py), without importing banks.
_INDEX: Final = "bank.json"


def bank_in(folder: Path) -> Path:
    """Return a bank's folder: `folder`, or `bank` in it where that is a run's."""
    inner = folder / "bank"
    return inner if not (folder / _INDEX).exists() and (inner / _INDEX).is_file() else folder


def embedded_base_models() -> Mapping[str, Path]:
    """Return the folders of the base models that come with the project, by their names in a plan.

    None in a container's image, which has no simulation/.
    """
    if find_spec("simulation") is None:
        return {}
    from simulation.hospitals import BASE_MODELS

    return BASE_MODELS


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document on stdout."""
    typer.echo(json.dumps(document, indent=1))


BankFolder = Annotated[
    Path,
    typer.Argument(metavar="BANK", help="The bank's folder, or its run's.", callback=bank_in),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
BaseModelFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="The base model's folder; by default the one that comes with the project.",
    ),
]
VisionTower = Annotated[
    Tower, typer.Option(help="Vision tower of an original LLaVA-Med, as in the bank's plan.")
]
ModelPrecision = Annotated[
    Bits | None,
    typer.Option(
        help="Of the base model, as in a plan's training; by default bf16 on a GPU, else fp32."
    ),
]
SiteFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="This site's file: its own B answers, where the bank's rule left it one.",
    ),
]
Workers = Annotated[
    int, typer.Option(min=1, help="Processes that decode images; each needs memory.")
]
#: Decoding needs memory in each process, so no more than 8 are the default.
WORKERS: Final = min(8, os.cpu_count() or 1)
#: Outside the container it runs in, a command is typed after this (docker/*/compose.yaml).
COMPOSE_COMMAND: Final = "FEDMSLORA_COMMAND"


def whole_number(text: str) -> int | None:
    """Return the whole number from 1 on that a word is, of at most nine digits; None if none."""
    return int(text) if re.fullmatch("[1-9][0-9]{0,8}", text) else None


def whole_numbers(text: str) -> list[int] | None:
    """Return the whole numbers from 1 on of a text such as `5,1,1`; None if a word is none."""
    found = [whole_number(word.strip()) for word in text.split(",")]
    numbers = [number for number in found if number is not None]
    return numbers if len(numbers) == len(found) else None


class NamedPath(TyperPath):
    """A path as typer reads it, but for the empty text."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """Return the path.

        Raises:
            StateError: the text is empty.
        """
        completing = ctx is not None and ctx.resilient_parsing
        if value == "" and param is not None and not completing:
            raise StateError(f"{_shown(param)}: {EMPTY_PATH}")
        return super().convert(value, param, ctx)


def refuse_empty_paths(command: click.Command) -> None:
    """Have all options and arguments of a command that are paths refuse the empty text."""
    for one in command.params:
        if isinstance(one.type, click.Path):
            named = NamedPath()
            # What the option asks of its path, such as `exists`, it goes on asking.
            vars(named).update(vars(one.type))
            one.type = named
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            refuse_empty_paths(inner)


def _shown(parameter: click.Parameter) -> str:
    """Return what a user calls an option or argument."""
    if parameter.param_type_name == "option":
        return parameter.opts[0]
    return parameter.human_readable_name


def refuse_beside(option: str, others: Collection[str]) -> None:
    """Refuse parameters that would be ignored beside an option, by the names of the arguments.

    Raises:
        StateError: one of them was given.
    """
    from click.core import ParameterSource

    context = click.get_current_context()
    for one in context.command.params:
        given = context.get_parameter_source(one.name or "") is ParameterSource.COMMANDLINE
        if given and one.name in others:
            raise StateError(f"{option}: found {_shown(one)} beside it, expected one of them")


def refuse_no_file(option: str, file: Path) -> None:
    """Refuse a place that no file can take, before the work whose result it is to get.

    A folder or a device is none: root would replace `/dev/null`.

    Raises:
        StateError: something else is there.
    """
    if file.exists() and not file.is_file():
        raise StateError(f"{option}: found {file}, which is no file, expected a file's name")
    refuse_no_folder(option, file.parent)


def refuse_no_folder(option: str, folder: Path) -> None:
    """Refuse a place that no folder can take, before the work whose result it is to get.

    Raises:
        StateError: something else is there, or above it.
    """
    there = next(
        path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink()
    )
    if not there.is_dir():
        raise StateError(f"{option}: found {there}, which is no folder, expected one")


def typed(words: str) -> str:
    """Return `fedmslora WORDS` as an admin types it: for a container on its host, by compose."""
    compose = os.environ.get(COMPOSE_COMMAND)
    if compose is None:
        return f"fedmslora {words}"
    group, command = words.split()[:2]
    if command == "start":
        return "docker compose up --detach"
    # The command that needs the network and the images has a container of its own.
    service = "check" if (group, command) == ("site", "check") else "admin"
    return f"{compose.removesuffix('admin')}{service} {words}"
