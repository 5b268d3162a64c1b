"""Who belongs to the federation: each name and each key once."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from common.errors import StateError
from common.plan_fields import Modality
from server.coordinator.registry import (
    EnrolledSite,
    enroll,
    enrolled,
    leave,
    read_public_key,
    read_sites,
    set_node_id,
)


def openssh(curve: ec.EllipticCurve | None = None) -> str:
    key = ec.generate_private_key(curve or ec.SECP384R1())
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def site(name: str, key: str | None = None, modality: Modality = Modality.CT) -> EnrolledSite:
    return EnrolledSite(name=name, modalities=(modality,), public_key=key or openssh())


def test_a_site_that_is_enrolled_is_found_again(tmp_path: Path):
    file, north = tmp_path / "sites.json", site("north")
    assert enroll(file, north)
    assert enrolled(file) == {"north": north}


def test_the_same_site_again_changes_nothing(tmp_path: Path):
    file, north = tmp_path / "sites.json", site("north")
    enroll(file, north)
    set_node_id(file, north.public_key, 2**63 + 1)
    assert not enroll(file, north)
    assert [one.node_id for one in read_sites(file)] == [2**63 + 1]


def test_a_key_or_a_name_that_is_taken_is_refused(tmp_path: Path):
    file, north = tmp_path / "sites.json", site("north")
    enroll(file, north)
    before = file.read_bytes()
    with pytest.raises(StateError, match="south: found the key of the site 'north'"):
        enroll(file, site("south", north.public_key))
    with pytest.raises(StateError, match="north: found another key under this name"):
        enroll(file, site("north"))
    with pytest.raises(StateError, match="found the modalities mr, expected ct"):
        enroll(file, site("north", north.public_key, Modality.MR))
    assert file.read_bytes() == before


def test_a_site_that_left_may_come_back_with_a_new_key_only(tmp_path: Path):
    file, north = tmp_path / "sites.json", site("north")
    enroll(file, north)
    assert leave(file, "north").left
    assert enrolled(file) == {}
    with pytest.raises(StateError, match="a key that left the federation as 'north'"):
        enroll(file, site("other", north.public_key))
    again = site("north")
    enroll(file, again)
    assert enrolled(file) == {"north": again}
    assert len(read_sites(file)) == 2
    # And may leave again: the one that is enrolled, not the one that left before.
    assert leave(file, "north").public_key == again.public_key
    assert enrolled(file) == {}


def test_a_site_that_is_not_there_can_not_leave(tmp_path: Path):
    file = tmp_path / "sites.json"
    with pytest.raises(StateError, match="found no such site 'north', expected one of: none"):
        leave(file, "north")


def test_a_public_key_is_read_without_its_comment(tmp_path: Path):
    file, key = tmp_path / "north.pub", openssh()
    file.write_text(f"{key} somebody@somewhere\n", encoding="ascii")
    assert read_public_key(file) == key


def test_flower_gets_the_key_as_pem():
    found = load_pem_public_key(site("north").pem)
    assert isinstance(found, ec.EllipticCurvePublicKey)
    assert found.curve.name == "secp384r1"


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("", "found no public key"),
        ("ecdsa-sha2-nistp384 AAAA", "found no public key"),
        (openssh(ec.SECP256R1()), "found a key of ecdsa-sha2-nistp256"),
        (
            ed25519.Ed25519PrivateKey.generate()
            .public_key()
            .public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
            .decode(),
            "found a key of ssh-ed25519",
        ),
        (
            ec.generate_private_key(ec.SECP384R1())
            .private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
            .decode(),
            "found a private key",
        ),
    ],
    # Not after the keys, which are new each time.
    ids=["empty", "broken", "p256", "ed25519", "private"],
)
def test_another_file_is_no_public_key(tmp_path: Path, text: str, mistake: str):
    file = tmp_path / "north.pub"
    file.write_text(text, encoding="ascii")
    with pytest.raises(StateError, match=mistake):
        read_public_key(file)


def test_a_file_with_the_keys_of_two_sites_is_none_of_them(tmp_path: Path):
    file = tmp_path / "north.pub"
    file.write_text(f"{openssh()} north\n{openssh()} south\n", encoding="ascii")
    with pytest.raises(StateError, match=r"north\.pub: found 2 lines, expected one: the key of"):
        read_public_key(file)


def test_a_file_that_is_not_there_or_damaged_is_named(tmp_path: Path):
    with pytest.raises(StateError, match="No such file"):
        read_public_key(tmp_path / "gone.pub")
    (tmp_path / "sites.json").write_text("{", encoding="utf-8")
    with pytest.raises(StateError, match=r"sites\.json: can't be read"):
        read_sites(tmp_path / "sites.json")
    (tmp_path / "sites.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(StateError, match=r"sites\.json: can't be read"):
        read_sites(tmp_path / "sites.json")


def test_a_damaged_key_in_the_registry_is_said_of_its_site():
    damaged = site("north", "ecdsa-sha2-nistp384 AAAA")
    with pytest.raises(StateError, match=r"sites\.json, north: found no public key, expected"):
        _ = damaged.pem


def test_a_site_of_several_modalities_and_a_registry_of_one_each_are_read(tmp_path: Path):
    file, key = tmp_path / "sites.json", openssh()
    both = EnrolledSite(name="north", modalities=(Modality.CT, Modality.MR), public_key=key)
    assert enroll(file, both)
    (found,) = read_sites(file)
    assert found == both
    # In any order it is the same site; with one less it is not.
    other = both.model_copy(update={"modalities": (Modality.MR, Modality.CT)})
    assert not enroll(file, other)
    with pytest.raises(StateError, match="found the modalities ct, expected ct, mr as it was"):
        enroll(file, site("north", key))
    old = {"name": "north", "modality": "ct", "public_key": key, "node_id": None, "left": False}
    file.write_text(json.dumps({"sites": [old]}))
    assert read_sites(file) == (site("north", key),)


def test_a_device_in_place_of_a_key_is_not_read_to_its_end():
    with pytest.raises(StateError, match=r"/dev/zero: can't be read as a public key .found more"):
        read_public_key(Path("/dev/zero"))
