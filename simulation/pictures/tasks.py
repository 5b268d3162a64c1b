"""The tasks of the real pictures: their regions, their questions, and how crops are shown."""
# scipy has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.plan_fields import Modality
from simulation.pictures import sources as sources
from simulation.pictures import truths as truths
from simulation.pictures.brain_slices import (
    CANVAS,
    EXTENT,
    MIDDLE_X,
    Plane,
    Slab,
    draw_slice,
    plane_slabs,
    upright,
    whole_view,
)
from simulation.pictures.picture_task import Crop, CropLocation, PictureTask, Region
from simulation.pictures.regions import SIDE, Box, Rgb, Split, draw_box, shrunk
from simulation.pictures.sources import SourceImage, Truth, brain, picture
from simulation.pictures.truths import Answers, CropView
from simulation.pictures.words import RING_OUTER, disc, with_ring
from simulation.task_folder.write_dicom import ct_file

PLANE: Final = "in which plane is this slice?"
DEPTH: Final = "is the slice near the middle of the brain or near its edge?"
MATTER: Final = "which matter does the ring mark?"

YES_NO: Final = ("yes", "no")
SIDES: Final = ("left", "right", "top", "bottom")
AMOUNTS: Final = ("none", "some", "much")


@dataclass(frozen=True, slots=True)
class CropStyle:
    """How crops of flat pictures are taken and shown."""

    answers: Callable[[CropView], Answers]
    smallest: float
    """The smallest crop's side, as a part of its cell's; the largest fills the cell."""
    turned: bool = False
    """Whether crops are turned and mirrored at random; the truth is read afterwards."""
    ringed: bool = False
    dicom: bool = False


def flat_regions(
    of: Sequence[Callable[[], SourceImage]], style: CropStyle, split: Split
) -> Sequence[Region]:
    """Return the cells of `split` in each of the pictures."""
    return [
        partial(_flat_crop, source, cell, style)
        for source in of
        for cell in picture(source).cells(split)
    ]


def _flat_crop(
    source: Callable[[], SourceImage], cell: Box, style: CropStyle, rng: np.random.Generator
) -> Crop:
    whole = picture(source)
    room = min(cell.height, cell.width)
    box = draw_box(rng, cell, int(room * style.smallest), room)
    crop, truth = box.of(whole.shown), box.of(whole.truth)
    if style.turned:
        crop, truth = _turned(rng, crop, truth)
    view = CropView(whole.name, shrunk(crop), truth, _ring(rng))
    shown = with_ring(view.shown, view.ring) if style.ringed else view.shown
    dicom = ct_file(truth, sources.CT_CENTRE, sources.CT_WIDTH) if style.dicom else None
    return Crop(shown, style.answers(view), CropLocation(whole.name, box), dicom)


def _turned(rng: np.random.Generator, crop: Rgb, truth: Truth) -> tuple[Rgb, Truth]:
    """Turn both by the same quarter turns and mirror them half the time."""
    quarters = int(rng.integers(4))
    crop, truth = np.rot90(crop, quarters), np.rot90(truth, quarters)
    return (crop[:, ::-1], truth[:, ::-1]) if rng.random() < 0.5 else (crop, truth)


def _ring(rng: np.random.Generator) -> tuple[int, int]:
    """Return a random centre at which a ring fits wholly into the picture."""
    edge = int(np.ceil(RING_OUTER)) + 2
    return int(rng.integers(edge, SIDE - edge)), int(rng.integers(edge, SIDE - edge))


def _slices(split: Split) -> Sequence[Region]:
    """Return the slabs of `split`, of all three planes."""
    return [partial(_slice_crop, slab) for plane in Plane for slab in plane_slabs(plane, split)]


def _slice_crop(slab: Slab, rng: np.random.Generator) -> Crop:
    index = draw_slice(rng, slab)
    box = whole_view(rng)
    shown = shrunk(_grey(box.of(upright(brain().t1, slab.plane, index))))
    answers = {PLANE: slab.plane.name.lower()}
    depth = _depth(slab.plane, index)
    if depth is not None:
        answers[DEPTH] = depth
    return Crop(shown, answers, CropLocation(slab.plane.name.lower(), box, index))


def _depth(plane: Plane, index: int) -> str | None:
    """Return whether the slice is near the middle of the brain or its edge; None in between."""
    first, last = EXTENT[plane]
    if plane is Plane.SAGITTAL:
        away = abs(index - MIDDLE_X) / last
    else:
        away = abs(2 * index - first - last) / (last - first)
    return "middle" if away < 0.4 else "edge" if away > 0.6 else None


def _matters(split: Split) -> Sequence[Region]:
    """Return the axial slabs of `split`."""
    return [partial(_matter_crop, slab) for slab in plane_slabs(Plane.AXIAL, split)]


