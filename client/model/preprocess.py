"""Preprocessing of image files for the vision tower: pixels, or features from the store.

All of it may run on any thread; the tower itself is not used.
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

from client.data.file_stamp import FileStamp
from client.data.images import has_dicom_suffix, load_image, pad_to_square
from client.model.feature_store import FeatureStore
from client.model.image_cache import image_stamp
from common.code_digest import code_digest
from common.identity import canonical_json, sha256

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
class StoredFeatures:
    """An image whose features were in the store.

    Attributes:
        stamp: the file's stamp when it was read.
        features: (N, V), as the tower made them, on the CPU.
    """

    stamp: FileStamp
    features: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ImagePixels:
    """An image whose features the tower has to compute.

    Attributes:
        stamp: the file's stamp when it was read.
        pixels: (1, 3, side, side), fp32, on the CPU.
        key: the key to store the features under; None if they are not to be stored.
    """

    stamp: FileStamp
    pixels: Tensor
    key: str | None


Preprocessed: TypeAlias = StoredFeatures | ImagePixels
#: Preprocesses an image file.
Preprocess: TypeAlias = Callable[[Path], Preprocessed]


@dataclass(frozen=True, slots=True, eq=False)
class Preprocessor:
    """The preprocessing of one model, with the site's feature store if there is one.

    Attributes:
        extractor: the model's `extractor_digest`.
        read: `load_image`, or `decode_image` for a second thread (client/data/images.py).
    """

    processor: CLIPImageProcessorPil
    store: FeatureStore | None
    extractor: str
    read: Callable[[Path], Image] = load_image

    def __call__(self, file: Path) -> Preprocessed:
        """Return the image's stored features, or its pixels.

        Raises:
            DataError: it can't be read.
        """
        stamp = image_stamp(file)
        key = self._key(file, stamp)
        features = None if self.store is None or key is None else self.store.load(key)
        if features is not None:
            return StoredFeatures(stamp, features)
        pixels = self._pixels(file)
        # If the file was replaced meanwhile, either version may have been read.
        return ImagePixels(stamp, pixels, key if image_stamp(file) == stamp else None)

    def _key(self, file: Path, stamp: FileStamp) -> str | None:
        """Return the store's key; None without a store, or if the file can't be read."""
        try:
            return (
                None
                if self.store is None
                else feature_key(_content_digest(file, stamp), self.extractor)
            )
        except OSError:
            return None

    def _pixels(self, file: Path) -> Tensor:
        fill = [int(mean * 255) for mean in self.processor.image_mean]
        square = pad_to_square(self.read(file), (fill[0], fill[1], fill[2]))
        return self.processor(square, return_tensors="pt")["pixel_values"]


def feature_key(content: str, extractor: str) -> str:
    """Return the store's key of an image's features, from its digest and the extractor's."""
    return sha256(canonical_json([content, extractor]).encode())


def extractor_digest(model: str, device: torch.device) -> str:
    """Return a digest of everything except the image that decides the bits of its features.

    `model` identifies the weights and their precision. The rest is this process's: the code,
    the packages and the device, for a CPU with the number of threads of the calling thread
    (CLIP-L's features in bf16 differ by 0.5 % between one and two).
    """
    parts = [model, code_digest(), _package_versions(), _device_name(device)]
    return sha256(canonical_json(parts).encode())


@lru_cache(maxsize=100_000)
def _content_digest(file: Path, stamp: FileStamp) -> str:
    # Keyed by the stamp, too: a file that is replaced is read again.
    digest = sha256(file.read_bytes())
    # The same bytes may be an image under one name, and none under another.
    return f"{digest}.dcm" if has_dicom_suffix(file) else digest


@lru_cache(maxsize=1)
def _package_versions() -> list[str]:
    return [f"{name} {_version(name)}" for name in _PACKAGES]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"CPU {_cpu()} {capability}, {torch.get_num_threads()} threads"


@lru_cache(maxsize=1)
def _cpu() -> str:
    """Return what /proc/cpuinfo says of the first CPU.

    oneDNN chooses kernels by more than torch reports (AMX), and a store on a volume may
    outlive the machine.
    """
    fields = {"vendor_id", "cpu family", "model", "model name", "flags", "Features"}
    try:
        first = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0]
    except OSError:
        return platform.processor()
    return "\n".join(line for line in first.splitlines() if line.split(":")[0].strip() in fields)
