"""Choose slices of either stage, prepare them for the network, and paint lesions into them.

Stage 1 learns from labels: choose_labelled, prepare_labelled, collate_labelled, paint_labelled.
Stage 2 learns from masks: choose_training, choose_validation, prepare_masked, collate_masked,
paint_healthy.
Both may see whole scans: then a batch holds what `crop_views` returns until lesions are painted,
and "pixel_values" afterwards.
"""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.labels import HEALTHY, UNHEALTHY
from ..data.patient import EACH, LabelledSlice
from ..models.image_processing_rasalore import RasaloreImageProcessor
from ..models.scan_view_rasalore import crop_views
from ..pseudo_masks.table import MaskTable
from ..scans.naming import MODALITIES
from .lesion_recipes import lesion_recipe
from .painted_lesions import SyntheticLesionRecipe, paint_chosen, paint_lesions
from .slice_loader import Batch, Sample
from .work_list import WorkList

OPTIONAL_MASKS = {"sam_masks", "ignored"}  # that some slices have


# --- Stage 1: slices and labels -----------------------------------------------------------------
def choose_labelled(lesions: SyntheticLesionRecipe, work: WorkList) -> WorkList:
    """Return slices with a label; for painted lesions the healthy ones with enough brain."""
    if lesions.share:
        return work.select_rows(work.rows_to_paint(lesions.minimum_brain_area))
    return work.select_labels({HEALTHY, UNHEALTHY})


def prepare_labelled(processor: RasaloreImageProcessor, example: LabelledSlice) -> Sample:
    """Return {"pixel_values" (C, S, S) or the parts of its view, "labels"} of a slice."""
    return {**prepare_image(processor, example), "labels": example.label}


def collate_labelled(samples: list[Sample]) -> Batch:
    """Return a batch of what the samples hold; "labels" are (B,)."""
    return {
        name: torch.stack([torch.as_tensor(sample[name]) for sample in samples])
        for name in samples[0]
    }


def paint_labelled(
    batch: Batch, processor: RasaloreImageProcessor, lesions: SyntheticLesionRecipe, modality: str
) -> Batch:
    """Return the batch, with lesions painted into all but a share of its slices if asked for.

    A slice whose lesion came out empty, under fluid or too small, stays healthy.
    """
    if lesions.share:
        every = torch.ones_like(batch["labels"], dtype=torch.bool)
        target, faint = paint_slices(batch, every, processor, lesions, modality, grey=True)
        lesion = torch.maximum(target, faint).flatten(1).amax(1) > 0
        batch["labels"] = torch.where(lesion, UNHEALTHY, HEALTHY)
    return see_painted(batch, processor)


# --- Stage 2: slices and pseudo-masks -----------------------------------------------------------
def choose_training(
    lesions: SyntheticLesionRecipe, work: WorkList, table: MaskTable | None, seed: int
) -> WorkList:
    """Return slices with a pseudo-mask, and healthy ones with enough brain for a painted lesion.

    As many of both as their shares allow: with twice as many healthy slices as unhealthy ones and
    equal shares, all unhealthy ones are used and half of the healthy ones. An unhealthy slice whose
    pseudo-mask is missing gives its place to a healthy one, so that few masks do not leave few
    slices.

    Raises:
        ValueError: no pseudo-mask, or no slice to paint on.
    """
    if table is None:
        return work.select_rows(work.rows_to_paint(lesions.minimum_brain_area))
    masked = rows_with_mask(work, table)
    if not masked:
        refuse_no_mask(work, "learn from")
    if lesions.share == 0:
        return work.select_rows(masked)
    healthy = work.rows_to_paint(lesions.minimum_brain_area)
    unhealthy = np.count_nonzero(work.label == UNHEALTHY)
    total = min(unhealthy / (1 - lesions.share), len(healthy) / lesions.share)

    def draw(row: int) -> float:  # from its name and the seed: no order of reading changes it
        return random.Random(f"{seed} {work.key(row)}").random()

    chosen = sorted(masked, key=draw)[: round(total * (1 - lesions.share))]
    return work.select_rows(chosen + sorted(healthy, key=draw)[: round(total) - len(chosen)])


def choose_validation(
    lesions: SyntheticLesionRecipe, work: WorkList, table: MaskTable | None
) -> WorkList:
    """Return slices with a pseudo-mask; where there are none, healthy ones to paint lesions on.

    Raises:
        ValueError: no pseudo-mask where none is painted, or no slice to paint on.
    """
    if table is not None:
        if rows := rows_with_mask(work, table):
            return work.select_rows(rows)
        if lesions.share == 0:
            refuse_no_mask(work, "validate on")
    return work.select_rows(work.rows_to_paint(lesions.minimum_brain_area))


def rows_with_mask(work: WorkList, table: MaskTable) -> list[int]:
    """Return the rows of unhealthy slices that the table has."""
    return [
        row
        for row in range(len(work))
        if work.label[row] == UNHEALTHY and work.key(row) in table.rows
    ]


def refuse_no_mask(work: WorkList, purpose: str) -> None:
    """Raise ValueError: no slice of a list has a pseudo-mask."""
    raise ValueError(
        f"no pseudo-mask of {len(set(work.owner))} patients is large enough to {purpose}; lower "
        "minimum_area or the threshold of the masks."
    )


