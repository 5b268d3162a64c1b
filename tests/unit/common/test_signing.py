import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from common.errors import BankError
from common.signing import SigningKey, verify_signature


def test_the_first_vector_of_rfc_8032_is_reproduced():
    # RFC 8032, section 7.1, test 1: the empty message.
    key = SigningKey.from_seed(
        bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    )
    assert key.public_hex == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.sign(b"") == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )


def test_a_signature_holds_for_its_message_and_its_key_alone():
    key, other = SigningKey.generate(), SigningKey.generate()
    signature = key.sign(b"release")
    assert verify_signature(key.public_hex, signature, b"release")
    assert not verify_signature(key.public_hex, signature, b"releasf")
    assert not verify_signature(other.public_hex, signature, b"release")
    assert not verify_signature(key.public_hex, other.sign(b"release"), b"release")


@pytest.mark.parametrize(("public", "signature"), [("", ""), ("zz", "00"), ("00" * 32, "00" * 64)])
def test_text_that_is_no_key_or_signature_verifies_nothing(public: str, signature: str):
    assert not verify_signature(public, signature, b"release")


def test_a_saved_key_comes_back_and_only_its_owner_can_read_it(tmp_path: Path):
    key = SigningKey.generate()
    old = os.umask(0)
    try:
        key.save(tmp_path / "key.pem")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    assert SigningKey.load(tmp_path / "key.pem") == key


def test_a_key_is_not_shown_when_printed():
    key = SigningKey.generate()
    assert key.seed.hex() not in repr(key) and str(key.seed) not in repr(key)


def test_saving_does_not_overwrite_a_key(tmp_path: Path):
    key = SigningKey.generate()
    key.save(tmp_path / "key.pem")
    with pytest.raises(BankError, match=r"key\.pem: can't save a signing key \(File exists\)"):
        SigningKey.generate().save(tmp_path / "key.pem")
    assert SigningKey.load(tmp_path / "key.pem") == key


def test_a_kill_while_a_key_is_saved_leaves_none_and_the_next_start_makes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class PowerCut(BaseException):
        pass

    def cut(_descriptor: int) -> None:
        raise PowerCut

    with monkeypatch.context() as patched, pytest.raises(PowerCut):
        patched.setattr(os, "fsync", cut)
        SigningKey.generate().save(tmp_path / "key.pem")
    assert not (tmp_path / "key.pem").exists()
    key = SigningKey.generate()
    key.save(tmp_path / "key.pem")
    assert SigningKey.load(tmp_path / "key.pem") == key
    assert [file.name for file in tmp_path.iterdir()] == ["key.pem"]


def test_a_key_that_others_can_read_is_refused(tmp_path: Path):
    SigningKey.generate().save(tmp_path / "key.pem")
    (tmp_path / "key.pem").chmod(0o644)
    with pytest.raises(BankError, match="mode 0644"):
        SigningKey.load(tmp_path / "key.pem")


def test_a_file_that_is_no_ed25519_key_is_refused_by_name(tmp_path: Path):
    file = tmp_path / "key.pem"
    with pytest.raises(BankError, match=r"key\.pem: can't be read"):
        SigningKey.load(file)
    file.write_text("not a key")
    file.chmod(0o600)
    with pytest.raises(BankError, match=r"key\.pem: found no private key"):
        SigningKey.load(file)
    rsa = generate_private_key(65537, 1024)
    file.write_bytes(rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(BankError, match="another kind of private key"):
        SigningKey.load(file)


def test_a_seed_of_another_length_is_refused():
    with pytest.raises(BankError, match="31 bytes of seed, expected 32"):
        SigningKey.from_seed(bytes(31))
