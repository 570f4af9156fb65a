"""The `evaluate` metric loads from its published folder, stores no voxel, equals the benchmark."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluate import load

from modeling_rasalore.evaluation import intervals, lesion_metrics, metrics
from modeling_rasalore.evaluation.patient_scores import PatientScores
from modeling_rasalore.evaluation.rows import Thresholds, evaluate_system
from modeling_rasalore.publishing.metric_folder import complete_space

SOURCE = Path(__file__).parents[2] / "hub_configs" / "anomaly_segmentation"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The metric as it is published."""
    return complete_space(SOURCE, tmp_path_factory.mktemp("published") / SOURCE.name)


@pytest.fixture
def metric(folder: Path, tmp_path: Path) -> Any:
    return load(str(folder), cache_dir=str(tmp_path))


def scans(count: int, shape: tuple[int, int, int] = (6, 40, 40)) -> list[PatientScores]:
    random = np.random.default_rng(2)
    made = []
    for number in range(count):
        truth = np.zeros(shape, bool)
        truth[2:4, 5 : 15 + number, 8:20] = number > 0  # the first is healthy
        blurred = np.roll(truth, number, axis=2)
        scores = 0.5 * random.random(shape) ** 4 + 0.5 * blurred
        made.append(
            PatientScores(
                scores.astype(np.float32),
                truth,
                np.ones(shape, bool),
                (2.0, 1.5, 1.0),
                f"p{number}",
            )
        )
    return made


def test_scores_and_intervals_equal_the_benchmarks_own(metric: Any) -> None:
    patients = scans(4)
    for patient in patients:
        metric.add_scan(patient.scores, patient.truth, patient.spacing)
    result = metric.compute()
    rows = evaluate_system("rasalore", patients, Thresholds(), "t2")
    row = next(r for r in rows if r["view"] == "volume" and r["threshold"] == "0.5")
    renamed = {
        "missed_lesions": "missed_lesions_per_patient",
        "invented_lesions": "invented_lesions_per_patient",
    }
    assert result.pop("scans") == 4
    for name, value in result.items():
        base = name.removesuffix("_low").removesuffix("_high")
        assert value == row[renamed.get(base, base) + name[len(base) :]], name
    assert 0 < result["dice"] < 1 and 0.5 < result["average_precision"] < 1


def test_a_perfect_map_scores_one(metric: Any) -> None:
    truth = np.zeros((3, 10, 10))
    truth[1, 2:8, 2:8] = 3  # any label counts as lesion
    metric.add_scan(0.8 * (truth > 0), truth, (1, 1, 2))
    result = metric.compute()
    assert [result[name] for name in ("dice", "lesion_dice", "average_precision", "auroc")] == [
        1
    ] * 4
    assert result["lesion_hd95"] == 0


def test_the_threshold_decides_what_is_predicted(metric: Any) -> None:
    truth = np.zeros((1, 8, 8))
    truth[0, :4] = 1
    for threshold in (0.1, 0.5):
        metric.add_scan(truth * 0.3, truth, threshold=threshold)
    assert metric.compute()["dice"] == pytest.approx((1 + 0) / 2)


def test_what_is_stored_does_not_grow_with_the_voxels(metric: Any, tmp_path: Path) -> None:
    scores = np.round(np.random.default_rng(0).random((40, 128, 128)), 2)
    metric.add_scan(scores, scores > 0.9)
    metric._finalize()
    stored = sum(path.stat().st_size for path in tmp_path.rglob("*.arrow"))
    assert 0 < stored < scores.size / 50


@pytest.mark.parametrize(
    "scores", [np.full((1, 4, 4), 1.2), np.full((1, 4, 4), np.nan), np.ones(4)]
)
def test_scores_that_cannot_be_ranked_are_refused(metric: Any, scores: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be \(S, H, W\) in \[0, 1\]"):
        metric.add_scan(scores, np.zeros_like(scores))


def test_it_brings_the_packages_own_formulas(folder: Path) -> None:
    for module in (metrics, lesion_metrics, intervals):
        ours = Path(str(module.__file__))
        assert (folder / ours.name).read_bytes() == ours.read_bytes()
    assert {path.name for path in SOURCE.iterdir()} < {path.name for path in folder.iterdir()}


def test_another_space_is_published_as_it_is(tmp_path: Path) -> None:
    space = SOURCE.parents[1] / "space_app"
    assert complete_space(space, tmp_path / "out") == space
    assert complete_space(tmp_path, tmp_path / "out") == tmp_path
    assert list(tmp_path.iterdir()) == []
