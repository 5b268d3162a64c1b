"""From a picture file to what the tower takes: its pixels, or features that were kept.

All of it may run on any thread; the tower itself is not touched.
"""
# pyright: reportUnknownMemberType=false

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, TypeAlias

import torch
from PIL.Image import Image
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from client.data.file_stamp import Stamp
from client.data.images import load_image, named_dicom, pad_to_square
from client.model.feature_cache import stamp_of_picture
from client.model.feature_store import FeatureStore
from common.identity import canonical_json, code_digest, sha256

#: The packages whose versions may change a bit of a feature.
_PACKAGES: Final = (
    "torch",
    "transformers",
    "numpy",
    "pillow",
    "pydicom",
    "pylibjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
)


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A picture that the tower has seen before.

    Attributes:
        stamp: the file as it was when it was read.
        features: (N, V), as the tower made them, on the CPU.
    """

    stamp: Stamp
    features: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """A picture that the tower is to see.

    Attributes:
        stamp: the file as it was when it was read.
        pixels: (1, 3, side, side), fp32, on the CPU.
        key: under what its features are to be kept; None where they are not.
    """

    stamp: Stamp
    pixels: Tensor
    key: str | None


Prepared: TypeAlias = Kept | Pixels
#: From a picture file to what the tower takes.
Prepare: TypeAlias = Callable[[Path], Prepared]


@dataclass(frozen=True, slots=True, eq=False)
class Preparation:
    """The way of one model's pictures, with its site's store where there is one.

    Attributes:
        maker: what `maker_of` says of the model.
        read: `load_image`, or `decode` for a thread beside the main one (client/data/images.py).
    """

    processor: CLIPImageProcessorPil
    store: FeatureStore | None
    maker: str
    read: Callable[[Path], Image] = load_image

    def __call__(self, file: Path) -> Prepared:
        """The picture, as it was kept or as it is read.

        Raises:
            DataError: it can't be read.
        """
        stamp = stamp_of_picture(file)
        key = self._key(file, stamp)
        features = None if self.store is None or key is None else self.store.load(key)
        if features is not None:
            return Kept(stamp, features)
        pixels = self._pixels(file)
        # Of a file that was replaced meanwhile nobody knows which one was read.
        return Pixels(stamp, pixels, key if stamp_of_picture(file) == stamp else None)

    def _key(self, file: Path, stamp: Stamp) -> str | None:
        """None where nothing is kept, or the file can't be read: `read` says why."""
        try:
            return None if self.store is None else key_of(_content(file, stamp), self.maker)
        except OSError:
            return None

    def _pixels(self, file: Path) -> Tensor:
        fill = [int(mean * 255) for mean in self.processor.image_mean]
        square = pad_to_square(self.read(file), (fill[0], fill[1], fill[2]))
        return self.processor(square, return_tensors="pt")["pixel_values"]


def key_of(content: str, maker: str) -> str:
    """Under what the features are kept that `maker` makes of a picture with this digest."""
    return sha256(canonical_json([content, maker]).encode())


def maker_of(model: str, device: torch.device) -> str:
    """A digest of everything but the picture that decides a bit of its features.

    `model` says which weights, in which precision. The rest is this process's: the code, the
    packages and the device, a CPU with the number of threads that the calling thread computes
    on (CLIP-L's features in bf16 differ by 0.5 % between one and two).
    """
    parts = [model, code_digest(), _packages(), _device(device)]
    return sha256(canonical_json(parts).encode())


@lru_cache(maxsize=100_000)
def _content(file: Path, stamp: Stamp) -> str:
    # Keyed by the stamp, too: a file that is replaced is read again.
    digest = sha256(file.read_bytes())
    # The same bytes are no picture under one name, and one under another.
    return f"{digest}.dcm" if named_dicom(file) else digest


@lru_cache(maxsize=1)
def _packages() -> list[str]:
    return [f"{name} {_version(name)}" for name in _PACKAGES]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    able = torch.backends.cpu.get_cpu_capability()
    return f"CPU {_cpu()} {able}, {torch.get_num_threads()} threads"


@lru_cache(maxsize=1)
def _cpu() -> str:
    """What the system says of its first CPU: oneDNN chooses by more than torch tells (AMX).

    A store may outlive the machine, on a volume.
    """
    told = {"vendor_id", "cpu family", "model", "model name", "flags", "Features"}
    try:
        first = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0]
    except OSError:
        return platform.processor()
    return "\n".join(line for line in first.splitlines() if line.split(":")[0].strip() in told)
