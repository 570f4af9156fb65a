"""Write results on the grid of a scan, in its format or another, and know them again."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import DTypeLike

from ..files import replace_file
from ..formats.dicom_segmentation import Algorithm
from ..formats.dicom_segmentation import write_segmentation as write_dicom
from ..formats.endings import WRITERS
from ..formats.stored_voxels import GZIP_MAGIC, OWN_MARK
from ..provenance import DISCLAIMER, JOURNALS, VIEWS
from .dicom import read_sources
from .naming import file_stem
from .volumes import Volume

# All that an output takes over from the scan's header: where the voxels lie, in which unit. Copied
# field by field, so the affine is never recomputed, and no free-text field can carry a name out.
GEOMETRY_FIELDS = (
    *("pixdim", "dim_info", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
MARKED_BYTES = 2**13  # of a file that is unpacked, in which its mark must be
OWN_ENDINGS = ("_scores", "_spread")  # of files that a run left beside its other results


def write_volume(path: str | Path, slices: np.ndarray, like: Volume, dtype: DTypeLike) -> Path:
    """Return `path` after writing `slices` on the voxel grid of the scan `like`.

    Shape, affine, qform, sform, their codes and units are the scan's, bit for bit; text fields
    (aux_file, intent_name, ...) and header extensions are left out, and descrip tells whose it is.

    Args:
        path: where to write, .nii, .nii.gz, .nrrd or .mha; replaced only once the new file is
            complete.
        slices: (S, H, W) array in the slice frame, shaped like `like.slices`.
        like: the scan that the array belongs to.
        dtype: voxel type of the file; an integer type must hold every value exactly.
    """
    if slices.shape != like.slices.shape:
        raise ValueError(
            f"slices must have the shape of the scan, {like.slices.shape}, got {slices.shape}."
        )
    with np.errstate(invalid="ignore"):  # a NaN that does not fit is reported below
        voxels = slices.astype(dtype, copy=False)
    converted = voxels is not slices and np.issubdtype(voxels.dtype, np.integer)
    if converted and not np.array_equal(voxels, slices):
        raise ValueError(
            f"slices from {slices.min():g} to {slices.max():g} do not fit {voxels.dtype} exactly; "
            "round them first or write a float type."
        )
    own = like.geometry.in_own_order(voxels)
    if writer := WRITERS.get(Path(path).suffix):
        affine = np.diag([like.geometry.unit] * 3 + [1.0]) @ like.affine
        return replace_file(Path(path), lambda draft: writer(draft, own, affine, OWN_MARK.decode()))
    kind = nib.Nifti2Image if isinstance(like.header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(own, affine=None)  # None: no form is set
    for field in GEOMETRY_FIELDS:
        image.header[field] = like.header[field]
    image.header["descrip"] = OWN_MARK
    return _write(Path(path), image)


def write_segmentation(
    path: str | Path,
    mask: np.ndarray,
    like: Volume,
    algorithm: Algorithm,
    sources: Sequence[Any] = (),
) -> Path:
    """Return `path` after writing a mask as a DICOM segmentation of the series `like` came as.

    Args:
        path: where to write, .dcm; replaced only once the new file is complete.
        mask: (S, H, W) of 0 and 1 in the slice frame.
        like: the scan that the mask belongs to.
        algorithm: what made the mask.
        sources: headers of its files, as `read_sources` gives them; where there are none they are
            read of the files, which must still be there.

    Raises:
        VolumeError: a file of the series is gone or damaged.
        FormatError: highdicom is missing, or the series has no identifiers.
    """
    frames = like.geometry.in_own_order(mask).transpose(2, 1, 0)  # (slices, rows, columns)
    names = list(dict.fromkeys(name for name, _ in like.slice_files))
    sources = sources or read_sources(like.path, names)
    if len(names) == 1:  # all slices in one file, in an order of its own
        ordered = np.zeros(
            (int(sources[0].get("NumberOfFrames", 1) or 1), *frames.shape[1:]), np.uint8
        )
        ordered[[index for _, index in like.slice_files]] = frames
        frames = ordered
    return replace_file(Path(path), lambda draft: write_dicom(draft, frames, sources, algorithm))


def write_nifti(path: str | Path, data: np.ndarray, affine: np.ndarray) -> Path:
    """Return `path` after writing `data` (I, J, K), in voxel order, as NIfTI in mm.

    Args:
        path: where to write, .nii or .nii.gz; replaced only once the new file is complete.
        data: array of a type NIfTI can hold (not bool, not int64), kept as it is.
        affine: (4, 4), voxel indices -> mm in RAS+ world coordinates.
    """
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    return _write(Path(path), image)


def _write(path: Path, image: nib.Nifti1Image) -> Path:
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(
            f"a NIfTI file is written to a name ending in .nii or .nii.gz, got {path}."
        )
    return replace_file(path, image.to_filename)  # gzip level 1, without a time stamp


def is_marked(path: Path) -> bool:
    """Whether a file is a result of this software, by what it says in its first bytes."""
    try:
        with path.open("rb") as file:
            start = file.read(MARKED_BYTES)
        if start.startswith(GZIP_MAGIC):
            start = zlib.decompressobj(wbits=31).decompress(start, MARKED_BYTES)
    except (OSError, zlib.error):
        return False
    return OWN_MARK in start or DISCLAIMER.encode() in start


def find_own_results(files: Sequence[Path]) -> set[Path]:
    """Return the files that earlier runs wrote, by what their manifests and journals list."""
    own: set[Path] = set()
    runs = {path.parent for path in files if path.name == VIEWS[0] and _listed_in(path)}
    journals = [p for p in files if p.suffix == ".jsonl" and p.parent.name == JOURNALS]
    runs |= {path.parent.parent for path in journals}
    for run in runs:
        own_journals = [path for path in journals if path.parent.parent == run]
        listed = _listed_in(run / VIEWS[0]).union(*map(_listed_in, own_journals))
        own |= {run / name for name in (*VIEWS, *listed)}
        own |= {p for p in files if p.parent == run and file_stem(p).endswith(OWN_ENDINGS)}
    return own.union(journals).intersection(files)


def _listed_in(path: Path) -> set[str]:
    """Return the results that a manifest or a journal lists, below the run's folder."""
    names: set[str] = set()
    try:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines() if path.suffix == ".jsonl" else [text]
        for line in lines:
            content = json.loads(line)
            entries = (
                content.get("scans", {}).values() if "scans" in content else [content["entry"]]
            )
            names.update(*(entry.get("outputs", {}).values() for entry in entries))
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    return names
