"""Odd geometry at the door: the clean scan's mask and right millilitres, or one sentence."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import odd_geometry as odd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from space import make_handlers, save_model

from modeling_rasalore.cli import main
from modeling_rasalore.prediction.loading import load_model
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.volume import predict_volume
from modeling_rasalore.scans.header_guard import VolumeError
from modeling_rasalore.scans.reading import read_scan
from modeling_rasalore.scans.slice_frame import Geometry, has_three_axes
from modeling_rasalore.scans.volume_writing import write_volume

Make = Callable[[Path], Path]
ZEROS, FLAT, INFINITE = [0.0] * 12, [-2.0, 0, 0, 23] * 3, [np.inf] * 12
# case: (what makes it, mm3 of a voxel, the one warning)
SAME_MASK: dict[str, tuple[Make, float, str | None]] = {
    "clean": (lambda folder: odd.write_two_forms(folder / "scan_t2.nii.gz"), 8, None),
    "tilted NIfTI": (odd.write_tilted, 8, "disagree by up to .* voxels.*tilted gantry"),
    "tilted DICOM": (odd.write_tilted_series, 8, "tilted gantry"),
    "quaternion 1 + 4e-7": (partial(odd.write_long_quaternion, excess=4e-7), 8, None),
    "quaternion 1 + 1e-6": (partial(odd.write_long_quaternion, excess=1e-6), 8, None),
    "quaternion 1 + 9e-6": (partial(odd.write_long_quaternion, excess=9e-6), 8, None),
    "quaternion 1 + 1e-6, sform": (
        partial(odd.write_long_quaternion, excess=1e-6, sform_code=2),
        8,
        None,
    ),
    "sform of zeros": (partial(odd.write_unusable_sform, values=ZEROS), 8, "so the qform is used"),
    "singular sform": (partial(odd.write_unusable_sform, values=FLAT), 8, "so the qform is used"),
    "infinite sform": (
        partial(odd.write_unusable_sform, values=INFINITE),
        8,
        "so the qform is used",
    ),
    "sizes disagree": (
        partial(odd.write_other_sizes, qform_code=1),
        8,
        "sform, which is used, says 2 x 2 x 2 mm stored LPS, the qform 5 x 3 x 3 mm stored LPS",
    ),
    "pixdim disagrees": (
        partial(odd.write_other_sizes, qform_code=0),
        8,
        "pixdim says voxels of 3 x 3 x 5 mm, but the sform, which is used, 2 x 2 x 2 mm",
    ),
    "metre": (partial(odd.write_unit, code=1), 8, "the metre, .* 56000 mm .* makes it 56 mm"),
    "micrometre": (partial(odd.write_unit, code=3), 8, "the micrometre, .* 0.056 mm .* 56 mm"),
    "five axes": (odd.write_five_axes, 8, None),
    "dim[4] = 0": (odd.write_no_volumes, 8, "taken as one volume"),
    "gzip members in the header": (odd.write_split_members, 8, None),
    "positions with one decimal": (odd.write_rounded_series, 3.76, "the scan covers 11.2. x"),
    "pixel size in two texts": (odd.write_spacing_text, 8, None),
    "coronal, 8 mm": (
        partial(odd.write_thick, axis=1, thickness=8),
        32,
        "2 x 8 x 2 mm .* up to 8 mm within an axial slice .coronal slices.",
    ),
    "sagittal, 6 mm": (
        partial(odd.write_thick, axis=0, thickness=6),
        24,
        "2 x 2 x 6 mm .* up to 6 mm within an axial slice .sagittal slices.",
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny", "t2")


@pytest.fixture(scope="module")
def loaded(model: Path) -> tuple[Any, Any]:
    return load_model(str(model), "main", "cpu")


@pytest.fixture(scope="module")
def expected(loaded: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The mask of the clean scan, in the slice frame."""
    clean = odd.write_two_forms(tmp_path_factory.mktemp("clean") / "scan_t2.nii.gz")
    mask = predict_volume(*loaded, read_scan(clean)).mask
    assert 50 < np.count_nonzero(mask) < 2500
    return mask


@pytest.mark.parametrize("case", SAME_MASK)
def test_an_odd_scan_has_the_clean_mask_and_right_millilitres_in_python(
    tmp_path: Path, loaded: tuple[Any, Any], expected: np.ndarray, case: str
) -> None:
    make, voxel_mm3, warning = SAME_MASK[case]
    volume = read_scan(make(tmp_path))
    assert [bool(re.search(warning or "", told)) for told in volume.warnings] == [True] * (
        warning is not None
    ), volume.warnings
    prediction = predict_volume(*loaded, volume)
    assert np.array_equal(prediction.mask, expected)
    right = np.count_nonzero(expected) * voxel_mm3 / 1000
    assert prediction.millilitres == pytest.approx(right, rel=1e-3)
    path = write_volume(tmp_path / "mask.nii.gz", prediction.mask, volume, np.uint8)
    written = nib.load(path)
    own_mm3 = abs(np.linalg.det(written.affine)) * np.count_nonzero(written.dataobj)
    assert written.header.get_xyzt_units()[0] == "mm"
    assert prediction.millilitres == pytest.approx(own_mm3 / 1000)


