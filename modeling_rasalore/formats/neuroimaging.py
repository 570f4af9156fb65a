"""Read FreeSurfer's .mgz and .mgh files, and .img/.hdr pairs of SPM and FSL, by nibabel's headers.

A pair is NIfTI, or Analyze 7.5, which says nothing of left and right.
"""

import zlib
from pathlib import Path

import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.nifti1 import Nifti1PairHeader
from nibabel.spm99analyze import Spm99AnalyzeHeader

from .stored_voxels import GZIP_MAGIC, FormatError, StoredVoxels

MGH_BYTES = 284  # before the voxels
UNITS = {1: 1000.0, 3: 0.001}  # code -> mm, which all others count as
ANALYZE_WARNING = (
    "Analyze files do not say how a scan lies: its axes are taken to run from right to left, to "
    "the front and up, as SPM writes them; check the picture, or save the scan as NIfTI."
)


def read_mgh(path: Path) -> StoredVoxels:
    """Return the voxels of a .mgh or .mgz file.

    Raises:
        FormatError: another kind of file, or one without a place in space.
    """
    start, packed = _start(path, MGH_BYTES)
    if len(start) < MGH_BYTES:
        raise FormatError("cannot be read as MGH: the file ends within its header")
    header = MGHHeader(start, check=False)
    if header["version"] != 1:
        raise FormatError(f"the version of an MGH file must be 1, got {header['version']}")
    if int.from_bytes(start[28:30], "big") != 1:  # nibabel puts a guess in its place
        raise FormatError("goodRASFlag is 0, so its place in space is unknown; use mri_convert")
    sizes = [int(size) for size in header["dims"]]
    return StoredVoxels(
        path=path,
        offset=MGH_BYTES,
        shape=tuple(sizes if sizes[3] > 1 else sizes[:3]),
        dtype=header.get_data_dtype(),
        affine=np.asarray(header.get_affine(), float),
        whole_file=packed,
    )


def read_pair(path: Path) -> StoredVoxels:
    """Return the voxels of a .img file, or of its .hdr file, from both.

    Raises:
        FormatError: one of the two is missing, or a header that cannot be true.
    """
    ending = ".gz" if path.name.lower().endswith(".gz") else ""
    stem = path.name[: -len(ending) - 4]
    image, head = (_sibling(path, stem, f"{kind}{ending}") for kind in (".img", ".hdr"))
    start, _ = _start(head, Nifti1PairHeader.sizeof_hdr)
    if len(start) < Nifti1PairHeader.sizeof_hdr:
        raise FormatError(f"{head.name} ends within its header; copy it again")
    is_nifti = start[344:348] in (b"ni1\0", b"n+1\0")
    kind = Nifti1PairHeader if is_nifti else Spm99AnalyzeHeader
    order = ">" if int.from_bytes(start[:4], "big") == 348 else "<"
    if int.from_bytes(start[:4], "big" if order == ">" else "little") != 348:
        raise FormatError(f"{head.name} does not start with 348, the size of an Analyze header")
    header = kind(start, order, check=False)
    shape = tuple(int(size) for size in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    slope, intercept = header.get_slope_inter()
    unit = UNITS.get(int(header["xyzt_units"]) & 7, 1.0) if is_nifti else 1.0
    return StoredVoxels(
        path=image,
        offset=int(header.get_data_offset()),
        shape=shape,
        dtype=header.get_data_dtype(),
        affine=np.diag([unit, unit, unit, 1.0]) @ np.asarray(header.get_best_affine(), float),
        whole_file=_start(image, 2)[1],
        scaling=(1.0 if slope is None else float(slope), float(intercept or 0)),
        warnings=() if is_nifti else (ANALYZE_WARNING,),
        header=head,
    )


def _start(path: Path, size: int) -> tuple[bytes, bool]:
    """Return the first bytes of a file once unpacked, and whether it is gzip data."""
    with path.open("rb") as file:
        raw = file.read(2**12)
    if not raw.startswith(GZIP_MAGIC):
        return raw[:size], False
    return zlib.decompressobj(wbits=31).decompress(raw, size), True


def _sibling(path: Path, stem: str, ending: str) -> Path:
    """Return the file of a pair that has this ending, in small or in large letters."""
    names = (f"{stem}{ending}", f"{stem}{ending.upper()}")
    for name in names:
        if (sibling := path.with_name(name)).is_file():
            return sibling
    raise FormatError(f"a scan of this kind is a pair of files, and {names[0]} is not beside it")
