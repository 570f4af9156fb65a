"""Read what one DICOM file holds, whatever its start and compression, before a byte is trusted.

Headers are parsed from the start of a file; compressed slices are checked for the size that they
announce themselves, so none unpacks to more than the header says.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .stored_voxels import FormatError

START_BYTES = 2**10  # that show whether a file is DICOM
HEADER_BYTES = 2**23  # before the voxels; a thousand slices in one file need half of it
MOST_ITEMS = 200_000  # of sequences in one header: each takes a kilobyte once parsed
LARGEST_COMPRESSED = 2**22  # voxels of one compressed slice, 2048 x 2048

MAGIC = bytes(128) + b"DICM"  # what a DICOM file starts with
LONG_TYPES = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT"}
IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
RLE, JPEG = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4."
# JPEG of 8 and 12 bits, lossless JPEG, JPEG-LS, JPEG 2000 and its fast successor.
COMPRESSED = (RLE, *(f"{JPEG}{end}" for end in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)))
READ = (IMPLICIT, EXPLICIT, BIG_ENDIAN, *COMPRESSED)
PIXEL_TAGS = [
    *("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration"),
    *("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
]


def with_preamble(content: bytes) -> bytes | None:
    """Return a file's content as DICOM asks for it, though it lacks the start; None: no DICOM.

    Old archives hold the data set alone, whose first two fields must make sense then.
    """
    if content.startswith(b"DICM", 128):
        return content
    for start in (0, 4, 128, 132):
        for order, group in (("<", 2), ("<", 8), (">", 8)):
            first = _field_at(content, start, order)
            second = first and _field_at(content, first.end, order)
            if not first or not second or first.group != group or second.tag <= first.tag:
                continue
            if group == 2:  # the file says its syntax itself
                return MAGIC + content[start:]
            plain = EXPLICIT if first.explicit else IMPLICIT
            syntax = (plain if order == "<" else BIG_ENDIAN).encode().ljust(20, b"\0")
            return MAGIC + b"\2\0\x10\0UI\x14\0" + syntax + content[start:]
    return None


class _Field(NamedTuple):
    """A field of a data set: its group, tag, whether it says its type, and where it ends."""

    group: int
    tag: int
    explicit: bool
    end: int


def _field_at(content: bytes, start: int, order: str) -> _Field | None:
    """Return the short field at `start` of a data set; None where there cannot be one."""
    if len(content) < start + 12:
        return None
    group, element = struct.unpack_from(f"{order}HH", content, start)
    kind = content[start + 4 : start + 6]
    explicit = kind.isalpha() and kind.isupper()
    if explicit and kind not in LONG_TYPES:
        size, head = struct.unpack_from(f"{order}H", content, start + 6)[0], 8
    else:
        head = 12 if explicit else 8
        (size,) = struct.unpack_from(f"{order}I", content, start + head - 4)
    if group > 8 or size > START_BYTES:
        return None
    return _Field(group, group << 16 | element, explicit, start + head + size)


def read_header(content: bytes, tags: Sequence[Any] | None = None) -> Any:
    """Return what `tags` say in the start of a DICOM file, or all but its voxels, as a data set.

    Raises:
        FormatError: slices that are packed in another way than is read, or a header that is no
            scan's.
    """
    import pydicom

    # The syntax comes first: a deflated file would be unpacked whole, whatever its size.
    file = io.BytesIO(content)
    file.seek(len(MAGIC))
    meta = pydicom.filereader.read_dataset(file, False, True, stop_when=_after_meta)
    syntax = str(meta.get("TransferSyntaxUID", ""))
    if syntax not in READ:
        raise FormatError(
            "the slices are compressed; decompress them, for example with gdcmconv --raw, or "
            f"convert the series with dcm2niix (transfer syntax {syntax[:64]!r})"
        )
    if syntax in COMPRESSED and not pydicom.pixels.get_decoder(syntax).is_available:
        raise FormatError(
            f"the slices are compressed ({pydicom.uid.UID(syntax).name}), which needs the extra "
            "[dicom]; run pip install 'rasalore[dicom]'"
        )
    items = content.count(b"\xfe\xff\0\xe0") + content.count(b"\xff\xfe\xe0\0")
    if items > MOST_ITEMS:
        raise FormatError(f"a header may hold {MOST_ITEMS} items of sequences, got {items}")
    file.seek(0)
    chosen = None if tags is None else list(tags)
    return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=chosen)


def _after_meta(tag: Any, *_: Any) -> bool:
    return tag >> 16 != 2  # the group of the file meta information


def frame_headers(header: Any) -> Iterator[Any]:
    """Yield one header per slice of a file, with what an enhanced one tells of each at its top.

    Raises:
        FormatError: several slices that do not tell their places.
    """
    from pydicom import Dataset

    count = int(header.get("NumberOfFrames", 1) or 1)
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    if count == 1 and not groups:
        yield header
        return
    if len(groups) != count:
        raise FormatError(
            f"the {count} slices in one file must each tell its place, got {len(groups)} places; "
            "convert it with dcm2niix"
        )
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for own in groups:
        frame = Dataset()
        frame.update(header)
        frame.pop("ImagePositionPatient", None)
        for group in (element for part in (*shared[:1], own) for element in part):
            if group.VR == "SQ" and group.value:
                frame.update(group.value[0])
        yield frame


def decode_slices(content: bytes, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield slices of a file, counted from 0, as (rows, columns) of its own type, unscaled."""
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(content), specific_tags=list(PIXEL_TAGS))
    for index in indices:
        syntax = dataset.file_meta.TransferSyntaxUID
        if syntax in COMPRESSED:
            _check_compressed(dataset, index)
        try:
            yield pydicom.pixels.pixel_array(dataset, index=index, raw=True)
        except RuntimeError as error:  # of all decoders that were tried
            raise FormatError(
                f"a slice cannot be decompressed ({syntax.name}); export the series again"
            ) from error


