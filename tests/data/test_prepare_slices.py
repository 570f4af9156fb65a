"""The script that prepares slices: complete, sorted, and not done twice."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from odd_folders import bet, save, tiny_voxels
from prepare_slices import PrepareRecipe
from prepare_slices import main as prepare_slices
from small_study import write_scans

from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.recipes import load_recipe


def prepare(folder: Path, *words: str) -> Path:
    out = folder / "slices"
    settings = ["patients_per_file=2", "processes=1", "with_masks=true", *words]
    words = [f"root={folder}/scans", f"out={out}", *settings]
    prepare_slices(load_recipe(PrepareRecipe, words))
    return out


def times(out: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in sorted((out / "data").iterdir())}


def test_files_are_sorted_by_patient_with_a_row_group_each(tmp_path: Path) -> None:
    write_scans(tmp_path / "scans", 5)
    out = prepare(tmp_path)
    found = []
    for path in sorted((out / "data").iterdir()):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, ["patient_id", "slice_index"]).to_pylist()
            assert [r["slice_index"] for r in rows] == sorted(r["slice_index"] for r in rows)
            found.append({row["patient_id"] for row in rows})
    assert found == [{p.patient_id} for p in find_patients(tmp_path / "scans")]
    manifest = json.loads((out / "slices.json").read_text())
    assert manifest["patients"] == 5 and manifest["versions"]["numpy"]
    assert all(len(part["sha256"]) == len(part["mask_sha256"]) == 64 for part in manifest["parts"])


def test_a_second_run_writes_what_lacks_or_changed_and_nothing_else(tmp_path: Path) -> None:
    write_scans(tmp_path / "scans", 5)
    out = prepare(tmp_path)
    first, manifest = times(out), (out / "slices.json").read_text()
    assert times(prepare(tmp_path)) == first
    (out / "data" / ".123-part-00000.parquet").write_bytes(b"left by a kill")
    (out / "data" / "part-00001.parquet").write_bytes(b"half")
    (out / "slices.json").unlink()
    second = times(prepare(tmp_path))
    assert [name for name in first if first[name] != second[name]] == ["part-00001.parquet"]
    assert (out / "slices.json").read_text() == manifest
    assert set(second) == set(first)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    write_scans(tmp_path / "scans", 2)
    prepare(tmp_path)
    with pytest.raises(ValueError, match="holds slices made with other settings"):
        prepare(tmp_path, "skip_slices=2")
    with pytest.raises(ValueError, match="modalities must be some of"):
        prepare(tmp_path, "modalities=[T2]")


def test_a_patient_without_mask_and_labels_is_left_out_and_the_others_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "scans"
    bet(scans)
    save(scans / "p03" / "p03_t2.nii.gz")
    save(scans / "p03" / "p03_seg.nii.gz", (tiny_voxels() > 300).astype(np.uint8))
    words = [f"root={scans}", f"out={tmp_path / 'out'}", "processes=1"]
    assert prepare_slices(load_recipe(PrepareRecipe, words)) == 1
    printed = capsys.readouterr().out
    for name in ("p01", "p02"):
        assert f"left out: {name}: it has neither a mask nor slice labels" in printed
    assert "done: 1 of 3 patients are in" in printed
    assert json.loads((tmp_path / "out" / "slices.json").read_text())["patients"] == 1
