"""nibabel's image objects to volumes and back, and NIfTI files written through them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medseg.errors import InputRefused
from medseg.io import nifti_fields
from medseg.io.checks import scaled_dtype
from medseg.io.header import Header
from medseg.io.nifti import FORM_FIELDS, UNITS, header_of, without_last_ones
from medseg.io.voxels import storable
from medseg.volume import Grid, Source, Volume

_LARGEST_NIFTI1_AXIS = 32767
_ALIGNED = 1  # code for geometry that came from elsewhere: the scanner's or another format's own coordinates


def write(volume: Volume, path: Path, like: Volume | None) -> None:
    """Write `to_nibabel(volume)` to exactly this path."""
    to_nibabel(volume, like=like).to_filename(path)


def image_header(image: Any) -> Header:
    """What a nibabel image says of itself; of other classes than NIfTI, the affine alone."""
    fields = image.header
    if not isinstance(fields, nib.Nifti1Header):
        dtype = np.asanyarray(image.dataobj).dtype
        source = Source(format="memory", shape=tuple(image.shape), dtype=dtype, affine=image.affine)
        return Header(without_last_ones(image.shape), dtype, np.asarray(image.affine, np.float64), source)
    decoded = nifti_fields.decode(fields.binaryblock, int(fields["sizeof_hdr"]), big_endian=fields.endianness == ">")
    header = header_of(decoded, offset=0)
    # An array in memory counts as it is: slope and voxel type of the header are for the file it will become.
    return header if nib.is_proxy(image.dataobj) else replace(header, dtype=np.asanyarray(image.dataobj).dtype)


def image_voxels(image: Any, time_point: int | None) -> np.ndarray:
    """(X, Y, Z) scaled values of one time point of a nibabel image.

    Raises:
        InputRefused: The file behind the image is incomplete.
    """
    try:
        values = np.asanyarray(image.dataobj)
    except (OSError, EOFError):
        raise InputRefused("the file behind the image is incomplete; copy or export it again") from None
    values = values.reshape(without_last_ones(values.shape))
    values = values if time_point is None else values[..., time_point]
    stored = image.get_data_dtype()
    if nib.is_proxy(image.dataobj) and values.dtype.kind == "f" and stored.kind in "iu":
        return values.astype(
            scaled_dtype(stored)
        )  # nibabel scales to float64; a file read here must give equal numbers
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def to_nibabel(volume: Volume, *, like: Volume | None = None) -> Any:
    """The volume as a NIfTI image with the units and form codes of `like`, or else of its own source.

    On the grid that was read, the form matrices are repeated bit for bit; on another grid both forms hold its affine.

    Args:
        volume: What to store; labels and masks take the smallest integer type.
        like: A volume whose source counts instead.
    """
    source = (like or volume).source
    large = max(volume.shape) > _LARGEST_NIFTI1_AXIS
    image_class = nib.Nifti2Image if large or (source and source.format == "NIfTI-2") else nib.Nifti1Image
    voxels = storable(volume)
    fields = image_class.header_class()
    fields.set_data_dtype(voxels.dtype)
    fields.set_data_shape(voxels.shape)
    if volume.kind == "labels":
        fields.set_intent("label")
    if source is not None and source.fields and Grid(volume.shape, source.affine).equals(volume.grid, tolerance=0.0):
        for name in FORM_FIELDS:
            fields[name] = source.fields[name]
        fields["pixdim"][:4] = source.fields["pixdim"][:4]
    else:
        _set_forms(fields, volume.affine, source)
    return image_class(voxels, fields.get_best_affine(), fields, dtype=voxels.dtype)


def _set_forms(fields: Any, affine: np.ndarray, source: Source | None) -> None:
    scale = 1.0
    codes: tuple[int | None, int | None] = (None, None)
    fields.set_xyzt_units("mm")
    if source is not None and source.fields:
        fields["xyzt_units"] = source.fields["xyzt_units"]
        scale = UNITS.get(int(fields["xyzt_units"]) & 7, UNITS[0])[1]
        codes = (source.qform_code, source.sform_code)
    in_units = np.array(affine)
    in_units[:3] /= scale
    if not any(codes):  # with both codes 0 the affine would not be read back
        codes = (_ALIGNED, _ALIGNED)
    fields.set_qform(in_units, code=codes[0] or 0)
    fields.set_sform(in_units, code=codes[1] or 0)
