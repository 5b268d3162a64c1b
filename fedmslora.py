"""The front door: one command line, whose commands load what they need when they are called."""

import sys
import warnings
from typing import NoReturn

# flwr 1.41 -> typer imports a name that click has deprecated; not ours to mend.
warnings.filterwarnings("ignore", category=DeprecationWarning, module="typer")
# peft 0.21 reads a property that transformers 5.23 has deprecated; not ours to mend either.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)

import typer  # noqa: E402 - after the filter

from commands import answers, bank, bench, coordinator, data, plan, simulate, site  # noqa: E402
from common.errors import Refusal  # noqa: E402

app = typer.Typer(
    name="fedmslora",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Hospitals grow one medical vision-language model together, one modality at a time.",
)
app.command("simulate")(simulate.simulate)
app.command("report")(simulate.report)
app.add_typer(answers.app, name="answers")
app.add_typer(bank.app, name="bank")
app.add_typer(coordinator.app, name="coordinator")
app.add_typer(data.app, name="data")
app.add_typer(plan.app, name="plan")
app.add_typer(site.app, name="site")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Run the command line; a user's mistake is one clear sentence and exit code 2."""
    try:
        app()
    except Refusal as refusal:
        _refuse(str(refusal))
    except ModuleNotFoundError as error:
        _refuse(
            f"found no package {error.name!r}, expected what this command needs: "
            "pip install --editable '.[sim]'"
        )
    except OSError as error:
        # A full disk, a folder without permission: the user's to mend, wherever it shows.
        if error.strerror is None:
            raise
        _refuse(f"{error.filename or 'the disk'}: can't go on ({error.strerror})")


def _refuse(sentence: str) -> NoReturn:
    sys.stderr.write(f"{sentence}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
