"""A slice comes back from Parquet with every value it had, through our reader and `datasets`."""

import io
import json
import struct
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from modeling_rasalore import remote_files
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.data.shard_writing import (
    SliceChoice,
    write_manifest,
    write_part,
    write_split_files,
)
from modeling_rasalore.data.shards import decode_mask, decode_slice, encode_mask, encode_slice
from modeling_rasalore.data.slices import read_slices
from modeling_rasalore.scans.volume_writing import write_nifti
from modeling_rasalore.training.work_list import WorkList

T2 = SliceChoice(("t2",), skip=1, with_masks=True)
BOTH = SliceChoice(("t2", "flair"), with_masks=True)


def decode(stored: dict[str, bytes]) -> Image.Image:
    return Image.open(io.BytesIO(stored["bytes"]))


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        ([0, 1, 65535], "I;16"),
        ([0, 0.5, 3], "F"),
        ([0, 65536, 3], "F"),
        ([0, 1e-30, 3e38], "F"),
    ],
)
def test_a_slice_is_stored_without_loss(values: list[float], mode: str) -> None:
    image = np.array([values, values[::-1]], np.float32)
    stored = encode_slice(image)
    np.testing.assert_array_equal(decode_slice(stored), image)
    foreign = Image.open(io.BytesIO(stored))  # as any reader of TIFF sees it
    assert (foreign.format, foreign.mode) == ("TIFF", mode)
    np.testing.assert_array_equal(np.asarray(foreign, np.float32), image)


def earlier_tiff(values: np.ndarray, number_format: int) -> bytes:
    """A slice as it was stored by version 0.1: a TIFF of ten entries, then the values."""
    height, width = values.shape
    tags = (256, 257, 258, 259, 262, 273, 277, 278, 279, 339)
    facts = (width, height, 8 * values.itemsize, 1, 1, 134, 1, height, values.nbytes, number_format)
    entries = [struct.pack("<HHII", tag, 4, 1, fact) for tag, fact in zip(tags, facts, strict=True)]
    return struct.pack("<2sHIH", b"II", 42, 8, 10) + b"".join(entries) + bytes(4) + values.tobytes()


@pytest.mark.parametrize(("dtype", "number_format"), [("<u2", 1), ("<f4", 3)])
def test_slices_that_were_prepared_earlier_can_be_read(dtype: str, number_format: int) -> None:
    values = np.array([[0, 1, 65535], [7, 8, 9]], dtype)
    image = decode_slice(earlier_tiff(values, number_format))
    assert image.dtype == np.float32 and image.flags.writeable
    np.testing.assert_array_equal(image, values)


def test_a_mask_is_stored_without_loss() -> None:
    mask = np.array([[0, 1, 1], [0, 0, 1]], np.uint8)
    np.testing.assert_array_equal(decode_mask(encode_mask(mask)), mask)


@pytest.fixture
def patients(tmp_path: Path) -> list[Patient]:
    """Three patients; FLAIR holds fractions and lacks the lowest slices' brain."""
    random = np.random.default_rng(0)
    for number in range(3):
        folder = tmp_path / "scans" / f"BraTS2021_{number:05d}"
        folder.mkdir(parents=True)
        scan = random.integers(1, 900, (20, 22, 6)).astype(np.float32)
        scan[..., 5] = 0
        mask = np.zeros(scan.shape, np.uint8)
        mask[2:18, 2:18, 3] = 4
        affine = np.diag([-1.0, -1.0, 2.0, 1.0])
        flair = scan / 3
        flair[..., :2] = 0
        for name, voxels in (("t2", scan), ("flair", flair), ("seg", mask)):
            write_nifti(folder / f"{folder.name}_{name}.nii.gz", voxels, affine)
    return find_patients(tmp_path / "scans")


def prepare(folder: Path, patients: list[Patient], choice: SliceChoice = BOTH) -> Path:
    """Two patients per file."""
    parts = [write_part(folder, f"part-{n}", patients[n : n + 2], choice) for n in (0, 2)]
    write_manifest(folder, parts, choice)
    return folder


def assert_same(ours: Any, theirs: Any) -> None:
    for row, expected in zip(ours, theirs, strict=True):
        for name, value in vars(expected).items():
            np.testing.assert_array_equal(getattr(row, name), value)
            assert getattr(getattr(row, name), "dtype", None) == getattr(value, "dtype", None)


@pytest.mark.parametrize("modality", ["t2", "flair"])
@pytest.mark.parametrize("with_mask", [True, False])
def test_prepared_slices_are_the_slices_of_the_scan(
    patients: list[Patient], modality: str, with_mask: bool, tmp_path: Path
) -> None:
    prepared = find_patients(prepare(tmp_path / "out", patients))
    assert [p.patient_id for p in prepared] == [p.patient_id for p in patients]
    for settings in ({"skip": 0}, {"skip": 1, "labels": {0}}, {"skip": 0, "only": {2, 3}}):
        for ours, theirs in zip(prepared, patients, strict=True):
            assert_same(
                read_slices(ours, modality, with_mask, **settings),
                read_slices(theirs, modality, with_mask, **settings),
            )


