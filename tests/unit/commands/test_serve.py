"""`fedmslora serve`: what is refused before the base model is loaded."""

import errno
import socket
import ssl
from pathlib import Path
from unittest.mock import Mock

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from typer.testing import CliRunner

from common.bank.bank import Bank
from common.errors import BankError, StateError
from common.network import ports
from fedmslora import app
from server.coordinator.certificates import renew_server, write_certificates
from tests.unit.small_bank import bank_of

SECRET = "sixteen-letters-"


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return bank_of(tmp_path / "bank", "ct", "mr")


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDMSLORA_TOKEN", raising=False)


def refused(*words: object) -> Exception:
    done = CliRunner().invoke(app, ["serve", *map(str, words)])
    assert isinstance(done.exception, Exception)
    assert done.stdout == ""
    return done.exception


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_file_that_was_changed_is_named_before_anything_is_served(bank: Bank, name: str):
    file = bank.folder / "000-ct" / name
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    error = refused(bank.folder)
    assert isinstance(error, BankError)
    assert str(file) in str(error)


def test_a_token_is_long_and_can_be_sent_in_a_header(
    bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "token"
    for content, found in (
        (b"", "of 0 characters"),
        (b"short", "of 5 characters"),
        (b"sixteen letters in words", "of 24 characters"),
        ("sixteen-lettérs-".encode(), "of 16 characters"),
        (b"\xff" * 20, "no text"),
    ):
        file.write_bytes(content)
        error = refused(bank.folder, "--token-file", file)
        assert isinstance(error, StateError)
        assert str(error).startswith(f"{file}: found ") and found in str(error)
        assert SECRET not in str(error)
    monkeypatch.setenv("FEDMSLORA_TOKEN", "short")
    assert str(refused(bank.folder)).startswith("FEDMSLORA_TOKEN: found a token of 5 characters")
    none, large = tmp_path / "none", tmp_path / "large"
    large.write_bytes(b"a" * 5000)
    for given, why in (
        (none, "No such file or directory"),
        (tmp_path, "Is a directory"),
        (large, "found more than 4,096 bytes, expected at most so many"),
    ):
        error = refused(bank.folder, "--token-file", given)
        assert isinstance(error, StateError)
        assert str(error) == f"{given}: can't be read as a token ({why})"


@pytest.mark.parametrize("host", ["", "a b", "a\nb", "http://x.org", "x.org:8000", "::1%\x01"])
def test_a_host_that_is_none_is_said(bank: Bank, host: str):
    error = refused(bank.folder, "--host", host, "--plain-http")
    assert isinstance(error, StateError)
    assert str(error).startswith(f"--host: found {host!r}")


@pytest.mark.parametrize("seconds", ["nan", "inf", "86401"])
def test_an_answer_takes_a_day_at_most(bank: Bank, seconds: str):
    error = refused(bank.folder, "--timeout-s", seconds)
    assert isinstance(error, StateError)
    assert str(error) == f"--timeout-s: found {seconds}, expected 1 to 86400 seconds"


def test_a_port_that_is_taken_is_said_before_anything_is_read(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ports, "PATIENCE_S", 0.0)
    (bank.folder / "bank.json").unlink()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = refused(bank.folder, "--port", port)
    assert isinstance(error, StateError)
    assert str(error) == (
        f"127.0.0.1:{port}: found another program at it, expected a free port: stop that one, or "
        "change --host or --port"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "hospital.example"])
def test_beyond_this_machine_it_takes_tls_or_to_be_told(bank: Bank, host: str):
    error = refused(bank.folder, "--host", host)
    assert isinstance(error, StateError)
    assert str(error).startswith(f"--host: found {host}, which other machines reach, without TLS")


def test_a_certificate_needs_its_key_and_both_are_files(bank: Bank, tmp_path: Path):
    file = tmp_path / "there.pem"
    file.touch()
    said = {
        ("--tls-cert", file): "--tls-key: found none, expected a certificate and its key",
        ("--tls-key", file): "--tls-cert: found none, expected a certificate and its key",
        ("--tls-cert", file, "--tls-key", tmp_path / "none"): (
            f"--tls-key: found no file {tmp_path / 'none'}, expected one in PEM"
        ),
    }
    for words, sentence in said.items():
        assert str(refused(bank.folder, *words)) == sentence


def test_what_tls_can_not_use_is_said_and_no_password_is_asked_for(bank: Bank, tmp_path: Path):
    folder = tmp_path / "tls"
    write_certificates(folder, ["127.0.0.1"])
    certificate, key, empty = folder / "server.crt", folder / "server.key", tmp_path / "empty"
    empty.touch()
    old = tmp_path / "old.crt"
    old.write_bytes(certificate.read_bytes())
    renew_server(folder, ["127.0.0.1"])
    secret = tmp_path / "secret.key"
    loaded = load_pem_private_key(key.read_bytes(), password=None)
    secret.write_bytes(
        loaded.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(SECRET.encode())
        )
    )
    pairs = ((empty, empty), (key, certificate), (old, key), (certificate, secret))
    for one, other in pairs:
        error = refused(bank.folder, "--tls-cert", one, "--tls-key", other)
        assert isinstance(error, StateError)
        assert f"found {one} and {other}, which TLS can't use (" in str(error)
    # With a good pair it goes on, to a bank that is on no base model of ours.
    error = refused(bank.folder, "--tls-cert", certificate, "--tls-key", key)
    assert isinstance(error, BankError)


def test_a_tls_file_that_may_not_be_read_is_said(
    bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "there.pem"
    file.touch()
    # What Python raises, which names no file; root may read all.
    denied = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", Mock(side_effect=denied))
    error = refused(bank.folder, "--tls-cert", file, "--tls-key", file)
    assert isinstance(error, StateError)
    assert f"found {file} and {file}, which TLS can't use (Permission denied)" in str(error)