def _matter_crop(slab: Slab, rng: np.random.Generator) -> Crop:
    """Cut out a part of an axial slice, with a ring where the masks agree on one matter."""
    index = draw_slice(rng, slab)
    t1 = upright(brain().t1, slab.plane, index)
    matters = _matters_of(index)
    wanted = list(matters)[int(rng.integers(len(matters)))]
    places = matters[wanted].places
    if len(places) == 0:
        return Crop(shrunk(_grey(t1)), {}, CropLocation("axial", Box(0, 0, CANVAS, CANVAS), index))
    box, ring = _around(rng, places[int(rng.integers(len(places)))])
    ringed = shrunk(box.of(matters[wanted].mask))[disc(ring)] > 128
    answers = {MATTER: wanted} if ringed.mean() >= 0.9 else {}
    return Crop(
        with_ring(_grey(shrunk(box.of(t1))), ring), answers, CropLocation("axial", box, index)
    )


@dataclass(frozen=True, slots=True, eq=False)
class Matter:
    """Where an axial slice is of one matter, (CANVAS, CANVAS), 255 there and 0 elsewhere."""

    mask: Rgb
    places: NDArray[np.int64]
    """Row and column of each of its pixels that has no neighbour of another matter."""


@cache
def _matters_of(index: int) -> Mapping[str, Matter]:
    """Return the matters of an axial slice, by the template's masks (0 to 255)."""
    from scipy.ndimage import binary_erosion

    t1, grey, white = (
        upright(volume, Plane.AXIAL, index) for volume in (brain().t1, brain().grey, brain().white)
    )
    kinds = {
        "grey": grey > 128,
        "white": white > 128,
        "fluid": (grey < 64) & (white < 64) & (t1 > 8),
    }
    return {
        name: Matter(hits.astype(np.uint8) * 255, np.argwhere(binary_erosion(hits)))
        for name, hits in kinds.items()
    }


def _around(rng: np.random.Generator, place: NDArray[np.int64]) -> tuple[Box, tuple[int, int]]:
    """Return a square around a voxel of a slice, and where the voxel is in its 64 x 64 picture."""
    side = int(rng.integers(36, 57))
    down, across = (int(rng.integers(side // 5, side - side // 5)) for _ in range(2))
    box = Box(int(place[0]) - down, int(place[1]) - across, side, side)
    return box, (int((down + 0.5) * SIDE / side), int((across + 0.5) * SIDE / side))


def _grey(level: Rgb) -> Rgb:
    return np.repeat(level[..., None], 3, axis=2)


CTS: Final = (sources.head_scan, sources.skull_scan, sources.belly_scan, sources.spine_scan)
FILMS: Final = (sources.chest_film, sources.leg_film)
ECHOES: Final = (
    sources.node_echo,
    sources.vessel_echo,
    sources.heart_echo,
    sources.pelvis_echo,
)

#: Tasks whose truth is measured from the picture itself. The embedded model has been taught to
#: answer in the words of exactly these: a task with other truth is listed elsewhere.
MEASURED: Final = (
    PictureTask(
        "stain",
        Modality.PATHOLOGY,
        {truths.STAIN: ("none", "some", "most"), truths.GLASS: YES_NO},
        partial(
            flat_regions, (sources.stained_tissue,), CropStyle(truths.stained, 0.45, turned=True)
        ),
    ),
    PictureTask(
        "nuclei",
        Modality.MICROSCOPY,
        {truths.NUCLEI: ("few", "several", "many"), truths.ON_NUCLEUS: YES_NO},
        partial(
            flat_regions,
            (sources.glowing_cells,),
            CropStyle(truths.counted, 0.4, turned=True, ringed=True),
        ),
    ),
    PictureTask(
        "fundus",
        Modality.FUNDUS,
        {truths.FIELD_END: (*SIDES, "nowhere"), truths.VESSELS: AMOUNTS},
        partial(flat_regions, (sources.eye_ground,), CropStyle(truths.bounded, 0.5, turned=True)),
    ),
    PictureTask(
        "plane",
        Modality.MR,
        {PLANE: ("axial", "coronal", "sagittal"), DEPTH: ("middle", "edge")},
        _slices,
    ),
    PictureTask(
        "bone",
        Modality.CT,
        {truths.BONE: AMOUNTS, truths.AIR: YES_NO},
        partial(flat_regions, CTS, CropStyle(truths.measured, 0.6, dicom=True)),
    ),
    PictureTask(
        "crowding",
        Modality.PATHOLOGY,
        {truths.CROWDING: ("loose", "dense"), truths.ON_NUCLEUS: YES_NO},
        partial(
            flat_regions,
            (sources.tissue,),
            CropStyle(truths.crowded, 0.35, turned=True, ringed=True),
        ),
    ),
    PictureTask(
        "film",
        Modality.XRAY,
        {truths.BODY_PART: ("chest", "leg"), truths.FREE_SIDE: SIDES},
        partial(flat_regions, FILMS, CropStyle(truths.exposed, 0.5)),
    ),
    PictureTask(
        "flow",
        Modality.ULTRASOUND,
        {truths.FLOW: ("red", "blue", "none"), truths.FLOW_AMOUNT: AMOUNTS},
        partial(flat_regions, ECHOES, CropStyle(truths.flowing, 0.5)),
    ),
    PictureTask("matter", Modality.MR, {MATTER: ("grey", "white", "fluid")}, _matters),
)
