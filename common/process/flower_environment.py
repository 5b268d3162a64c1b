"""The environment of Flower's programs and of what they start: nothing comes from the internet."""

from pathlib import Path
from typing import Final

#: No telemetry, no question for a newer version, no package that an app asks for, and no model
#: or data set from the Hugging Face Hub.
OFFLINE: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "HF_HUB_OFFLINE": "1",
}
#: Bytes of a chunk in which Flower sends an array. On a line of 1 Mbit/s its own 5 MiB run into
#: its timeout of 30 s again and again; chunks of 512 KiB never did (measured).
CHUNK_SIZE: Final = "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE"
_CHUNK_BYTES: Final = 512 * 2**10


def flower_environment(home: Path) -> dict[str, str]:
    """Return the variables of a Flower program whose configuration and database are in `home`."""
    return {**OFFLINE, "FLWR_HOME": str(home), CHUNK_SIZE: str(_CHUNK_BYTES)}
