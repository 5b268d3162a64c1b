"""Calls of `fedmslora coordinator` in this process."""

from pathlib import Path

from click.testing import Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner

from commands.coordinator import app
from common.errors import Refusal
from server.coordinator.state import State

CALL = CliRunner()


def called(state: State, *words: str) -> Result:
    return CALL.invoke(app, [*words, "--state", str(state.root)])


def said(state: State, *words: str) -> str:
    result = called(state, *words)
    assert result.exit_code == 0, result.exception
    return result.output


def refusal(state: State, *words: str) -> str:
    result = called(state, *words)
    assert isinstance(result.exception, Refusal), result.output
    return str(result.exception)


def public_key(file: Path) -> str:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    file.write_bytes(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return str(file)


def first(state: State) -> str:
    return str(state.plans / "first.yaml")
