"""The ONNX graph says what the package says, for slices of any size, without the package."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.prediction.volume import predict_slices
from modeling_rasalore.publishing.graph_precision import compare_graph
from modeling_rasalore.publishing.onnx_export import ScanToScores, SliceToScores, export_onnx

AGREEMENT = 1e-4
FIELDS: dict[str, dict[str, Any]] = {
    "stage 2": {},
    "normalised": {"image_mean": [0.2], "image_std": [0.3], "gamma": 1.0},
    "rescaled, uncropped": {"rescale_factor": 255.0, "crop_to_brain": False},
}


def make(**fields: Any) -> tuple[RasaloreModel, RasaloreImageProcessor]:
    torch.manual_seed(0)
    config = RasaloreConfig.preset("tiny", initializer_range=0.2)
    return RasaloreModel(config).eval(), RasaloreImageProcessor(size=config.image_size, **fields)


def slices() -> list[np.ndarray]:
    """Brains larger and smaller than the model's input, at borders, of one pixel, and none."""
    rng = np.random.default_rng(0)
    images = [np.zeros(shape, np.float32) for shape in ((40, 32), (240, 200), (64, 64), (33, 21))]
    for image in images:
        height, width = image.shape
        image[height // 6 : height - height // 5, width // 7 :] = rng.uniform(5, 200)
        image[image > 0] *= rng.uniform(0.1, 1, np.count_nonzero(image)).astype(np.float32)
    whole = rng.uniform(1, 9, (50, 70)).astype(np.float32)
    dot = np.zeros((20, 31), np.float32)
    dot[4, 30] = 3
    return [*images, whole, dot, np.zeros((17, 18), np.float32)]


@pytest.mark.parametrize("case", FIELDS)
def test_the_graphs_formulas_are_the_processors(case: str) -> None:
    model, processor = make(**FIELDS[case])
    graph = SliceToScores(model, processor)
    for image, expected in zip(slices(), predict_slices(model, processor, slices()), strict=True):
        with torch.no_grad():
            scores = graph(torch.from_numpy(image)).numpy()
        assert np.abs(scores - expected).max() < AGREEMENT
        assert np.array_equal(scores > 0, expected > 0)


def test_the_exported_file_agrees_with_torch_on_slices_of_any_size(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, processor = make()
    path = export_onnx(model, processor, tmp_path / "new" / "rasalore.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = predict_slices(model, processor, slices())
    assert max(scores.max() for scores in expected) > 0.4
    for image, scores in zip(slices(), expected, strict=True):
        (found,) = session.run(["scores"], {"slice": image})
        assert np.abs(found - scores).max() < AGREEMENT
    assert [file.name for file in path.parent.iterdir()] == ["rasalore.onnx"]


@pytest.mark.parametrize(
    ("precision", "bytes_share", "difference"), [("float16", 0.9, 5e-3), ("int8", 0.95, 0.2)]
)
def test_a_graph_of_fewer_bits_is_smaller_and_tells_how_its_scores_differ(
    precision: str, bytes_share: float, difference: float, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, processor = make()
    whole = export_onnx(model, processor, tmp_path / "whole.onnx")
    path = export_onnx(model, processor, tmp_path / "small.onnx", precision)
    assert path.stat().st_size < bytes_share * whole.stat().st_size
    exact, rounded = (compare_graph(file, model, processor) for file in (whole, path))
    assert exact.difference < 1e-5 < rounded.difference < difference
    assert exact.dice[1] == rounded.dice[1]  # of the network, on the same slices
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert "scores differ from the network's by at most" in str(rounded)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["small.onnx", "whole.onnx"]


def test_a_precision_that_a_graph_cannot_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be float32, float16 or int8, got bfloat16"):
        export_onnx(*make(), tmp_path / "model.onnx", "bfloat16")


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ending in \.onnx"):
        export_onnx(*make(), tmp_path / "model.pt")


# --- Networks that see whole scans --------------------------------------------------------------
def make_seeing(**fields: Any) -> tuple[RasaloreModel, RasaloreImageProcessor]:
    torch.manual_seed(0)
    config = RasaloreConfig.preset("base", image_size=32, base_channels=4, initializer_range=0.3)
    return RasaloreModel(config).eval(), RasaloreImageProcessor(32, 4, view="scan", **fields)


def scans() -> list[tuple[np.ndarray, tuple[float, float, float]]]:
    """Scans larger and smaller than the model's input, at a border, with oblong pixels."""
    rng = np.random.default_rng(0)
    found = []
    for shape, shift, spacing in (
        ((9, 60, 50), 0, (3.0, 1.0, 1.0)),
        ((5, 33, 21), 6, (8.0, 2.0, 2.0)),
        ((12, 100, 40), -9, (2.0, 0.7, 1.4)),
    ):
        places, centre = np.indices(shape), np.array(shape) / 2 + (0, 0, shift)
        radii = np.array([shape[0] / 1.5, shape[1] / 2.4, shape[2] / 2.6])
        inside = (((places - centre[:, None, None, None]) / radii[:, None, None, None]) ** 2).sum(0)
        scan = np.where(inside < 1, rng.uniform(50, 400, shape), 0).astype(np.float32)
        found.append((scan, spacing))
    return found


@pytest.mark.parametrize("fields", [{}, {"image_mean": [0.3] * 4, "image_std": [0.2] * 4}])
def test_the_graph_of_a_scan_says_what_the_package_says(fields: dict[str, Any]) -> None:
    model, processor = make_seeing(**fields)
    for scan, spacing in scans():
        views = list(processor.see_scan(scan, spacing))
        expected = np.stack(predict_slices(model, processor, list(scan), views=views))
        graph = ScanToScores(model, processor)
        given = torch.from_numpy(scan), torch.tensor(spacing)
        with torch.no_grad():
            scores = [graph(*given, torch.tensor([index])).numpy() for index in range(len(scan))]
        assert expected.max() > 0.2 and np.abs(np.stack(scores) - expected).max() < AGREEMENT


def test_the_exported_file_agrees_on_scans_of_any_size(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, processor = make_seeing()
    path = export_onnx(model, processor, tmp_path / "base.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for scan, spacing in scans():
        views = list(processor.see_scan(scan, spacing))
        expected = np.stack(predict_slices(model, processor, list(scan), views=views))
        given = {"scan": scan, "spacing": np.array(spacing, np.float32)}
        for index in (0, 3):
            (found,) = session.run(["scores"], {**given, "index": np.array([index])})
            assert np.abs(found - expected[index]).max() < AGREEMENT
