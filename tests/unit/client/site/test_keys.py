"""The node key: made once, read by its owner alone, of the kind that Flower takes."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.site.keys import load_key, make_key
from common.durable import DISK
from common.errors import SiteFailed


def test_a_new_key_is_ec_p_384_in_opensshs_format_and_only_its_owner_reads_it(tmp_path: Path):
    public = make_key(tmp_path / "north", "north")
    assert public == tmp_path / "north.pub"
    assert stat.S_IMODE((tmp_path / "north").stat().st_mode) == 0o600
    assert (tmp_path / "north").read_bytes().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    kind, _, name = public.read_text().split()
    assert (kind, name) == ("ecdsa-sha2-nistp384", "north")
    read = serialization.load_ssh_public_key(public.read_bytes())
    assert isinstance(read, ec.EllipticCurvePublicKey)
    assert load_key(tmp_path / "north").public_key() == read


def test_a_key_is_never_overwritten(tmp_path: Path):
    make_key(tmp_path / "north", "north")
    before = (tmp_path / "north").read_bytes()
    with pytest.raises(SiteFailed, match="never overwritten"):
        make_key(tmp_path / "north", "north")
    assert (tmp_path / "north").read_bytes() == before


def test_a_lone_public_half_is_not_overwritten_either(tmp_path: Path):
    (tmp_path / "north.pub").write_text("somebody's")
    with pytest.raises(SiteFailed, match=r"north\.pub: found a key"):
        make_key(tmp_path / "north", "north")
    assert not (tmp_path / "north").exists()


@pytest.mark.parametrize("name", ["north", "north.pub"])
def test_a_link_to_a_key_that_is_not_there_is_not_written_through(tmp_path: Path, name: str):
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SiteFailed, match="found a key, which is never overwritten"):
        make_key(tmp_path / "north", "north")
    assert not (tmp_path / "elsewhere").exists()


def test_both_halves_of_a_key_are_on_the_disk_and_then_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    synced: list[Path] = []
    monkeypatch.setattr(DISK, "sync", synced.append)
    public = make_key(tmp_path / "north", "north")
    assert synced[-2:] == [public, tmp_path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int):
    make_key(tmp_path / "north", "north")
    (tmp_path / "north").chmod(mode)
    with pytest.raises(SiteFailed, match=f"found the mode {mode:o}, expected 600"):
        load_key(tmp_path / "north")


def test_a_key_of_another_curve_is_refused(tmp_path: Path):
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    (tmp_path / "north").write_bytes(other)
    (tmp_path / "north").chmod(0o600)
    with pytest.raises(SiteFailed, match="expected EC P-384"):
        load_key(tmp_path / "north")


def test_what_is_no_key_is_named(tmp_path: Path):
    with pytest.raises(SiteFailed, match="can't be read as a key"):
        load_key(tmp_path / "north")
    (tmp_path / "north").write_text("hello")
    (tmp_path / "north").chmod(0o600)
    with pytest.raises(SiteFailed, match="found no OpenSSH key"):
        load_key(tmp_path / "north")
    with (tmp_path / "north").open("ab") as file:
        file.truncate(2**23)
    with pytest.raises(SiteFailed, match=r"as a key \(found more than 4,194,304 bytes"):
        load_key(tmp_path / "north")