def prepare_masked(
    processor: RasaloreImageProcessor, table: MaskTable | None, size: int, example: LabelledSlice
) -> Sample:
    """Return image, "labels", "healthy", maybe "sam_masks" and "ignored" of a slice.

    "sequence" is the place in `MODALITIES` of what is shown, if that is one of them.

    Args:
        table: pseudo-masks of the unhealthy slices; None where all lesions are painted.
        size: side of the masks in pixels, (size, size).
    """
    sample: dict[str, Any] = prepare_image(processor, example)
    sample["healthy"] = example.label == HEALTHY
    if example.modality in MODALITIES:
        sample["sequence"] = MODALITIES.index(example.modality)
    if table is None or sample["healthy"]:
        return {**sample, "labels": np.zeros((size, size), np.uint8)}
    masks = table[example.patient_id, example.slice_index]
    planes = {"labels": masks.pseudo_mask, "sam_masks": masks.sam_mask, "ignored": masks.ignored}
    for name, plane in planes.items():
        if plane is not None:
            (cropped,) = processor.crop_masks([plane], [example.image], size, [example.seen])
            sample[name] = cropped.numpy()
    return sample


def collate_masked(samples: list[Sample]) -> Batch:
    """Return a batch: images (B, ...), masks (B, size, size), "healthy" (B,) bool.

    A healthy slice has an empty SAM mask where others have one, and nothing ignored.
    """
    batch = {
        name: torch.stack([torch.as_tensor(sample[name]) for sample in samples])
        for name in samples[0].keys() - OPTIONAL_MASKS
    }
    blank = np.zeros_like(samples[0]["labels"])
    for name in OPTIONAL_MASKS:
        if any(name in sample for sample in samples):
            batch[name] = torch.stack([torch.as_tensor(s.get(name, blank)) for s in samples])
    return batch


def paint_healthy(
    batch: Batch, processor: RasaloreImageProcessor, lesions: SyntheticLesionRecipe, modality: str
) -> None:
    """Paint lesions into healthy slices of a batch, in place; the flags are taken out.

    Afterwards the batch holds "pixel_values".

    A share of them stays blank: as it is, with an empty mask.
    """
    healthy, sequence = batch.pop("healthy"), batch.pop("sequence", None)
    if modality == EACH:
        assert sequence is not None  # every slice is of one sequence
        groups = [(MODALITIES[i], healthy & (sequence == i)) for i in range(len(MODALITIES))]
    else:
        groups = [(modality, healthy)]
    for name, rows in groups:
        paint_rows(batch, rows, processor, lesions, name)
    see_painted(batch, processor)


def paint_rows(
    batch: Batch,
    healthy: Tensor,
    processor: RasaloreImageProcessor,
    lesions: SyntheticLesionRecipe,
    modality: str,
) -> None:
    """Paint lesions of one sequence into some slices of a batch, in place; see `paint_healthy`."""
    if healthy.any():
        target, faint = paint_slices(batch, healthy, processor, lesions, modality)
        for name in batch.keys() & {"labels", "sam_masks"}:
            batch[name][healthy] = target
        if "ignored" in batch or faint.any():
            batch.setdefault("ignored", torch.zeros_like(batch["labels"]))[healthy] = faint


# --- Images of both stages ----------------------------------------------------------------------
def prepare_image(processor: RasaloreImageProcessor, example: LabelledSlice) -> Sample:
    """Return {"pixel_values"} of a slice, or what `crop_views` returns where its scan is seen."""
    if processor.see is None:
        return {"pixel_values": processor([example.image])["pixel_values"][0]}
    parts = crop_views(processor.require_views([example.image], [example.seen]), processor.size)
    return {name: part[0] for name, part in parts.items()}


def paint_slices(
    batch: Batch,
    healthy: Tensor,
    processor: RasaloreImageProcessor,
    lesions: SyntheticLesionRecipe,
    modality: str,
    grey: bool = False,
) -> tuple[Tensor, Tensor]:
    """Paint lesions into healthy slices of a batch, in place; return target and faint of them.

    Both are (n, 2 S, 2 S) uint8, as of `PaintedSlices`.

    Args:
        batch: as collated, of slices alone or with their neighbours.
        healthy: which of them, (B,) bool; a share of these stays blank, with an empty mask.
        modality, grey: as for `paint_chosen`.
    """
    if processor.see is not None:
        # Blank ones among them: the painter changes the brightness of all alike.
        recipe = lesion_recipe(modality, blank_share=lesions.blank_share)
        seen = {name: batch[name][healthy] for name in ("relative", "brain", "pixel_mm")}
        slices = paint_lesions(seen["relative"], seen["brain"], seen["pixel_mm"], recipe)
        batch["relative"][healthy] = slices.x
        return slices.target, slices.faint
    pixel_values = batch["pixel_values"]
    drawn = torch.rand(healthy.shape, device=healthy.device) >= lesions.blank_share
    chosen, side = healthy & drawn, 2 * pixel_values.shape[-1]
    planes = torch.zeros(2, len(healthy), side, side, dtype=torch.uint8, device=healthy.device)
    if chosen.any():
        painted = paint_chosen(pixel_values, chosen, processor, modality, grey)
        planes[:, chosen] = torch.stack(painted)
    target, faint = planes[:, healthy]
    return target, faint


def see_painted(batch: Batch, processor: RasaloreImageProcessor) -> Batch:
    """Return the batch with "pixel_values" in place of what they are computed from, in place."""
    if processor.see is not None:
        parts = {name: batch.pop(name) for name in ("relative", "brain", "pixel_mm", "mad")}
        batch["pixel_values"] = processor.to_channels(**parts)
    return batch
