"""The command line, and what Python programs import: `open_bank` and `__version__`.

Each command, and `open_bank`, imports what it needs when it is called.
"""
# typer leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false

import errno
import io
import json
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TextIO

# typer, which flwr 1.42 imports, uses a name that click has deprecated; not ours to fix.
warnings.filterwarnings("ignore", category=DeprecationWarning, module="typer")
# peft 0.21 reads a property that transformers 5.24 has deprecated; not ours to fix.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)

import click  # noqa: E402 - after the filter
import typer  # noqa: E402

from commands import (  # noqa: E402
    answers,
    bank,
    bench,
    compare,
    coordinator,
    data,
    model,
    plan,
    retrieval,
    serve,
    simulate,
    site,
)
from commands.options import refuse_empty_paths  # noqa: E402
from commands.version import installed_version  # noqa: E402
from common.errors import Refusal  # noqa: E402

if TYPE_CHECKING:
    from serving.open_bank import OpenBank

#: What the system says of a disk without a path: no space, over the quota, a device's error.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG}
#: Rooms that the containers' images leave out.
_NOT_IN_IMAGES = ("benchmarks", "retrieval", "simulation")
#: The exit code of a command that Ctrl-C ended.
_INTERRUPTED = 130
#: The version of this checkout or installation; read when it is asked for.
__version__: str

app = typer.Typer(
    name="fedmslora",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    """Print the version and what the other side must have alike, and end."""
    if wanted:
        from common.code_digest import code_digest

        typer.echo(f"fedmslora {installed_version()}\ncode digest {code_digest()}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and the code digest, which all sites must have alike.",
        ),
    ] = False,
) -> None:
    """Federated learning of a medical vision-language model, one modality after another."""


app.command("simulate")(simulate.simulate)
app.command("report")(simulate.report)
app.command("compare")(compare.compare)
app.command("serve")(serve.serve)
app.add_typer(answers.app, name="answers")
app.add_typer(bank.app, name="bank")
app.add_typer(coordinator.app, name="coordinator")
app.add_typer(data.app, name="data")
app.add_typer(model.app, name="model")
app.add_typer(plan.app, name="plan")
app.add_typer(retrieval.app, name="retrieval")
app.add_typer(site.app, name="site")
app.add_typer(bench.app, name="bench")


def open_bank(
    path: str | Path,
    *,
    base_model: str | Path | None = None,
    vision_weights: str = "openai",
    precision: str | None = None,
    site: str | Path | None = None,
) -> "OpenBank":
    """Open a bank of adapters, to be asked about pictures (docs/use.md).

    Args:
        path: the bank's folder, or its run's.
        base_model: the base model's folder; by default the one that comes with the project.
        vision_weights: vision tower of an original LLaVA-Med, "openai" or "checkpoint", as in the
            bank's plan.
        precision: of the base model, "fp32" or "bf16"; by default bf16 on a GPU, else fp32.
        site: this site's file: its own B answers, where the bank's rule left it one.

    Raises:
        BankError: there is no bank, its hash chain is broken, or its base model does not come with
            the project.
        PlanError: `vision_weights` or `precision` is another word.
        SiteFailed: the site's file is wrong.
    """
    from commands.bank_ask import Bits, Tower, ask_settings, embedded_base
    from commands.options import bank_in
    from common.bank.bank import Bank
    from common.errors import PlanError
    from serving.open_bank import OpenBank

    for name, value, known in (
        ("vision_weights", vision_weights, set(Tower)),
        ("precision", precision, {*Bits, None}),
    ):
        if value not in known:
            words = ", ".join(sorted(filter(None, known)))
            raise PlanError(f"{name}: found {value!r}, expected one of {words}")
    bank = Bank.open(bank_in(Path(path)))
    settings = ask_settings(
        Tower(vision_weights),
        None if precision is None else Bits(precision),
        None if site is None else Path(site),
    )
    return OpenBank(bank, embedded_base(bank) if base_model is None else Path(base_model), settings)


def __getattr__(name: str) -> str:
    if name == "__version__":
        return installed_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """Run the command line; a mistake of the user is one sentence on stderr and exit code 2.

    With `--json` the sentence is also on stdout, as the field `error` of one JSON object.
    """
    as_json = _wants_json()
    _take_any_name(sys.stdout)
    try:
        command = typer.main.get_command(app)
        refuse_empty_paths(command)
        # Also for `python -m fedmslora`.
        code = command(prog_name="fedmslora", standalone_mode=not as_json)
    except click.ClickException as error:
        _refuse(error.format_message(), error.exit_code)
    except click.Abort:
        _refuse("Aborted.", 1)
    except Refusal as refusal:
        _refuse(str(refusal))
    except ModuleNotFoundError as error:
        _refuse(_about_a_module(error.name or ""))
    except (OSError, RuntimeError) as error:
        sentence = _about_a_path(error)
        if sentence is None:
            raise
        _refuse(sentence)
    else:
        _leave(code)


def _leave(code: object) -> NoReturn:
    """Exit as a command has ended: of one that ended by itself typer returns the code."""
    if code == _INTERRUPTED and _wants_json():
        _refuse("found an interruption (Ctrl-C), expected to go on to the end", _INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _about_a_module(name: str) -> str:
    """Return a sentence on a module that is not there: a package, or a room of the repository."""
    if (room := name.partition(".")[0]) in _NOT_IN_IMAGES:
        return f"found no {room}/, which an image does not have, expected the whole repository"
    return (
        f"found no package {name!r}, expected the packages of this command: "
        "pip install --editable '.[sim]'"
    )


def _about_a_path(error: OSError | RuntimeError) -> str | None:
    """Return a sentence on a full disk or a path without permission, wherever it is met."""
    if isinstance(error, OSError):
        where = error.filename or ("the disk" if error.errno in _OF_THE_DISK else None)
        return f"{where}: can't be read or written ({error.strerror})" if where else None
    # What Python raises in place of an OSError, until 3.12.
    _, loop, path = str(error).partition("Symlink loop from ")
    return (
        f"{path[1:-1]}: found a symbolic link that leads to itself, expected none" if loop else None
    )


def _take_any_name(stream: TextIO | None) -> None:
    """Write a letter that the terminal's encoding lacks, or a byte of a name, as an escape."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")


def _wants_json() -> bool:
    # Also where it has a value, which is refused.
    return any(word.partition("=")[0] == "--json" for word in sys.argv[1:])


def _refuse(sentence: str, code: int = 2) -> NoReturn:
    _write(sys.stderr, _without_controls(sentence))
    if _wants_json():
        _write(sys.stdout, json.dumps({"error": sentence}))
    sys.exit(code)


def _without_controls(text: str) -> str:
    """Escape what would steer a terminal, as a file's name may have it; lines stay lines."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text
    )


def _write(stream: TextIO | None, line: str) -> None:
    """Write a line, if anybody still reads the stream; the exit code says the rest."""
    # Python has None for a stream that was closed before it started.
    if stream is None:
        return
    try:
        stream.write(f"{line}\n")
        stream.flush()
    except OSError:
        # What stays in the buffer would fail again when Python ends, with a traceback.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
