"""Scans in the formats of other programs, and odd DICOM series, each from voxels and an affine."""

import io
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from dicom_files import RAS_TO_LPS, write_series
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from modeling_rasalore.formats.metaimage import write_metaimage
from modeling_rasalore.formats.nrrd_files import write_nrrd

# (8 columns, 7 rows) of column * 50 + row * 7 as lossless JPEG, which no library here can write.
JPEG_LOSSLESS = bytes.fromhex(
    "ffd8ffc3000b100007000801011100ffc400160001010100000000000000000000000000060310ffda0008010100010000"
    "cc993264c9932bb264c993264caec993264c9932bb264c993264caec993264c9932bb264c993264caec993264c9932ffd9"
)

Change = Callable[[Dataset], None]


# --- Formats of other programs ---------------------------------------------------------------


def write_mgz(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    nib.MGHImage(voxels.astype(np.float32), affine).to_filename(path)
    return path


def write_pair(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    nib.Nifti1Pair(voxels, affine).to_filename(path)
    return path


def write_nhdr(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    """A header in RAS beside its big-endian voxels."""
    columns = " ".join("(" + ",".join(f"{x:.17g}" for x in axis) + ")" for axis in affine[:3, :3].T)
    lines = (
        *("NRRD0005", "type: short", "dimension: 3", "space: RAS"),
        f"sizes: {' '.join(map(str, voxels.shape))}",
        f"space directions: {columns}",
        f"space origin: ({','.join(f'{x:.17g}' for x in affine[:3, 3])})",
        *("endian: big", "encoding: raw", f"data file: {path.stem}.raw"),
    )
    path.write_text("\n".join(lines) + "\n\n", "ascii")
    path.with_suffix(".raw").write_bytes(voxels.astype(">i2").tobytes(order="F"))
    return path


def write_mhd(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    """A header of the old kind beside its uncompressed voxels."""
    lps = RAS_TO_LPS @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    numbers = {
        "Rotation": (lps[:3, :3] / sizes).T,
        "Position": lps[:3, 3],
        "ElementSpacing": sizes,
    }
    lines = ["NDims = 3", f"DimSize = {' '.join(map(str, voxels.shape))}"]
    lines += [f"{key} = {' '.join(f'{x:.17g}' for x in v.ravel())}" for key, v in numbers.items()]
    lines += ["ElementType = MET_SHORT", f"ElementDataFile = {path.stem}.raw"]
    path.write_text("\n".join(lines) + "\n", "ascii")
    path.with_suffix(".raw").write_bytes(voxels.astype("<i2").tobytes(order="F"))
    return path


WRITERS: dict[str, Callable[[Path, np.ndarray, np.ndarray], Path]] = {
    **{"a.nrrd": write_nrrd, "b.nhdr": write_nhdr, "c.mha": write_metaimage, "d.mhd": write_mhd},
    **{"e.mgz": write_mgz, "f.img": write_pair, "g.img.gz": write_pair},
}


# --- DICOM -----------------------------------------------------------------------------------


def change_series(folder: Path, change: Change) -> Path:
    """Return the folder after changing each file's data set."""
    for path in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path, enforce_file_format=True)
    return folder


def drop_preamble(path: Path, implicit: bool = True) -> None:
    """Leave the data set alone, as old archives hold it."""
    dataset, buffer = Dataset(pydicom.dcmread(path)), io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, implicit_vr=implicit, little_endian=True)
    path.write_bytes(buffer.getvalue())


def drop_preambles(folder: Path) -> Path:
    for path in folder.iterdir():
        drop_preamble(path)
    return folder


def compress_series(folder: Path) -> Path:
    """Return the folder with JPEG 2000, and a slice each as JPEG-LS and as run lengths."""
    for path, kind in zip_longest(folder.iterdir(), (uid.JPEGLSLossless, uid.RLELossless)):
        dataset = pydicom.dcmread(path)
        dataset.compress(kind or uid.JPEG2000Lossless)
        dataset.save_as(path)
    return folder


def copy_slices(folder: Path) -> Path:
    """Return the folder with a copy of every file, as a browser names it."""
    for path in list(folder.iterdir()):
        path.with_name(f"{path.name}(1)").write_bytes(path.read_bytes())
    return folder


def invert(dataset: Dataset) -> None:
    pixels = 1530 - dataset.pixel_array.astype(np.int16)
    dataset.PhotometricInterpretation, dataset.PixelData = "MONOCHROME1", pixels.tobytes()


def write_enhanced(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    """Return a folder with one enhanced MR file, its frames in no order, scaled differently."""
    planes = write_series(path / "planes", voxels, affine)
    sources = [pydicom.dcmread(file) for file in sorted(planes.iterdir())]
    for file in planes.iterdir():
        file.unlink()
    planes.rmdir()
    whole = sources[0]
    frames = [_groups(source, 1 + number % 2) for number, source in enumerate(sources)]
    whole.SharedFunctionalGroupsSequence = Sequence([_shared(whole)])
    whole.PerFrameFunctionalGroupsSequence = Sequence(frames)
    pixels = [source.pixel_array // (1 + number % 2) for number, source in enumerate(sources)]
    whole.PixelData = np.stack(pixels).astype(np.int16).tobytes()
    whole.NumberOfFrames = len(sources)
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(whole, tag)
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = uid.EnhancedMRImageStorage
    whole.save_as(path / "enhanced.dcm", enforce_file_format=True)
    return path


def _groups(source: Dataset, slope: int) -> Dataset:
    groups, position, scaling = Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = source.ImagePositionPatient
    scaling.RescaleSlope, scaling.RescaleIntercept = f"{slope}", "0"
    scaling.RescaleType = "US"
    groups.PlanePositionSequence = Sequence([position])
    groups.PixelValueTransformationSequence = Sequence([scaling])
    return groups


def _shared(source: Dataset) -> Dataset:
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = source.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = source.PixelSpacing, source.SliceThickness
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence = Sequence([measures])
    return shared


def mutations(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield damaged copies of a file: bytes, words and lengths changed, pieces gone or doubled."""
    generator = np.random.default_rng(seed)
    words = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"SQ", b"\xfe\xff\0\xe0", b"-1"]
    for _ in range(count):
        raw = bytearray(content)
        for _ in range(generator.integers(1, 7)):
            place = int(generator.integers(0, max(len(raw) - 8, 1)))
            kind = generator.integers(0, 5)
            if kind < 3:
                word = generator.bytes(2) if kind < 2 else words[generator.integers(len(words))]
                raw[place : place + len(word)] = word
            elif kind == 3:
                del raw[place : place + int(generator.integers(1, 40))]
            else:
                raw[place:place] = raw[place : place + int(generator.integers(1, 40))]
        yield bytes(raw)
