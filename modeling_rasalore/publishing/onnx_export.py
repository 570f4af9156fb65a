"""Export stage 2 as one ONNX graph with its pre- and post-processing: a slice in, scores out.

A network that sees whole scans takes the scan, its spacing, and which of its slices to score. The
scan is measured anew for every slice: networks fold weights of each slice's own, so a graph of any
number of slices cannot be recorded.

Cropping to the brain depends on the data, which a graph of fixed shapes cannot follow. But crop and
resize are linear along each axis, so both become products with two matrices of weights whose
entries are computed from the box; the same goes for putting the map back into the slice.

The network alone is exported too, for whoever measures a scan once and prepares its slices.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import replace_file
from ..models.image_processing_rasalore import RasaloreImageProcessor
from ..models.scan_view_rasalore import BRIGHTEST, LEAST_MAD, MAD_TO_STD, MARGIN
from .graph_precision import check_precision, network_of_precision, quantise

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


class ScanToScores(nn.Module):
    """A slice of a scan (S, H, W), background 0, -> its anomaly scores (H, W) in [0, 1].

    1. Measure the scan as `measure_scan` does; crop, resize and scale the slice and its neighbours.
    2. The model, sigmoid.
    3. Resize into the square, 0 outside the brain.
    """

    def __init__(self, model: Any, processor: RasaloreImageProcessor):
        super().__init__()
        self.model, self.processor = model, processor

    def forward(self, scan: Tensor, spacing: Tensor, index: Tensor) -> Tensor:
        """Return scores of slice `index` (1,) int64; `spacing` is (slice, row, column) in mm."""
        brain, size = scan > 0, self.processor.size
        median = middle(scan, brain)
        spread = middle((scan / median - 1).abs(), brain)
        box, half_side = self.square(brain, spacing)
        step = (self.processor.neighbour_mm / spacing[0]).round().clamp(min=1).to(index.dtype)
        below, above = (index - step).clamp(min=0), (index + step).clamp(max=scan.shape[0] - 1)
        planes = torch.stack([scan[below], scan[index], scan[above]], dim=1)  # (1, 3, H, W)
        margin = scan.shape[1] + scan.shape[2]  # how far the square may reach beyond the picture
        rows, columns = (
            shrink_weights(start, stop, length, size, margin)
            for (start, stop), length in zip(box, scan.shape[1:], strict=True)
        )
        share = rows @ (planes > 0).float() @ columns.T
        relative = rows @ (planes / median).clamp(max=BRIGHTEST) @ columns.T
        inside = share >= 0.5
        pixel_values = self.processor.to_channels(
            torch.where(inside, relative / share.clamp(min=0.5), 0.0),
            inside,
            (2 * half_side / size)[None],
            (MAD_TO_STD * spread).clamp(min=LEAST_MAD)[None],
        )
        scores = self.model(pixel_values=pixel_values).logits[0, 0].sigmoid()
        rows, columns = (
            place_weights(start, stop, length, scores.shape[-1])
            for (start, stop), length in zip(box, scan.shape[1:], strict=True)
        )
        placed = (rows @ scores @ columns.T).clamp(scores.min(), scores.max())
        in_box = (rows.sum(1) > 0)[:, None] & (columns.sum(1) > 0)
        return torch.where(brain[index][0] & in_box, placed, 0.0)

    def square(self, brain: Tensor, spacing: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Return first and last + 1 row, then column, of the square, and half its side in mm."""
        top, bottom = span(brain.any(2).any(0))
        left, right = span(brain.any(1).any(0))
        counts = brain.float().sum((0, 1))
        places = torch.arange(counts.shape[0], dtype=torch.float32) + 0.5
        midline = (counts * places).sum() / counts.sum().clamp(min=1)
        extents = (
            (bottom - top) / 2 * spacing[1],
            (midline - left) * spacing[2],
            (right - midline) * spacing[2],
        )
        half_side = MARGIN * torch.stack(extents).max()
        box = []
        for centre, side in (((top + bottom) / 2, spacing[1]), (midline, spacing[2])):
            length = (2 * half_side / side).round()
            start = (centre - length / 2).round()
            box.append((start, start + length))
        return box, half_side


