"""The command line; each command imports what it needs when it is called."""
# typer leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false

import sys
import warnings
from typing import Annotated, NoReturn

# typer, which flwr 1.42 imports, uses a name that click has deprecated; not ours to fix.
warnings.filterwarnings("ignore", category=DeprecationWarning, module="typer")
# peft 0.21 reads a property that transformers 5.24 has deprecated; not ours to fix.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)

import typer  # noqa: E402 - after the filter

from commands import (  # noqa: E402
    answers,
    bank,
    bench,
    coordinator,
    data,
    plan,
    retrieval,
    simulate,
    site,
)
from common.errors import Refusal  # noqa: E402

app = typer.Typer(
    name="fedmslora",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    """Print the version and what the other side must have alike, and end."""
    if wanted:
        from importlib.metadata import version

        from common.code_digest import code_digest

        typer.echo(f"fedmslora {version('fedmslora')}\ncode digest {code_digest()}")
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
app.add_typer(answers.app, name="answers")
app.add_typer(bank.app, name="bank")
app.add_typer(coordinator.app, name="coordinator")
app.add_typer(data.app, name="data")
app.add_typer(plan.app, name="plan")
app.add_typer(retrieval.app, name="retrieval")
app.add_typer(site.app, name="site")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Run the command line; a mistake of the user is one sentence on stderr and exit code 2."""
    try:
        # Also for `python -m fedmslora`.
        app(prog_name="fedmslora")
    except Refusal as refusal:
        _refuse(str(refusal))
    except ModuleNotFoundError as error:
        _refuse(
            f"found no package {error.name!r}, expected the packages of this command: "
            "pip install --editable '.[sim]'"
        )
    except OSError as error:
        # A full disk or a folder without permission, wherever it is met.
        if error.strerror is None:
            raise
        _refuse(f"{error.filename or 'the disk'}: can't be read or written ({error.strerror})")


def _refuse(sentence: str) -> NoReturn:
    sys.stderr.write(f"{sentence}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
