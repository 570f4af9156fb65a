"""Pseudo-masks on disk: every bit comes back, and nothing half-written is ever read."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_rasalore.pseudo_masks.table import (
    MaskTable,
    SliceMasks,
    table_path,
    unpack,
    write_masks,
)


def random_mask(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) < 0.3).astype(np.uint8)


def slice_masks(
    patient_id: str = "a", slice_index: int = 0, area: float = 300, sam: bool = False
) -> SliceMasks:
    sam_mask = random_mask((5, 7), 100 + slice_index) if sam else None
    return SliceMasks(patient_id, slice_index, random_mask((5, 7), slice_index), area, sam_mask)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 8), (7, 240), (240, 155)])
def test_every_bit_of_a_mask_comes_back(tmp_path: Path, shape: tuple[int, int]) -> None:
    mask, sam_mask = random_mask(shape, 1), random_mask(shape, 2)
    write_masks(tmp_path, "a", [SliceMasks("a", 4, mask, 12.5, sam_mask)])
    stored = MaskTable(tmp_path, ["a"])["a", 4]
    assert stored.pseudo_mask.dtype == np.uint8 and stored.area == 12.5
    np.testing.assert_array_equal(stored.pseudo_mask, mask)
    np.testing.assert_array_equal(stored.sam_mask, sam_mask)
    assert (stored.patient_id, stored.slice_index) == ("a", 4)


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.0, 0.3, 1.0]))
def test_packed_bits_unpack_for_any_shape(height: int, width: int, share: float) -> None:
    mask = (np.random.default_rng(height).random((height, width)) < share).astype(np.uint8)
    np.testing.assert_array_equal(unpack(np.packbits(mask).tobytes(), (height, width)), mask)


def test_slices_of_one_patient_may_differ_in_shape(tmp_path: Path) -> None:
    masks = [SliceMasks("a", i, random_mask((3 + i, 9 - i)), 1) for i in range(3)]
    write_masks(tmp_path, "a", masks)
    table = MaskTable(tmp_path, ["a"])
    assert [table["a", i].pseudo_mask.shape for i in range(3)] == [(3, 9), (4, 8), (5, 7)]


def test_a_boolean_mask_is_stored_as_zeros_and_ones(tmp_path: Path) -> None:
    mask = random_mask((5, 7))
    write_masks(tmp_path, "a", [SliceMasks("a", 0, mask.astype(bool), 1)])
    np.testing.assert_array_equal(MaskTable(tmp_path, ["a"])["a", 0].pseudo_mask, mask)


def test_a_sam_mask_that_was_never_made_is_none_and_an_empty_one_is_empty(tmp_path: Path) -> None:
    empty = np.zeros((5, 7), np.uint8)
    write_masks(tmp_path, "a", [slice_masks(), SliceMasks("a", 1, empty, 0, empty)])
    table = MaskTable(tmp_path, ["a"])
    stored = table["a", 1].sam_mask
    assert table["a", 0].sam_mask is None
    assert stored is not None and stored.shape == (5, 7) and not stored.any()


def test_what_is_ignored_comes_back_and_older_tables_ignore_nothing(tmp_path: Path) -> None:
    mask, ignored = random_mask((5, 7), 1), random_mask((5, 7), 2)
    path = write_masks(tmp_path, "a", [SliceMasks("a", 0, mask, 1, ignored=ignored)])
    stored = MaskTable(tmp_path, ["a"])["a", 0]
    np.testing.assert_array_equal(stored.ignored, ignored)
    assert stored.sam_mask is None
    pq.write_table(pq.read_table(path).drop_columns("ignored"), path)
    assert MaskTable(tmp_path, ["a"])["a", 0].ignored is None


def test_a_table_holds_the_slices_of_the_patients_asked_for(tmp_path: Path) -> None:
    for patient_id in ("a", "b", "c"):
        write_masks(tmp_path, patient_id, [slice_masks(patient_id, i, sam=True) for i in (3, 9)])
    table = MaskTable(tmp_path, ["c", "a"])
    assert list(table) == [("c", 3), ("c", 9), ("a", 3), ("a", 9)] and len(table) == 4
    with pytest.raises(KeyError):
        table["b", 3]


def test_a_patient_without_unhealthy_slices_has_an_empty_file(tmp_path: Path) -> None:
    write_masks(tmp_path, "a", [])
    assert len(MaskTable(tmp_path, ["a"])) == 0


def test_a_missing_patient_is_named_with_the_way_out(tmp_path: Path) -> None:
    write_masks(tmp_path, "a", [slice_masks()])
    with pytest.raises(ValueError, match=r"patient b; run train/make_pseudo_masks\.py"):
        MaskTable(tmp_path, ["a", "b"])


def test_the_script_that_the_error_names_exists() -> None:
    assert (Path(__file__).parents[2] / "train" / "make_pseudo_masks.py").is_file()


def test_small_pseudo_masks_are_forgotten_and_counted(tmp_path: Path) -> None:
    areas = [0.0, 199.9, 200.0, 5000.0]
    write_masks(tmp_path, "a", [slice_masks("a", i, area) for i, area in enumerate(areas)])
    table = MaskTable(tmp_path, ["a"])
    assert table.drop_small(200) == 2 and list(table) == [("a", 2), ("a", 3)]
    assert table.drop_small(200) == 0


def test_writing_again_replaces_the_file_and_leaves_no_draft(tmp_path: Path) -> None:
    write_masks(tmp_path, "a", [slice_masks("a", 0), slice_masks("a", 1)])
    path = write_masks(tmp_path, "a", [slice_masks("a", 7)])
    assert path == table_path(tmp_path, "a") and list(path.parent.iterdir()) == [path]
    assert list(MaskTable(tmp_path, ["a"])) == [("a", 7)]


def test_a_failed_write_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_masks(tmp_path, "a", [slice_masks("a", 0)])

    def fail(table: object, draft: Path) -> None:
        draft.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        write_masks(tmp_path, "a", [slice_masks("a", 1)])
    assert list(MaskTable(tmp_path, ["a"])) == [("a", 0)] and path.is_file()


@pytest.mark.parametrize("patient_id", ["BraTS-GLI-00001-000", "v1.2", "sub-01.nii"])
def test_patients_whose_names_hold_dots_keep_files_of_their_own(
    tmp_path: Path, patient_id: str
) -> None:
    write_masks(tmp_path, patient_id, [slice_masks(patient_id)])
    write_masks(tmp_path, patient_id + ".b", [])
    assert list(MaskTable(tmp_path, [patient_id])) == [(patient_id, 0)]


def test_masks_are_packed_eight_pixels_to_the_byte(tmp_path: Path) -> None:
    write_masks(tmp_path, "a", [SliceMasks("a", 0, random_mask((240, 240)), 1)])
    (row,) = pq.read_table(table_path(tmp_path, "a")).to_pylist()
    assert len(row["pseudo_mask"]) == 240 * 240 // 8 and row["sam_mask"] is None
