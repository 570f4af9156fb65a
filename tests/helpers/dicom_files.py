"""DICOM series as a scanner writes them, one file per slice."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
Change = Callable[[Path], None]  # of the files of a folder


def write_series(folder: Path, voxels: np.ndarray, affine: np.ndarray, **fields: Any) -> Path:
    """Return `folder` with a slice per file along the last axis, in no useful order of names.

    Args:
        voxels: (I, J, K) of int16 or uint16, columns first.
        affine: (4, 4), voxel indices -> RAS mm.
        fields: further DICOM fields of every file, such as SeriesDescription.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = RAS_TO_LPS @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    series = generate_uid()
    for place in range(voxels.shape[2]):
        dataset = _slice(voxels[:, :, place].T, lps, sizes, place)
        dataset.SeriesInstanceUID = series
        for name, value in fields.items():
            setattr(dataset, name, value)
        dataset.save_as(folder / f"IM{place * 7 % 10}_{place}", enforce_file_format=True)
    return folder


def zip_files(path: Path, members: dict[str, bytes]) -> Path:
    """Return `path` of a zip with these files, name -> content."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def zip_series(path: Path, *folders: Path) -> Path:
    """Return `path` of a zip with the files of these folders."""
    files = [file for folder in folders for file in sorted(folder.iterdir())]
    return zip_files(path, {f"{file.parent.name}/{file.name}": file.read_bytes() for file in files})


def zip_bomb(path: Path, files: int) -> Path:
    """Return `path` of a small zip with so many names for one file of 32 MiB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("0", bytes(2**25))
        for number in range(1, files):
            archive.filelist.append(_renamed(archive.filelist[0], str(number)))
    return path


def _renamed(info: zipfile.ZipInfo, name: str) -> zipfile.ZipInfo:
    other = zipfile.ZipInfo(name)
    for field in ("compress_type", "CRC", "compress_size", "file_size", "header_offset"):
        setattr(other, field, getattr(info, field))
    return other


def _slice(plane: np.ndarray, lps: np.ndarray, sizes: np.ndarray, place: int) -> pydicom.Dataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID, dataset.Modality = "DOE^JANE", "4711", "MR"
    directions = (lps[:3, :2] / sizes[:2]).T.ravel()
    dataset.ImageOrientationPatient = [f"{number:.12g}" for number in directions]
    position = (lps @ [0, 0, place, 1])[:3]
    dataset.ImagePositionPatient = [f"{number:.10g}" for number in position]
    dataset.PixelSpacing = [f"{sizes[1]:.12g}", f"{sizes[0]:.12g}"]
    dataset.SliceThickness = f"{sizes[2]:.12g}"
    dataset.Rows, dataset.Columns = plane.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * plane.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(plane.dtype.kind == "i")
    dataset.PixelData = np.ascontiguousarray(plane).tobytes()
    return dataset


def rotation(degrees: float) -> np.ndarray:
    turn, angle = np.eye(4), np.deg2rad(degrees)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn


AXIAL = rotation(7) @ np.diag([-0.9, -1.1, 3.0, 1.0]) + np.outer([90, 80, -70, 0], [0, 0, 0, 1])


def voxels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-50, 1000, (8, 7, 5)).astype(np.int16)


def edit(index: int, **fields: object) -> Change:
    """Change fields of the file that comes at `index` by name."""

    def change(folder: Path) -> None:
        path = sorted(folder.iterdir())[index]
        dataset = pydicom.dcmread(path)
        private = fields.pop("private", None)
        for name, value in fields.items():
            setattr(dataset, name, value)
        if private:
            group, creator, *element = private
            dataset.private_block(group, creator, create=True).add_new(*element)
        dataset.save_as(path)

    return change
