"""Read voxels that a header describes, raw or compressed, never more of them than it announces."""

import math
import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

GZIP_MAGIC = b"\x1f\x8b"
VOXEL_BUDGET = 2**30  # bytes of one volume once decoded: 645 voxels along each axis
LARGEST_RATIO = 1032  # what deflate can reach: more is a truncated file
SUSPECT_RATIO, SUSPECT_BYTES = 300, 2**27  # empty masks compress 1000 times, but are small
PIECE_BYTES = 2**20  # read at once of compressed data
OWN_MARK = b"rasalore result"  # in whatever is written, so that a later run knows it again


class FormatError(ValueError):
    """Why a file cannot be used; the sentence without the file's name and without its end."""


@dataclass(frozen=True, eq=False)
class StoredVoxels:
    """Voxels in a file, which look like an array (I, J, K) or (I, J, K, volumes) when sliced.

    Attributes:
        path: the file that holds them; a header may lie in another one.
        offset: bytes before them.
        shape: 3 or 4 numbers, the first axis the fastest in the file.
        dtype: as stored, with its byte order.
        affine: (4, 4), voxel indices -> mm in RAS+ world coordinates.
        compressed: whether all after `offset` is gzip or zlib data.
        scaling: slope, intercept.
        whole_file: whether the whole file is gzip data, which `offset` counts in once unpacked.
        warnings: one sentence each, for people.
        header: the file that describes them, where it is another one.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray
    compressed: bool = False
    scaling: tuple[float, float] = (1.0, 0.0)
    whole_file: bool = False
    warnings: tuple[str, ...] = ()
    header: Path | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels once unpacked."""
        return math.prod(self.shape) * self.dtype.itemsize

    def at(self, offset: int) -> "StoredVoxels":
        """Return the same with other bytes before the voxels."""
        if offset < 0:
            raise FormatError(f"the voxels must start inside the file, got byte {offset}")
        return replace(self, offset=offset)

    def check(self) -> "StoredVoxels":
        """Return itself, if its voxels fit the budget and the file.

        Raises:
            FormatError: a shape that no scan has, or a size that cannot be true.
        """
        if len(self.shape) not in (3, 4) or min(self.shape) < 1:
            raise FormatError(f"expected a 3-D scan with no empty axis, got shape {self.shape}")
        if self.dtype.kind not in "iuf":
            raise FormatError(f"expected one real number per voxel, got {self.dtype}")
        if not np.isfinite(self.scaling).all():
            raise FormatError(f"slope and intercept must be finite, got {self.scaling}")
        decoded = math.prod(self.shape) * max(self.dtype.itemsize, 4)  # as float32
        if decoded > VOXEL_BUDGET:
            raise FormatError(
                f"a scan may take {VOXEL_BUDGET / 2**30:g} GiB once decoded, but shape "
                f"{self.shape} takes {decoded / 2**30:.3g} GiB; crop or resample it"
            )
        announced, stored = self.offset + self.nbytes, self.path.stat().st_size
        packed = self.compressed or self.whole_file
        if announced > stored * (LARGEST_RATIO if packed else 1):
            raise FormatError(
                f"the header announces {announced} bytes, but {self.path.name} has {stored} and "
                "ends before; copy it again"
            )
        if announced > max(SUSPECT_BYTES, stored * SUSPECT_RATIO):
            raise FormatError(
                f"{stored} bytes that unpack to {announced} are no scan but a bomb: at most "
                f"{SUSPECT_RATIO} to 1 is read from {SUSPECT_BYTES >> 20} MiB on; unpack it first"
            )
        return self

    def __getitem__(self, index: tuple[slice | int, ...]) -> np.ndarray:
        slope, intercept = self.scaling
        voxels = self._voxels[index]
        return voxels if self.scaling == (1, 0) else voxels * np.float64(slope) + intercept

    @cached_property
    def _voxels(self) -> np.ndarray:
        skipped = self.offset if self.whole_file else 0
        with self.path.open("rb") as file:
            file.seek(self.offset - skipped)
            size = skipped + self.nbytes
            packed = self.compressed or self.whole_file
            content = _inflate(file, size) if packed else file.read(size)
        if len(content) != size:
            raise FormatError(
                f"the voxels end after {len(content) - skipped} of {self.nbytes} bytes; copy it "
                "again"
            )
        return np.frombuffer(content, self.dtype, offset=skipped).reshape(self.shape, order="F")


def _inflate(file: BinaryIO, size: int) -> bytearray:
    """Return up to `size` bytes of gzip or zlib data, which may consist of several members."""
    unpacked, inflate = bytearray(), zlib.decompressobj(wbits=47)
    piece = b""
    while len(unpacked) < size and (piece := piece or file.read(PIECE_BYTES)):
        unpacked += inflate.decompress(piece, size - len(unpacked))
        piece = inflate.unconsumed_tail
        if inflate.eof:
            piece, inflate = inflate.unused_data, zlib.decompressobj(wbits=47)
    return unpacked


def file_beside(header: Path, name: str) -> Path:
    """Return the file in the folder of a header that it names for its voxels.

    Raises:
        FormatError: a name that leads elsewhere, means several files, or names none that is there.
    """
    path = header.parent / name
    if Path(name).name != name or not path.is_file():
        raise FormatError(f"its voxels must be in one file beside it, got {name[:80]!r}")
    return path
