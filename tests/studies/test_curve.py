"""A learning curve: which studies it is made of, what it refuses, and what its figure shows."""

import json
from pathlib import Path
from typing import Any

import pytest
from label_files import write_slice_labels
from PIL import Image
from small_study import write_scans

from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.studies.curve import CurvePoint, draw_curve, plan_curve
from modeling_rasalore.studies.recipe import NOTHING, PSEUDO_MASKS, StudyData, StudyRecipe


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scans(tmp_path_factory.mktemp("scans"), 8)


def study_of(scans: Path, out: Path, **fields: Any) -> StudyRecipe:
    return StudyRecipe(str(out), StudyData(str(scans), "t2"), start="scans", fuse_from=3, **fields)


def test_each_number_is_a_study_of_its_own_with_the_same_test_patients(
    scans: Path, tmp_path: Path
) -> None:
    points = plan_curve(study_of(scans, tmp_path, cross=["elsewhere"]), [4, 2, 2])
    assert [point.patients for point in points] == [2, 4]
    assert [point.learns_from for point in points] == [NOTHING, PSEUDO_MASKS]
    assert [point.study.out for point in points] == [
        str(tmp_path / "curve" / f"patients{number}") for number in (2, 4)
    ]
    assert not (tmp_path / "curve").exists()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [([0], "from 1 on, got 0"), ([2, 9], r"there are 5 patients to learn from .*, got 9")],
)
def test_numbers_that_cannot_be_are_refused_before_anything_begins(
    scans: Path, tmp_path: Path, numbers: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan_curve(study_of(scans, tmp_path), numbers)


def test_without_masks_there_is_no_curve(tmp_path: Path) -> None:
    scans = write_scans(tmp_path / "scans", 5)
    write_slice_labels(find_patients(scans), scans / "slice_labels.csv")
    for mask in scans.rglob("*_seg.nii.gz"):
        mask.unlink()
    with pytest.raises(ValueError, match="--curve draws scores, and test patients have no mask"):
        plan_curve(study_of(scans, tmp_path), [2])


def write_scores(point: CurvePoint, precision: float, with_threshold: bool = True) -> None:
    """Leave the scores that a finished study leaves."""
    systems = "rasalore", "synthetic_only", "mirror", "smoothed_rank"
    rows = [
        {"system": name, "view": "paper", "threshold": threshold}
        | {measure: value, f"{measure}_low": value - 0.1, f"{measure}_high": value + 0.1}
        for measure, threshold, less in (
            ("average_precision", "0.5", 0.0),
            ("dice", "label_free", 0.1),
        )[: 1 + with_threshold]
        for name, higher in zip(systems, (precision, 0.4, 0.3, 0.2), strict=True)
        for value in [higher - less]
    ]
    Path(point.study.out).mkdir(parents=True)
    (Path(point.study.out) / "results.json").write_text(json.dumps({"rows": rows}))


def test_the_figure_and_its_numbers_are_the_scores_of_every_point(
    scans: Path, tmp_path: Path
) -> None:
    points = plan_curve(study_of(scans, tmp_path), [2, 4])
    for point, precision in zip(points, (0.5, 0.7), strict=True):
        write_scores(point, precision)
    picture = Image.open(draw_curve(points, tmp_path))
    assert picture.width > 1000
    drawn = json.loads((tmp_path / "curve.json").read_text())["meta"]["points"]
    # Of two patients no label was learned from: what counts is the start.
    precisions = [point["average_precision"] for point in drawn]
    assert [lines["network"][0] for lines in precisions] == [0.4, 0.7]
    assert precisions[1]["network"] == pytest.approx([0.7, 0.6, 0.8])
    assert precisions[0]["mirror"][0] == 0.3
    assert drawn[1]["dice"]["network"] == pytest.approx([0.6, 0.5, 0.7])
    assert [point["learns_from"] for point in drawn] == [NOTHING, PSEUDO_MASKS]


def test_without_a_threshold_of_healthy_slices_precision_is_drawn_all_the_same(
    scans: Path, tmp_path: Path
) -> None:
    points = plan_curve(study_of(scans, tmp_path), [2, 4])
    for point in points:
        write_scores(point, 0.5, with_threshold=False)
    draw_curve(points, tmp_path)
    drawn = json.loads((tmp_path / "curve.json").read_text())["meta"]["points"]
    assert drawn[1]["average_precision"]["network"][0] == 0.5
    assert drawn[1]["dice"]["network"] == [None, None, None]
