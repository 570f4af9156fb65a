"""Folders of scans as labs really have them, each made by one function from one tiny phantom."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from dicom_files import write_series

AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])


def tiny_voxels(seed: int = 0) -> np.ndarray:
    """A brain of random tissue in (16, 18, 6) int16, 0 around it."""
    voxels = np.zeros((16, 18, 6), np.int16)
    inside = (slice(3, 13), slice(3, 15), slice(1, 5))
    voxels[inside] = np.random.default_rng(seed).integers(50, 400, voxels[inside].shape)
    return voxels


def save(path: Path, voxels: np.ndarray | None = None, header: str = "") -> Path:
    """Return `path` of a NIfTI file, by default of the phantom, with a description."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(tiny_voxels() if voxels is None else voxels, AFFINE)
    image.header["descrip"] = header
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


# What a folder holds, and what is left out


def study(folder: Path, **fields: Any) -> Path:
    """One DICOM folder per series, named by number: T1, T2 and FLAIR by their descriptions."""
    words = ("t1_se_tra", "t2_tse_tra", "t2_tirm_tra_dark-fluid")
    for number, description in enumerate(words, 1):
        described = {"SeriesDescription": description, **fields}
        write_series(folder / f"SE{number:06d}", tiny_voxels(), AFFINE, **described)
    return folder


def raw_channels(folder: Path, names: dict[str, str] | None = None) -> Path:
    """nnU-Net's raw data of two patients, with the names of its channels where they are given."""
    for case in ("BRATS_001", "BRATS_002"):
        for channel in range(4):
            save(folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz", tiny_voxels(channel))
        mask = np.zeros(tiny_voxels().shape, np.uint8)
        mask[5:8, 5:8, 2] = 1
        save(folder / "labelsTr" / f"{case}.nii.gz", mask)
    if names:
        (folder / "dataset.json").write_text(json.dumps({"channel_names": names}))
    return folder


def bet(folder: Path, ending: str = "t2_bet_mask") -> Path:
    """Two skull-stripped scans, each with the mask of its brain beside it."""
    for name in ("p01", "p02"):
        save(folder / name / f"{name}_t2_bet.nii.gz")
        save(folder / name / f"{name}_{ending}.nii.gz", (tiny_voxels() > 0).astype(np.uint8))
    return folder


def linked(folder: Path) -> Path:
    """A patient's folder, a link to another one, and links that lead back and to nothing."""
    save(folder / "scans" / "p1" / "p1_t2.nii.gz")
    save(folder / "store" / "p2" / "p2_t2.nii.gz")
    (folder / "scans" / "p2").symlink_to(folder / "store" / "p2")
    (folder / "scans" / "p1" / "back").symlink_to(folder / "scans")
    (folder / "scans" / "p3").symlink_to(folder / "store" / "p3")
    return folder / "scans"


def not_fetched(folder: Path) -> Path:
    """A BIDS data set in git-annex, where the content of one of two scans is not there."""
    save(folder / "sub-01" / "anat" / "sub-01_T2w.nii.gz")
    path = folder / "sub-02" / "anat" / "sub-02_T2w.nii.gz"
    path.parent.mkdir(parents=True)
    path.symlink_to("../../.git/annex/objects/KEY/KEY")
    (folder / "dataset_description.json").write_text('{"Name": "a", "BIDSVersion": "1.8.0"}')
    return folder


def disc(folder: Path) -> Path:
    """A CD: DICOMDIR and a readme at the top, the one series below; beside it a zip of notes."""
    write_series(folder / "DICOM" / "SE000001", tiny_voxels(), AFFINE, SeriesDescription="t2_tse")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(99))
    (folder / "README.TXT").write_text("viewer on this disc\n")
    with zipfile.ZipFile(folder / "papers.zip", "w") as archive:
        archive.writestr("notes.txt", "protocol")
    return folder


def odd_names(folder: Path) -> Path:
    """Names with a Latin-1 byte, quotes, a line break and another alphabet."""
    for name in (b"Andr\xe9_t2", "脑_t2".encode(), b"a 'b' \"c\"_t2", b"new\nline_t2", b"zz_t2"):
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name + b".nii.gz"))
        save(folder / "made.nii.gz").rename(path)
    return folder
