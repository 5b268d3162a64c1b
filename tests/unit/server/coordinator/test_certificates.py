"""A site knows the coordinator by its own authority's certificate, and by no other."""

import ssl
from pathlib import Path

import pytest
from cryptography import x509

from common.durable import write_new_file
from common.errors import StateError
from server.coordinator.certificates import (
    days_left,
    load_authority,
    read_certificate,
    renew_server,
    write_certificates,
)

NAMES = ("fed.example.org", "localhost", "127.0.0.1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_certificates(tmp_path / "tls", NAMES)
    return tmp_path / "tls"


def shake_hands(folder: Path, trusted: Path, name: str) -> None:
    """A TLS handshake in memory between a server with this folder and a site that trusts."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "server.crt", folder / "server.key")
    asking = ssl.create_default_context(cafile=str(trusted))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asking.wrap_bio(to_client, to_server, server_hostname=name)
    server = serving.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    while waiting:
        side = waiting.pop(0)
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(side)


@pytest.mark.parametrize("name", NAMES)
def test_the_server_is_known_under_each_of_its_names(folder: Path, name: str):
    shake_hands(folder, folder / "ca.crt", name)


def test_another_name_is_refused(folder: Path):
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(folder, folder / "ca.crt", "other.example.org")


def test_another_authority_is_refused(folder: Path, tmp_path: Path):
    write_certificates(tmp_path / "other", NAMES)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(folder, tmp_path / "other/ca.crt", "localhost")


def test_the_authority_lasts_ten_years_and_the_server_825_days(folder: Path):
    # The whole days that are left, a moment later.
    assert days_left(folder / "ca.crt") == 3649
    assert days_left(folder / "server.crt") == 824


def test_nobody_else_reads_a_key(folder: Path):
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "ca.key").stat().st_mode & 0o777 == 0o600
    assert (folder / "server.key").stat().st_mode & 0o777 == 0o600


def test_a_renewed_server_is_known_by_what_the_sites_have(folder: Path, tmp_path: Path):
    before = (folder / "server.crt").read_bytes()
    trusted = tmp_path / "ca.crt"
    trusted.write_bytes((folder / "ca.crt").read_bytes())
    renew_server(folder, ("new.example.org",))
    assert (folder / "server.crt").read_bytes() != before
    shake_hands(folder, trusted, "new.example.org")


def test_a_disk_that_is_full_leaves_the_certificate_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(file: Path, blob: bytes, mode: int) -> None:
        if file.name.endswith(".crt"):
            raise OSError(28, "No space left on device", str(file))
        write_new_file(file, blob, mode)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("server.coordinator.certificates.write_new_file", full)
        renew_server(folder, ("new.example.org",))
    shake_hands(folder, folder / "ca.crt", "fed.example.org")
    # What was half-written does not stop the next try.
    renew_server(folder, ("new.example.org",))
    shake_hands(folder, folder / "ca.crt", "new.example.org")
    assert (folder / "server.key").stat().st_mode & 0o777 == 0o600
    assert {file.name for file in folder.iterdir()} == {
        "ca.crt", "ca.key", "server.crt", "server.key",
    }  # fmt: skip


def test_the_server_can_sign_no_certificate(folder: Path):
    certificate = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_damaged_authority_is_refused(folder: Path):
    (folder / "ca.key").write_text("nothing", encoding="utf-8")
    with pytest.raises(StateError, match="can't read the certificate authority"):
        load_authority(folder)
    (folder / "server.crt").write_text("nothing", encoding="utf-8")
    with pytest.raises(StateError, match=r"server\.crt: .*found no whole certificate"):
        days_left(folder / "server.crt")


@pytest.mark.parametrize("damage", [b"", b"-----BEGIN", b"\xff\xfe"])
def test_a_damaged_certificate_of_the_authority_is_named(folder: Path, damage: bytes):
    file = folder / "ca.crt"
    whole = file.read_bytes()
    assert read_certificate(file) == whole
    file.write_bytes(damage + (whole if damage == b"\xff\xfe" else b""))
    with pytest.raises(StateError, match=r"ca\.crt: .*found no whole certificate.*expected the"):
        read_certificate(file)
    file.unlink()
    with pytest.raises(StateError, match=r"ca\.crt: can't be read \(No such file"):
        read_certificate(file)