def _check_compressed(dataset: Any, index: int) -> None:
    """Refuse a compressed slice that would unpack to more than the header says."""
    from pydicom.encaps import get_frame

    rows, columns = int(dataset.Rows), int(dataset.Columns)
    size = rows * columns
    if size > LARGEST_COMPRESSED:
        raise FormatError(f"a compressed slice may have 2048 x 2048 voxels, got {rows} x {columns}")
    offsets = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    frame = get_frame(
        dataset.PixelData,
        index,
        number_of_frames=int(dataset.get("NumberOfFrames", 1) or 1),
        extended_offsets=offsets if all(offsets) else None,
    )
    if dataset.file_meta.TransferSyntaxUID == RLE:
        size *= int(dataset.BitsAllocated) // 8
        if len(frame) > size + size // 4 + 1024:  # 128 bytes may unpack of two
            raise FormatError(f"a compressed slice of {size} bytes cannot take {len(frame)}")
    elif (announced := _announced_shape(frame)) != (rows, columns, 1):
        raise FormatError(
            f"a compressed slice must have the {rows} rows and {columns} columns of its header and "
            f"one value per voxel, got {announced}"
        )


def _announced_shape(frame: bytes) -> tuple[int, int, int] | None:
    """Return rows, columns and values per voxel that compressed data announces, if any."""
    if frame.startswith(b"\xff\x4f\xff\x51") and len(frame) >= 42:  # JPEG 2000
        right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
        return bottom - top, right - left, int.from_bytes(frame[40:42], "big")
    start = 2  # JPEG and JPEG-LS: one segment after the other, up to the one that starts a frame
    while start + 10 <= len(frame) and frame[start] == 0xFF:
        marker = frame[start + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns, values = struct.unpack_from(">HHB", frame, start + 5)
            return rows, columns, values
        start += 1 if marker == 0xFF else 2 + int.from_bytes(frame[start + 2 : start + 4], "big")
    return None
