"""One slice as the bytes of an image file, with its exact values, quick to read back."""

import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# An uncompressed TIFF of one strip behind a header of fixed length: any reader opens it, ours skips
# the header, and the Parquet file around it compresses as well as PNG and unpacks far faster.
# width, height, bits, uncompressed, grey, start, channels, rows, bytes, number format
TAGS = (256, 257, 258, 259, 262, 273, 277, 278, 279, 339)
HEADER_BYTES = 8 + 2 + 12 * len(TAGS) + 4  # file header, count, entries, end
LONG = 4  # type of an entry
FORMATS: dict[int, np.dtype[Any]] = {1: np.dtype("<u2"), 3: np.dtype("<f4")}


def encode_slice(image: NDArray[np.float32]) -> bytes:
    """A slice (H, W) as TIFF: 16-bit where all values are whole numbers below 65536, as scanners
    store them, otherwise 32-bit float."""
    with np.errstate(invalid="ignore"):  # what does not fit wraps, and so differs
        whole = image.astype("<u2")
    stored = whole if np.array_equal(whole, image) else image.astype("<f4")
    height, width = stored.shape
    kind = 3 if stored.dtype.kind == "f" else 1
    bits, size = 8 * stored.itemsize, stored.nbytes
    values = (width, height, bits, 1, 1, HEADER_BYTES, 1, height, size, kind)
    entries = [
        struct.pack("<HHII", number, LONG, 1, value)
        for number, value in zip(TAGS, values, strict=True)
    ]
    header = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(entries) + b"\0" * 4
    return header + stored.tobytes()


def decode_slice(data: bytes) -> NDArray[np.float32]:
    """The slice (H, W) float32 that `encode_slice` was given."""
    width, height = (struct.unpack_from("<I", data, 10 + 12 * row + 8)[0] for row in (0, 1))
    kind = FORMATS[struct.unpack_from("<I", data, 10 + 12 * (len(TAGS) - 1) + 8)[0]]
    values = np.frombuffer(data, kind, width * height, HEADER_BYTES)
    return values.reshape(height, width).astype(np.float32)


def encode_mask(mask: NDArray[np.uint8]) -> bytes:
    """A mask (H, W), 0 or 1, as PNG, 255 in the lesion."""
    file = io.BytesIO()
    Image.fromarray(mask * np.uint8(255)).save(file, "PNG")
    return file.getvalue()


def decode_mask(data: bytes) -> NDArray[np.uint8]:
    """The mask (H, W) that `encode_mask` was given."""
    return (np.asarray(Image.open(io.BytesIO(data))) > 0).astype(np.uint8)
