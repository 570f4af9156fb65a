"""The ONNX graph says what the package says, for slices of any size, without the package."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.prediction.volume import predict_slices
from modeling_rasalore.publishing.onnx_export import SliceToScores, export_onnx

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


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ending in \.onnx"):
        export_onnx(*make(), tmp_path / "model.pt")
