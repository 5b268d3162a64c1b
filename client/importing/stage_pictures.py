"""Pictures as a task has them: files as they are, or taken out of tables, series and volumes."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# nibabel is not typed throughout.

import base64
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from client.data.pictures.grey_levels import BRIGHT_PERCENTILE, DARK_PERCENTILE, MAX_PIXELS, rescale
from client.importing.dicom_series import facts, single_frames, stacks
from client.importing.picture_files import is_dicom, is_volume
from client.importing.question import BadRow, SourceItem, SourceQuestion
from client.importing.settings import Take
from common.errors import DataError
from common.identity import sha256

#: First bytes of files in a table, and the ending that their format has.
_MARKS: Final = (
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"BM", ".bmp"),
    (b"\0\0\0\x0cjP  ", ".jp2"),
    (b"\xff\x4f\xff\x51", ".j2k"),
)


class StagedPictures:
    """Makes the pictures that are no files of the source; they are written into `folder`."""

    def __init__(self, folder: Path, take: Take, axis: int) -> None:
        self.folder, self._take, self._axis = folder, take, axis
        self._made: dict[tuple[Path, ...], list[Path]] = {}
        #: How many volumes, series and files of several frames there were.
        self.volumes = 0

    def add(self, blob: bytes) -> Path | None:
        """Write a picture that a table holds; None if it is of no known format."""
        ending = next((ending for mark, ending in _MARKS if blob.startswith(mark)), None)
        if blob[:4] == b"RIFF" and blob[8:12] == b"WEBP":
            ending = ".webp"
        if blob[128:132] == b"DICM":
            ending = ".dcm"
        return None if ending is None else self._write(blob, ending)

    def decoded(self, address: str) -> tuple[Path, ...] | str:
        """Write the picture of a base64 data address (RFC 2397); return it, or what was found."""
        head, comma, text = address.partition(",")
        if not comma or not head.endswith(";base64"):
            return "a data address that is not in base64"
        try:
            picture = self.add(base64.b64decode(text, validate=True))
        except ValueError:
            return "a data address with damaged base64"
        return "data of no known format" if picture is None else (picture,)

    def pictures_of(self, item: SourceQuestion) -> Iterator[SourceItem]:
        """Yield the question for each picture that its files have, or why there is none."""
        if item.files not in self._made:
            try:
                self._made[item.files] = self._make(item.files)
            except DataError as error:
                yield BadRow(item.place, str(error))
                return
        made = self._made[item.files]
        several = made != list(item.files)
        patient = item.patient or self._dicom_patient(item.files[0])
        for picture in made:
            yield replace(
                item,
                files=(picture,),
                patient=patient,
                origin=item.files[0].as_posix() if several else None,
            )

    def _dicom_patient(self, file: Path) -> str | None:
        return (facts(file).patient or None) if is_dicom(file) else None

    def _make(self, files: tuple[Path, ...]) -> list[Path]:
        if len(files) > 1:
            dicom = [file for file in files if is_dicom(file)]
            known = set(dicom)
            rest = [file for file in files if file not in known]
            groups = sorted(stacks(dicom))
            return [one for group in [*groups, *((f,) for f in rest)] for one in self._group(group)]
        return self._group(files)

    def _group(self, files: tuple[Path, ...]) -> list[Path]:
        """Return the chosen pictures of a stack, a volume, a file of frames, or of one picture."""
        (file, *others) = files
        if others:
            self.volumes += 1
            return [files[place] for place in self._take.places(len(files))]
        if is_volume(file):
            self.volumes += 1
            return [self._write(blob, ".png") for blob in self._slices(file)]
        if is_dicom(file) and facts(file).frames > 1:
            self.volumes += 1
            if self._take.count == 1:
                # The middle frame is what a reader of the whole file takes.
                return [file]
            return [self._write(blob, ".dcm") for blob in single_frames(file, self._take)]
        return [file]

    def _slices(self, file: Path) -> Iterator[bytes]:
        from PIL import Image

        volume = _volume(file)
        finite = volume[np.isfinite(volume)]
        low, high = (
            float(np.percentile(finite, at)) for at in (DARK_PERCENTILE, BRIGHT_PERCENTILE)
        )
        if low == high:
            low, high = float(finite.min()), float(finite.max())
        # What is no number is as dark as the darkest: most is background.
        volume = np.nan_to_num(volume, nan=low, posinf=high, neginf=low)
        for place in self._take.places(volume.shape[self._axis]):
            # Rows from anterior or superior down, columns from the left.
            plane = np.rot90(np.take(volume, place, axis=self._axis))
            levels = rescale(plane.astype(np.float64), low, high)
            buffer = BytesIO()
            Image.fromarray(np.rint(levels * 255).astype(np.uint8)).save(buffer, format="PNG")
            yield buffer.getvalue()

    def _write(self, blob: bytes, ending: str) -> Path:
        self.folder.mkdir(exist_ok=True)
        file = self.folder / f"{sha256(blob)}{ending}"
        if not file.exists():
            file.write_bytes(blob)
        return file


def _volume(file: Path) -> npt.NDArray[np.float32]:
    """Return a NIfTI volume whose axes run from left, posterior and inferior.

    Raises:
        DataError: nibabel is absent, or the file is no volume of one value a voxel.
    """
    try:
        import nibabel
    except ModuleNotFoundError:
        raise DataError(
            "found a NIfTI volume and no package 'nibabel', expected it: "
            "pip install --editable '.[import]'"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Any = nibabel.load(file)
            shape = _three_axes(image.shape)
            _check_values(np.dtype(image.get_data_dtype()))
            values = np.asarray(image.dataobj, np.float32).reshape(shape)
            affine = np.asarray(image.affine, np.float64)
            axes: Any = nibabel.io_orientation(affine) if np.isfinite(affine).all() else None
    except DataError:
        raise
    # nibabel and what it decompresses with raise nearly anything on damaged bytes.
    except Exception as error:
        raise DataError(
            f"found a damaged NIfTI volume ({type(error).__name__}), expected a whole one"
        ) from None
    if axes is None or np.isnan(axes).any():
        raise DataError(
            "found a volume whose affine (sform or qform) gives no axes, expected one that does"
        )
    if not np.isfinite(values).any():
        raise DataError("found a volume without a finite value, expected some")
    return np.asarray(nibabel.apply_orientation(values, axes), np.float32)


def _three_axes(sides: Sequence[int]) -> tuple[int, ...]:
    """Return a volume's shape without axes of one value beyond the third.

    Raises:
        DataError: it has more or fewer axes, or too many voxels.
    """
    found = shape = tuple(int(side) for side in sides)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    most = 16 * MAX_PIXELS
    if len(shape) != 3 or min(shape) < 1 or int(np.prod(shape, dtype=np.int64)) > most:
        raise DataError(
            f"found a volume of {' x '.join(map(str, found))}, expected three axes and no more "
            f"than {most} voxels"
        )
    return shape


def _check_values(kind: "np.dtype[Any]") -> None:
    if kind.kind not in "iuf":
        found = "colours" if kind.names else f"{kind} values"
        raise DataError(f"found a volume of {found}, expected one real number in each voxel")


def ending_in_task(file: Path) -> str:
    """Return the ending of a picture's name in a task: what its readers go by."""
    if is_dicom(file):
        return ".dcm"
    return {".jpeg": ".jpg", ".jpe": ".jpg", ".tiff": ".tif", ".dib": ".bmp"}.get(
        file.suffix.lower(), file.suffix.lower()
    )
