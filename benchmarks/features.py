"""An epoch's pictures: features read from the site's disk, beside decoding them every time.

Pictures of a hospital's size, and a tower of CLIP-L/14-336's shapes (random weights, few
layers). What is timed is the way to what a device is handed: features in ours, pixels in
theirs. The tower stays out of both times, as on a GPU that makes it nearly free.
"""
# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.compare import BenchmarkResult, benchmark_result, compare
from benchmarks.step import one_thread
from client.data.images import decode_image
from client.model.feature_store import FeatureStore
from client.model.preprocess import Preprocessed, Preprocessor, StoredFeatures
from client.training.prefetch import Prefetcher, prefetching, with_prefetch

#: The mean colour of CLIP's pictures, with which LLaVA fills a picture up to a square.
FILL = (122, 116, 104)


@dataclass(frozen=True, slots=True)
class EpochSizes:
    """The pictures, the tower, and the steps during which the next pictures are read.

    Attributes:
        side: of a picture, in pixels.
        seen: of what the tower takes, in pixels.
        batch: pictures of a step.
        step_s: how long the training's thread waits for a GPU after each batch. By default
            as long as four questions take the 7B on an H100 at half its peak (arithmetic).
    """

    pictures: int = 24
    side: int = 1024
    seen: int = 336
    width: int = 1024
    layers: int = 1
    batch: int = 4
    step_s: float = 0.144


def run(repeats: int = 5, size: EpochSizes | None = None) -> BenchmarkResult:
    """Time the pictures of a later epoch, ours beside decoding each.

    `first_epoch` in the settings is the time of an epoch that reads on the training's thread over
    the time of one that prefetches, both with nothing stored, and with a wait as for a GPU after
    each batch.
    """
    size = size or EpochSizes()
    with TemporaryDirectory() as folder, one_thread():
        files = _pictures(Path(folder), size)
        tower, processor = _tower(size), _processor(size)
        store = FeatureStore(Path(folder) / "features", 2**34, spare_bytes=0)
        kept = Preprocessor(processor, store, "benchmark", decode_image)
        for file in files:
            _keep(kept, tower, file)
        timing = compare(
            lambda: _prefetched(kept, files, size), lambda: _plain(processor, files), repeats
        )
        first = _first_epoch(processor, files, size, repeats)
        # On as many threads as before: the tower's last bits depend on them.
        theirs = torch.stack([_see(tower, pixels) for pixels in timing.their_result])
    ours = torch.stack(timing.our_result)
    equal_to = float(((ours - theirs).abs().max() / theirs.abs().max()).float())
    settings = {**asdict(size), "threads": "1, and 1 that prefetches", "dtype": "bfloat16"}
    settings |= {"first_epoch": first, "their_time_has_no_tower": True}
    return benchmark_result("features", timing, equal_to, settings)


def _prefetched(
    preparation: Preprocessor,
    files: Sequence[Path],
    size: EpochSizes,
    work: Callable[[], object] = int,
) -> list[Tensor]:
    """Prefetch each batch's pictures, and do some work after each batch."""
    order = range(len(files))
    batches = [order[start : start + size.batch] for start in order[:: size.batch]]
    with prefetching(preparation) as prefetcher:
        take = with_prefetch(
            lambda chosen: _after_work([_tensor(prefetcher.get(files[i])) for i in chosen], work),
            batches,
            lambda coming: _expect(prefetcher, files, coming),
        )
        return [one for batch in batches for one in take(batch)]


def _after_work(found: list[Tensor], work: Callable[[], object]) -> list[Tensor]:
    work()
    return found


def _expect(
    prefetcher: Prefetcher[Preprocessed], files: Sequence[Path], coming: Sequence[Sequence[int]]
) -> None:
    prefetcher.prefetch(files[i] for chosen in coming for i in chosen)


def _plain(processor: CLIPImageProcessorPil, files: Sequence[Path]) -> list[Tensor]:
    """Open, pad and preprocess each picture whenever it is needed.

    The lines of LLaVA's `LazySupervisedDataset.__getitem__` with `image_aspect_ratio` "pad",
    which the paper's code takes over.
    """
    found: list[Tensor] = []
    for file in files:
        image = _expand2square(Image.open(file).convert("RGB"))
        found.append(processor(image, return_tensors="pt")["pixel_values"])
    return found


def _expand2square(image: Image.Image) -> Image.Image:
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new(image.mode, (side, side), FILL)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _first_epoch(
    processor: CLIPImageProcessorPil, files: Sequence[Path], size: EpochSizes, repeats: int
) -> float:
    """Return the time of reading on the training's thread over that of prefetching.

    The median of the paired ratios.
    """
    cold = Preprocessor(processor, None, "benchmark", decode_image)

    def wait() -> None:
        time.sleep(size.step_s)

    def plain() -> None:
        for start in range(0, len(files), size.batch):
            _plain(processor, files[start : start + size.batch])
            wait()

    def ours() -> None:
        _prefetched(cold, files, size, wait)

    return compare(ours, plain, repeats).paired_ratio


def _pictures(folder: Path, size: EpochSizes) -> list[Path]:
    """Write JPEGs of soft shapes with grain, every other one not square."""
    generator = np.random.default_rng(0)
    files: list[Path] = []
    for number in range(size.pictures):
        shape = (size.side, size.side - (number % 2) * size.side // 5)
        coarse = generator.integers(0, 256, (16, 16, 3), np.uint8)
        soft = np.asarray(Image.fromarray(coarse).resize(shape, Image.Resampling.BICUBIC))
        grain = soft + generator.normal(0, 8, soft.shape)
        files.append(folder / f"{number}.jpg")
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(files[-1], quality=90)
    return files


def _tower(size: EpochSizes) -> nn.Module:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // 64,
        image_size=size.seen,
        patch_size=14,
    )
    return CLIPVisionModel(config).eval().bfloat16()


def _processor(size: EpochSizes) -> CLIPImageProcessorPil:
    side = {"height": size.seen, "width": size.seen}
    return CLIPImageProcessorPil(size={"shortest_edge": size.seen}, crop_size=side)


def _keep(preparation: Preprocessor, tower: nn.Module, file: Path) -> None:
    """Store the file's features."""
    seen = preparation(file)
    assert (
        not isinstance(seen, StoredFeatures)
        and seen.key is not None
        and preparation.store is not None
    )
    preparation.store.save(seen.key, _see(tower, seen.pixels))


@torch.no_grad()
def _see(tower: nn.Module, pixels: Tensor) -> Tensor:
    """Return the features (N, V) of one picture, without the class token."""
    return tower(pixel_values=pixels.bfloat16()).last_hidden_state[0, 1:]


def _tensor(prepared: Preprocessed) -> Tensor:
    """Return what is copied to a device."""
    return prepared.features if isinstance(prepared, StoredFeatures) else prepared.pixels