class PixelsToScores(nn.Module):
    """`pixel_values` (1, C, S, S) of a processor -> anomaly scores (1, 1, 2 S, 2 S) in [0, 1]."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values=pixel_values).logits.sigmoid()


def middle(values: Tensor, inside: Tensor) -> Tensor:
    """Return the median inside; of two middle values the lower.

    Halving the range takes a graph 30 passes over a scan, and sorting it far more.
    """
    rank = (inside.sum() + 1) // 2
    low, high = torch.zeros(()), torch.where(inside, values, 0.0).max()
    for _ in range(30):
        centre = (low + high) / 2
        enough = ((values <= centre) & inside).sum() >= rank
        low, high = torch.where(enough, low, centre), torch.where(enough, centre, high)
    return high


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


def shrink_weights(start: Tensor, stop: Tensor, length: int, size: int, margin: int = 0) -> Tensor:
    """Return (size, length): the antialiased bilinear resize of [start, stop) to `size` pixels.

    Up to `margin` pixels beyond the ends of `length` count as zeros.
    """
    scale = (stop - start) / size
    centres = start + (torch.arange(size, dtype=torch.float32) + 0.5) * scale
    pixels = torch.arange(length + 2 * margin, dtype=torch.float32) - margin
    inside = (pixels >= start) & (pixels < stop)
    weights = triangles(centres, pixels, scale) * inside / _total(centres, pixels, scale, inside)
    return weights[:, margin : margin + length]


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


def export_onnx(model: Any, processor: Any, path: Path, precision: str = "float32") -> Path:
    """Return `path`, an ONNX file with input `slice` (H, W) and output `scores` (H, W), float32.

    Of a network that sees whole scans inputs are `scan` (S, H, W) and `spacing` (slice, row, column
    in mm), float32, and `index` (1,) int64 of the slice to score. Every size will do. What a whole
    scan says of its background and of voxels that are too bright is not known to it: slices of
    `zero_background` give the scores of `predict_volume`.

    Args:
        model, processor: of stage 2.
        path: a name ending in .onnx.
        precision: one of GRAPH_PRECISIONS, of the network alone.

    Raises:
        ValueError: another ending or precision, or a model of several sequences.
        ImportError: the extra [onnx] is not installed.
    """
    check_precision(precision)
    if model.config.num_channels != processor.num_channels:
        raise ValueError(
            f"model and processor must agree in channels, got {model.config.num_channels} and "
            f"{processor.num_channels}."
        )
    write_graph(*describe_graph(network_of_precision(model, precision), processor), path)
    return quantise(path) if precision == "int8" else path


def export_network(model: Any, path: Path) -> Path:
    """Return `path`, an ONNX file of the network alone, for slices that are prepared elsewhere.

    Its input is `pixel_values` (1, C, S, S), its output `scores` (1, 1, 2 S, 2 S), both float32.

    Raises:
        ValueError: another ending.
        ImportError: the extra [onnx] is not installed.
    """
    config = model.config
    example = torch.rand(1, config.num_channels, config.image_size, config.image_size)
    graph = PixelsToScores(deepcopy(model).float())
    return write_graph(graph, (example,), ["pixel_values"], ({},), path)


def write_graph(
    graph: nn.Module,
    example: tuple[Tensor, ...],
    names: list[str],
    shapes: tuple[dict[int, Any], ...],
    path: Path,
) -> Path:
    """Return `path` after recording a graph with one output, `scores`.

    Args:
        graph: what is recorded.
        example: inputs to record it with.
        names: of the inputs.
        shapes: which sizes of each input vary.
        path: a name ending in .onnx.

    Raises:
        ValueError: another ending.
        ImportError: the extra [onnx] is not installed.
    """
    if path.suffix != ".onnx":
        raise ValueError(f"an ONNX file is written to a name ending in .onnx, got {path}.")
    try:
        import onnxruntime  # noqa: F401 - told before minutes of work
        import onnxscript  # noqa: F401 - the exporter's own message names no extra of ours
    except ImportError as error:
        raise ImportError(
            "export needs the extra [onnx]; run pip install 'rasalore[onnx]'."
        ) from error
    with torch.no_grad():
        program = torch.onnx.export(
            graph.eval(),
            example,
            input_names=names,
            output_names=["scores"],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    return replace_file(path, lambda draft: program.save(draft, external_data=False))


def describe_graph(
    model: Any, processor: RasaloreImageProcessor
) -> tuple[nn.Module, tuple[Tensor, ...], list[str], tuple[dict[int, Any], ...]]:
    """Return what is exported: graph, inputs to record it with, their names, sizes that vary."""
    rows, columns = torch.export.Dim("rows", min=2), torch.export.Dim("columns", min=2)
    if processor.see is None:
        example: tuple[Tensor, ...] = (torch.rand(EXAMPLE_SHAPE),)
        return SliceToScores(model, processor), example, ["slice"], ({0: rows, 1: columns},)
    example = torch.rand(9, *EXAMPLE_SHAPE), torch.tensor([3.0, 1.0, 1.0]), torch.tensor([4])
    sides = {0: torch.export.Dim("slices", min=2), 1: rows, 2: columns}
    return ScanToScores(model, processor), example, ["scan", "spacing", "index"], (sides, {}, {})
