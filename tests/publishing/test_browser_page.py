"""The page without a server is published whole, with networks that say what the package's do."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.prediction.loading import load_model
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.saved_options import complete_options
from modeling_rasalore.publishing.browser_page import SEQUENCES, require_known_way
from modeling_rasalore.publishing.metric_folder import complete_space
from modeling_rasalore.publishing.onnx_export import export_network

SOURCE = Path(__file__).parents[2] / "space_app" / "static"
WHOLE = {"view": "scan", "size": 32, "num_channels": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page as it is published."""
    pytest.importorskip("onnxscript")
    return complete_space(SOURCE, tmp_path_factory.mktemp("published") / "page")


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_a_published_network_gives_the_packages_scores(folder: Path, sequence: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    facts = json.loads((folder / "models" / "models.json").read_text("utf-8"))["models"][sequence]
    model, processor = load_model(modality=sequence, device="cpu")
    path = folder / "models" / facts["file"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels = torch.randn(1, 4, processor.size, processor.size)
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits.sigmoid().numpy()
    (scores,) = session.run(["scores"], {"pixel_values": pixels.numpy()})
    assert scores.shape == expected.shape and np.ptp(expected) > 0.01
    assert np.abs(scores - expected).max() < 1e-4


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_the_page_learns_how_masks_are_made(folder: Path, sequence: str) -> None:
    facts = json.loads((folder / "models" / "models.json").read_text("utf-8"))["models"][sequence]
    model, processor = load_model(modality=sequence, device="cpu")
    options = complete_options(PredictionOptions(), (), model)
    for name in ("smooth_mm", "free_map", "smallest_ml", "threshold"):
        assert facts[name] == getattr(options, name)
    assert (facts["size"], facts["neighbour_mm"]) == (processor.size, processor.neighbour_mm)
    presets = {f"{preset['rate']:g}": preset["threshold"] for preset in facts["presets"]}
    assert presets == options.thresholds_at_rates and facts["threshold"] in presets.values()


def test_every_file_that_the_page_names_is_there(folder: Path) -> None:
    page = (folder / "index.html").read_text("utf-8")
    named = {part.split('"')[0] for part in page.replace('href="', 'src="').split('src="')[1:]}
    named = {name for name in named if not name.startswith("data:")}
    named |= {"browser/viewer.html", "example/synthetic_t2.nii.gz", "onnxruntime/LICENSE"}
    assert {name for name in named if not (folder / name).is_file()} == set()
    assert "http" not in page  # nothing is loaded from elsewhere
    shared = SOURCE.parent / "browser" / "viewer.js"
    assert (folder / "browser" / "viewer.js").read_bytes() == shared.read_bytes()


@pytest.mark.parametrize(
    ("fields", "changed", "sequence"),
    [
        ({"size": 32}, {}, "t2"),  # slices by themselves
        ({**WHOLE, "num_channels": 1, "channels": ["this"]}, {}, "t2"),
        ({**WHOLE, "image_mean": [0.3] * 4, "image_std": [0.2] * 4}, {}, "t2"),
        (WHOLE, {"flips": True}, "t2"),
        (WHOLE, {}, "t1"),  # lesions are dark there
    ],
)
def test_a_model_that_the_page_cannot_prepare_for_is_refused(
    fields: dict[str, Any], changed: dict[str, Any], sequence: str
) -> None:
    options = PredictionOptions()
    require_known_way("t2", RasaloreImageProcessor(**WHOLE), options)
    with pytest.raises(ValueError, match="publish it as a Space with a server"):
        require_known_way(sequence, RasaloreImageProcessor(**fields), replace(options, **changed))


def test_a_network_is_written_to_an_onnx_file_only(tmp_path: Path) -> None:
    model = RasaloreModel(RasaloreConfig.preset("tiny")).eval()
    with pytest.raises(ValueError, match=r"ending in \.onnx"):
        export_network(model, tmp_path / "network.pt")
