"""Flower's variables are ones that the installed Flower knows."""

from pathlib import Path

import flwr

from common.process.flower_environment import OFFLINE, flower_environment


def test_flower_knows_every_variable_of_its_environment(tmp_path: Path):
    environment = flower_environment(tmp_path)
    assert environment["FLWR_HOME"] == str(tmp_path)
    assert environment.items() >= OFFLINE.items()
    source = "".join(
        file.read_text(encoding="utf-8") for file in Path(flwr.__path__[0]).rglob("*.py")
    )
    ours = {name for name in environment if name.startswith("FLWR_")}
    # Flower makes the prefix of some names itself.
    unknown = {name for name in ours if f'"{name}"' not in source}
    assert unknown == set()
