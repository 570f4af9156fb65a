"""Export stage 2 as one ONNX graph with its pre- and post-processing: a slice in, scores out.

Cropping to the brain depends on the data, which a graph of fixed shapes cannot follow. But crop and
resize are linear along each axis, so both become products with two matrices of weights whose
entries are computed from the box; the same goes for putting the map back into the slice.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import replace_file
from ..models.image_processing_rasalore import RasaloreImageProcessor

OPSET = 18
EXAMPLE_SHAPE = (60, 50)  # of the slice the graph is recorded with; any other fits afterwards


class SliceToScores(nn.Module):
    """A slice (H, W), background 0, -> its anomaly scores (H, W) in [0, 1], 0 in the background.

    1. Scale to [0, 1], find the brain's box, raise to gamma, crop and resize, normalise.
    2. The model, sigmoid.
    3. Resize into the box, 0 outside the brain.
    """

    def __init__(self, model: Any, processor: RasaloreImageProcessor):
        super().__init__()
        self.model, self.processor = model, processor

    def forward(self, image: Tensor) -> Tensor:
        unit = unit_range(image)
        box = self.box(unit)
        rows, columns = (
            shrink_weights(start, stop, length, self.processor.size)
            for (start, stop), length in zip(box, image.shape, strict=True)
        )
        crop = rows @ (unit**self.processor.gamma * self.processor.rescale_factor) @ columns.T
        scores = self.model(pixel_values=self.normalise(crop)).logits[0, 0].sigmoid()
        rows, columns = (
            place_weights(start, stop, length, scores.shape[0])
            for (start, stop), length in zip(box, image.shape, strict=True)
        )
        placed = (rows @ scores @ columns.T).clamp(scores.min(), scores.max())
        in_box = (rows.sum(1) > 0)[:, None] & (columns.sum(1) > 0)
        return torch.where((image > 0) & in_box, placed, 0.0)

    def box(self, unit: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return first and last + 1 row, then column, of the pixels above the brain's threshold."""
        inside = unit > (self.processor.brain_threshold if self.processor.crop_to_brain else -1)
        return [span(inside.any(1)), span(inside.any(0))]

    def normalise(self, crop: Tensor) -> Tensor:
        """(size, size) -> (1, C, size, size) with the backbone's mean and standard deviation."""
        mean, std = (
            torch.tensor(values)[:, None, None]
            for values in (self.processor.image_mean or [0.0], self.processor.image_std or [1.0])
        )
        return ((crop.expand(self.processor.num_channels, -1, -1) - mean) / std)[None]


def unit_range(image: Tensor) -> Tensor:
    """Scale an image to [0, 1]; a constant one becomes 0."""
    spread = image.max() - image.min()
    return (image - image.min()) / torch.where(spread > 0, spread, 1.0)


def span(inside: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first index that is true and the last + 1, as floats; all indices for none."""
    indices = torch.arange(inside.shape[0], device=inside.device, dtype=torch.float32)
    start = torch.where(inside, indices, indices.max()).min()
    stop = torch.where(inside, indices + 1, 0.0).max()
    is_any = inside.any()
    return torch.where(is_any, start, 0.0), torch.where(is_any, stop, indices.max() + 1)


def shrink_weights(start: Tensor, stop: Tensor, length: int, size: int) -> Tensor:
    """Return (size, length): the antialiased bilinear resize of [start, stop) to `size` pixels."""
    scale = (stop - start) / size
    centres = start + (torch.arange(size, dtype=torch.float32) + 0.5) * scale
    pixels = torch.arange(length, dtype=torch.float32)
    inside = (pixels >= start) & (pixels < stop)
    return triangles(centres, pixels, scale) * inside / _total(centres, pixels, scale, inside)


def place_weights(start: Tensor, stop: Tensor, length: int, size: int) -> Tensor:
    """Return (length, size): `size` pixels resized into [start, stop), rows outside being 0."""
    scale = size / (stop - start)
    pixels = torch.arange(length, dtype=torch.float32)
    inside = (pixels >= start) & (pixels < stop)
    centres = (pixels - start + 0.5) * scale
    sources = torch.arange(size, dtype=torch.float32)
    every = torch.ones(size, dtype=torch.bool)
    weights = triangles(centres, sources, scale) / _total(centres, sources, scale, every)
    return torch.where(inside[:, None], weights, 0.0)


def triangles(centres: Tensor, pixels: Tensor, scale: Tensor) -> Tensor:
    """Return each pixel's weight for each centre: 1 at the centre, 0 a pixel or `scale` away."""
    distance = (pixels + 0.5 - centres[:, None]).abs() / scale.clamp(min=1)
    return (1 - distance).clamp(min=0)


def _total(centres: Tensor, pixels: Tensor, scale: Tensor, inside: Tensor) -> Tensor:
    total = (triangles(centres, pixels, scale) * inside).sum(1, keepdim=True)
    return torch.where(total > 0, total, 1.0)


def export_onnx(model: Any, processor: Any, path: Path) -> Path:
    """Return `path`, an ONNX file with input `slice` (H, W) and output `scores` (H, W), float32.

    Every H and W will do. What a whole scan says (its background, voxels that are too bright) is
    not known to it: slices of `zero_background` give the scores of `predict_volume`.

    Raises:
        ValueError: another ending, or a model of several sequences.
        ImportError: the extra [onnx] is not installed.
    """
    if path.suffix != ".onnx":
        raise ValueError(f"an ONNX file is written to a name ending in .onnx, got {path}.")
    if model.config.num_channels != processor.num_channels:
        raise ValueError(
            f"model and processor must agree in channels, got {model.config.num_channels} and "
            f"{processor.num_channels}."
        )
    try:
        import onnxscript  # noqa: F401 - the exporter's own message names no extra of ours
    except ImportError as error:
        raise ImportError(
            "export needs the extra [onnx]; run pip install 'rasalore[onnx]'."
        ) from error
    graph = SliceToScores(deepcopy(model).float(), processor).eval()
    sides = {0: torch.export.Dim("rows", min=2), 1: torch.export.Dim("columns", min=2)}
    with torch.no_grad():
        program = torch.onnx.export(
            graph,
            (torch.rand(EXAMPLE_SHAPE),),
            input_names=["slice"],
            output_names=["scores"],
            dynamic_shapes=(sides,),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    return replace_file(path, lambda draft: program.save(draft, external_data=False))