def test_both_give_the_same_work_list(patients: list[Patient], tmp_path: Path) -> None:
    prepared = find_patients(prepare(tmp_path / "out", patients))
    ours, theirs = (WorkList.of(found, "flair", 1) for found in (prepared, patients))
    assert len(ours) == 3 * 3  # slices 2, 3 and 4 show brain
    assert ours.fingerprint() == theirs.fingerprint()
    assert ours.fingerprint() != WorkList.of(patients, "t2", 1).fingerprint()


def test_training_opens_no_mask(patients: list[Patient], tmp_path: Path) -> None:
    folder = prepare(tmp_path / "out", patients)
    for path in (folder / "masks").iterdir():
        path.write_bytes(b"not for training")
    for path in sorted((folder / "data").iterdir()):
        assert "mask" not in pq.read_schema(path).names
    for patient in find_patients(folder):
        assert len(list(read_slices(patient, "t2", skip=0))) == 5


def test_slices_that_were_not_prepared_cannot_be_asked_for(
    patients: list[Patient], tmp_path: Path
) -> None:
    prepared = find_patients(prepare(tmp_path / "out", patients, T2))
    with pytest.raises(ValueError, match="skip_slices must be at least 1"):
        list(read_slices(prepared[0], "t2", skip=0))
    with pytest.raises(ValueError, match="every patient needs a flair scan"):
        list(read_slices(prepared[0], "flair"))
    # Scans of so few slices lose none by themselves.
    with pytest.raises(ValueError, match=r"got auto, which is 0 of .* again with skip_slices=0"):
        list(read_slices(prepared[0], "t2", skip="auto"))
    with pytest.raises(ValueError, match="got auto, which is 0 of"):
        WorkList.of(prepared, "t2", "auto")


def test_a_damaged_scan_is_named_and_left_out(patients: list[Patient], tmp_path: Path) -> None:
    patients[1].images["flair"].write_bytes(b"damaged")
    folder = prepare(tmp_path / "out", patients)
    assert [p.patient_id[-1] for p in find_patients(folder)] == ["0", "2"]
    (failed,) = json.loads((folder / "slices.json").read_text())["failed"]
    assert failed["patient_id"] == patients[1].patient_id
    assert "_flair.nii.gz" in failed["reason"]
    assert_same(read_slices(find_patients(folder)[0], "t2", skip=0),
                read_slices(patients[0], "t2", skip=0))  # fmt: skip


def test_a_web_address_gives_the_same_slices(
    patients: list[Patient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setattr(remote_files, "WAITS", ())
    folder = prepare(tmp_path / "out", patients)
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        for ours, theirs in zip(find_patients(address), patients, strict=True):
            assert_same(read_slices(ours, "t2", True, 0), read_slices(theirs, "t2", True, 0))
        files = [f"{address}/data/part-{number}.parquet" for number in (0, 2)]
        stream = load_dataset("parquet", data_files=files, split="train", streaming=True)
        images = [np.asarray(row["t2"], np.float32) for row in stream]
        server.shutdown()
    expected = [row.image for p in patients for row in read_slices(p, "t2", skip=0)]
    np.testing.assert_array_equal(images, expected)


def test_a_file_holds_one_patients_slices_in_order(patients: list[Patient], tmp_path: Path) -> None:
    split = {"train": patients[:1], "validation": [], "test": patients[1:]}
    counts = write_split_files(split, tmp_path / "out", T2)
    numbers = {"slices": 4, "unhealthy": 1, "healthy": 3, "neither": 0}
    assert counts == [
        {"split": "train", "patients": 1, **numbers},
        {"split": "test", "patients": 2, **{name: 2 * count for name, count in numbers.items()}},
    ]
    assert not (tmp_path / "out" / "data" / "validation").exists()
    path = tmp_path / "out" / "data" / "test" / f"{patients[1].patient_id}.parquet"
    rows = pq.read_table(path).to_pylist()
    for row, slice_ in zip(rows, read_slices(patients[1], "t2", True, 1), strict=True):
        np.testing.assert_array_equal(np.asarray(decode(row["t2"])), slice_.image)
        assert row["spacing"] == list(slice_.spacing)
        assert (row["label"], row["slice_index"]) == (slice_.label, slice_.slice_index)


def test_writing_twice_gives_the_same_bytes(patients: list[Patient], tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        write_split_files({"train": patients}, tmp_path / name, T2)
        files.append([p.read_bytes() for p in sorted((tmp_path / name).rglob("*.parquet"))])
    assert len(files[0]) == 3 + 3 + 1  # slices, masks, index
    assert files[0] == files[1]


def test_masks_are_published_only_when_asked_for(patients: list[Patient], tmp_path: Path) -> None:
    write_split_files({"train": patients}, tmp_path / "out", SliceChoice(("t2",), 1))
    assert not (tmp_path / "out" / "masks").exists()
    assert all(p.mask is None for p in find_patients(tmp_path / "out"))
