"""Tasks whose truth people wrote down: outlines of tumours and of layers, pairs that are alike.

They need packages that are fetched by `make pictures`; docs/data.md has their terms.
"""

from functools import partial
from typing import Final

from common.plan_fields import Modality
from simulation.pictures import dermoscopy as dermoscopy
from simulation.pictures import sources as sources
from simulation.pictures import truths as truths
from simulation.pictures import tumours as tumours
from simulation.pictures.picture_task import PictureTask
from simulation.pictures.tasks import YES_NO, CropStyle, flat_regions

LABELLED: Final = (
    PictureTask(
        "layer",
        Modality.PATHOLOGY,
        {truths.LAYER: truths.LAYERS, truths.JUNCTION: YES_NO},
        partial(
            flat_regions, (sources.skin,), CropStyle(truths.layered, 0.4, turned=True, ringed=True)
        ),
    ),
    PictureTask("alike", Modality.DERMATOLOGY, {dermoscopy.ALIKE: YES_NO}, dermoscopy.lesions),
    PictureTask(
        "tumour",
        Modality.RADIOLOGY,
        {tumours.TUMOUR: YES_NO, tumours.ON_TUMOUR: YES_NO},
        tumours.patients,
    ),
)