def test_odd_geometry_have_right_millilitres_and_their_warnings_on_the_command_line(
    tmp_path: Path, model: Path, expected: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = []
    for number, (make, _, _) in enumerate(SAME_MASK.values()):
        (tmp_path / str(number)).mkdir()
        scans.append(make(tmp_path / str(number)))
    out = tmp_path / "out"
    options = ["--model", str(model), "--out", str(out), "--files", "mask"]
    assert main(["predict", *map(str, scans), *options]) == 0
    printed = capsys.readouterr()
    entries = json.loads((out / "manifest.json").read_text())["scans"].values()
    for entry, (_, voxel_mm3, warning) in zip(entries, SAME_MASK.values(), strict=True):
        right = np.count_nonzero(expected) * voxel_mm3 / 1000
        assert entry["millilitres"] == pytest.approx(right, rel=1e-3)
        assert len(entry["warnings"]) == (warning is not None)
        for told in entry["warnings"]:
            assert re.search(warning or "", told)
            assert told in printed.out + printed.err


def test_a_mirrored_sform_is_used_and_told(tmp_path: Path) -> None:
    volume = read_scan(odd.write_mirrored_sform(tmp_path))
    assert volume.geometry.axis_codes == "RPS"
    (warning,) = volume.warnings
    assert re.search("by up to 23 voxels.*RPS.*LPS; left and right may be swapped", warning)
    assert volume.geometry.voxel_mm3 == 8


REFUSED: dict[str, tuple[Make, str]] = {
    "a head of 640 mm": (
        partial(odd.write_thick, axis=0, thickness=640 / 24),
        "a head measures 20 to 600 mm along each axis, got 24 x 56 x 640 mm",
    ),
    "a quaternion that is none": (
        partial(odd.write_long_quaternion, excess=1e-2),
        "the affine must be a rotation, got quaternion",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_impossible_scan_is_one_sentence_and_exit_code_1(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    make, sentence = REFUSED[case]
    path = make(tmp_path)
    with pytest.raises(VolumeError, match=sentence) as caught:
        read_scan(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    good = odd.write_two_forms(tmp_path / "good_t2.nii.gz")
    out = ["--out", str(tmp_path / "out")]
    assert main(["predict", str(path), str(good), "--model", str(model), *out]) == 1
    printed = capsys.readouterr()
    assert sentence in printed.err and "1 of 2 scans" in printed.out


@pytest.mark.parametrize("make", [odd.write_tilted, odd.write_tilted_series])
def test_a_tilted_scan_keeps_the_parts_that_its_determinant_allows(
    tmp_path: Path, loaded: tuple[Any, Any], expected: np.ndarray, make: Make
) -> None:
    """A smallest part between the true volume of the largest and a product of column lengths."""
    volume = read_scan(make(tmp_path))
    largest = predict_volume(*loaded, volume).largest_component_ml
    above, below = (
        predict_volume(*loaded, volume, PredictionOptions(smallest_ml=largest * factor)).mask
        for factor in (1.03, 0.999)
    )
    assert below.any() and not above.any()


def test_the_space_tells_the_millilitres_of_a_tilted_scan(
    tmp_path: Path, model: Path, expected: np.ndarray
) -> None:
    from scan_reading import read_scan as read_for_space

    analyst = make_handlers(model).usual
    scan = read_for_space(odd.write_tilted(tmp_path))
    report = analyst.analyse(scan, 0.5, lambda *_, **__: None).report(0.5, "given")
    right = np.count_nonzero(expected) * 8 / 1000
    assert report["millilitres"] == pytest.approx(right)
    assert sum(part["millilitres"] for part in report["findings"]) == pytest.approx(right)
    assert "tilted gantry" in " ".join(report["warnings"])


NUMBERS = st.floats(-5, 5, allow_subnormal=False)


@given(matrix=st.lists(NUMBERS, min_size=9, max_size=9), unit=st.sampled_from([1.0, 1000.0, 0.001]))
def test_a_voxel_has_the_volume_of_the_determinant(matrix: list[float], unit: float) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(matrix, (3, 3))
    volume = abs(float(np.linalg.det(affine)))
    if not has_three_axes(affine) or np.linalg.cond(affine[:3, :3]) > 1e6:
        return
    geometry = Geometry.of_voxels(affine, unit, (4, 5, 6))
    assert geometry.voxel_mm3 == pytest.approx(volume * unit**3, rel=1e-6)
    assert np.prod(geometry.spacing) == geometry.voxel_mm3
