import hashlib
from pathlib import Path

from common.identity import canonical_json, files_digest, seed_for


def test_equal_values_give_equal_text_whatever_their_order():
    assert canonical_json({"b": [1, 2.5], "a": "ü"}) == '{"a":"\\u00fc","b":[1,2.5]}'


def test_a_seed_is_the_first_63_bits_of_the_digest_of_its_parts():
    digest = hashlib.sha256(b'[7,"stage",1]').hexdigest()
    assert seed_for(7, "stage", 1) == int(digest[:16], 16) // 2


def test_every_part_changes_the_seed():
    seeds = {seed_for(7, stage, site) for stage in range(20) for site in ("a", "b")}
    assert len(seeds) == 40
    assert seed_for("1", 2) != seed_for(1, 2)


def test_a_file_moved_renamed_or_changed_changes_the_digest(tmp_path: Path):
    def digest_of(files: dict[str, bytes], root: Path) -> str:
        for name, blob in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(blob)
        return files_digest(root, [root / name for name in files])

    base = digest_of({"a/x": b"1", "y": b"2"}, tmp_path / "0")
    assert base == digest_of({"y": b"2", "a/x": b"1"}, tmp_path / "1")
    others = [{"a/x": b"1", "y": b"3"}, {"b/x": b"1", "y": b"2"}, {"a/x": b"12", "y": b""}]
    for number, files in enumerate(others, 2):
        assert digest_of(files, tmp_path / str(number)) != base
