"""Give an exported network fewer bits, and measure on a synthetic scan what that changes.

float16 halves a file, and is what graphics cards multiply fastest. int8 stores weights in a quarter
of the space and rounds activations as they come; processors without instructions for it are slower
with it than in float32. What comes before and after the network stays in float32.
"""

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.phantoms import make_phantom
from ..evaluation.metrics import average_precision, dice
from ..files import replace_file
from ..models.image_processing_rasalore import RasaloreImageProcessor
from ..prediction.volume import predict_slices

GRAPH_PRECISIONS = ("float32", "float16", "int8")
QUIET = 3  # of a runtime: errors alone, not what it cannot compute beforehand
PHANTOM_SEED = 7  # of the synthetic patient that a graph is compared on
COMPARED = 12  # of its slices, evenly from those that show brain


class HalfNetwork(nn.Module):
    """A network whose weights and operations are float16, between float32 pixels and logits."""

    def __init__(self, model: Any):
        super().__init__()
        self.config = model.config
        self.model = deepcopy(model).half()

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        """Return `logits` of a network's `pixel_values` (1, C, S, S)."""
        return SimpleNamespace(logits=self.model(pixel_values=pixel_values.half()).logits.float())


class GraphScores(NamedTuple):
    """What a graph scores beside the network that it was made from, on one synthetic scan.

    Attributes:
        difference: largest between two scores of a pixel.
        average_precision: of graph and network, in [0, 1].
        dice: of graph and network at a score of 0.5.
    """

    difference: float
    average_precision: tuple[float, float]
    dice: tuple[float, float]

    def __str__(self) -> str:
        """Return a sentence for whoever exports."""
        (graph, network), (drawn, expected) = self.average_precision, self.dice
        return (
            f"on {COMPARED} slices of a synthetic patient its scores differ from the network's by "
            f"at most {self.difference:.2g}; average precision {graph:.1%} and {network:.1%}, Dice "
            f"at 0.5 {drawn:.1%} and {expected:.1%}"
        )


def check_precision(precision: str) -> None:
    """Raise ValueError for a word that is no precision of a graph."""
    if precision not in GRAPH_PRECISIONS:
        raise ValueError(f"--precision must be float32, float16 or int8, got {precision}.")


def network_of_precision(model: Any, precision: str) -> Any:
    """Return a network in the floats that a graph of this precision is recorded in."""
    return HalfNetwork(model) if precision == "float16" else deepcopy(model).float()


def quantise(path: Path) -> Path:
    """Store the weights of a graph as int8, each scaled by its output channel; return `path`."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = {"weight_type": QuantType.QInt8, "per_channel": True}
    return replace_file(path, lambda draft: quantize_dynamic(path, draft, **options))


def compare_graph(path: Path, model: Any, processor: RasaloreImageProcessor) -> GraphScores:
    """Return what the graph of a model scores, and what the model does, on a synthetic patient.

    Args:
        path: as `export_onnx` writes it.
        model: what it was recorded from, in float32.
        processor: of the model.
    """
    scan, spacing, truth = synthetic_scan(getattr(model.config, "modality", None) or "t2")
    indices = spread_indices(scan)
    views = list(processor.see_scan(scan, spacing)) if processor.see else None
    expected = np.stack(
        predict_slices(
            model,
            processor,
            [scan[index] for index in indices],
            views=views and [views[index] for index in indices],
        )
    )
    scores = run_graph(path, scan, spacing, indices)
    masks = truth[indices]
    return GraphScores(
        float(np.abs(scores - expected).max()),
        (average_precision(scores, masks), average_precision(expected, masks)),
        (dice(scores > 0.5, masks), dice(expected > 0.5, masks)),
    )


def synthetic_scan(
    modality: str,
) -> tuple[NDArray[np.float32], tuple[float, float, float], NDArray[np.bool_]]:
    """Return slices (S, H, W), mm between slices, rows and columns, and where the tumour is."""
    phantom = make_phantom(PHANTOM_SEED)
    axes = (2, 1, 0)  # an LPS grid: slices, rows from front to back, columns
    spacing = np.abs(np.diag(phantom.affine))[list(axes)]
    scan = np.ascontiguousarray(phantom.images[modality].transpose(axes))
    return scan, tuple(spacing.tolist()), phantom.mask.transpose(axes) > 0


def spread_indices(scan: NDArray[np.float32]) -> list[int]:
    """Return the indices of `COMPARED` slices that show brain, from the first to the last."""
    shown = np.flatnonzero((scan > 0).any((1, 2)))
    chosen = np.linspace(0, len(shown) - 1, COMPARED).astype(int)
    return [int(index) for index in shown[chosen]]


def run_graph(
    path: Path,
    scan: NDArray[np.float32],
    spacing: tuple[float, float, float],
    indices: list[int],
) -> NDArray[np.float32]:
    """Return the scores (N, H, W) that an exported graph gives slices of a scan (S, H, W)."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.log_severity_level = QUIET
    session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    if [given.name for given in session.get_inputs()] == ["slice"]:
        inputs = [{"slice": scan[index]} for index in indices]
    else:
        whole = {"scan": scan, "spacing": np.array(spacing, np.float32)}
        inputs = [whole | {"index": np.array([index])} for index in indices]
    return np.stack([session.run(["scores"], given)[0] for given in inputs])
