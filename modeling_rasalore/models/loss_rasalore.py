"""Compute the losses of stage 2, one function per formula (poster, "Training Loss Functions").

Every function works on a whole batch on the device of its arguments and returns one value per
sample, shape (B,); `B, ...` are maps or point sets of any shape. None returns NaN, whatever is
empty, full or equal.

`ignored` is 1 where nobody knows what is right, and None where everything is known. Every sum, mean
and blur is taken over the rest: what is predicted there, and what masks say there, changes neither
loss nor gradient.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTHING = 1e-7  # keeps the Dice of two empty maps at 1
TVERSKY_SMOOTHING = 1e-6
TVERSKY_DELTA = 0.3  # weight of false negatives; false positives weigh 1 - delta
EL_EXPONENT = 0.3
EL_MAXIMUM = 2.0
# Below this distance from 1 the exponential-logarithmic loss continues as a straight line: the
# derivative of (-ln x)^0.3 is infinite at x = 1.
EL_LINEAR_BELOW = 1e-4
# Of the Dice term beside a cross-entropy that is a mean over the frame. About half the frame is
# brain, where alone the cross-entropy is not 0.
DICE_SHARE = 0.25


def soft_dice(prediction: Tensor, target: Tensor) -> Tensor:
    """Soft Dice coefficient of maps in [0, 1], (B, ...) -> (B,)."""
    prediction, target = prediction.flatten(1), target.flatten(1)
    return dice_of_sums(overlap(prediction, target), prediction.sum(1), target.sum(1))


def dice_of_sums(overlapping: Tensor, predicted: Tensor, targeted: Tensor) -> Tensor:
    """Soft Dice coefficient from the sums of product, prediction and target, each (B,)."""
    return (2 * overlapping + SMOOTHING) / (predicted + targeted + SMOOTHING)


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Sum of the product of maps, (B, ...) -> (B,)."""
    return (first * second).flatten(1).sum(1)


def leave_out(values: Tensor, ignored: Tensor | None) -> Tensor:
    """Values (B, ...) with 0 where they are ignored, so that they add nothing to a sum."""
    return values if ignored is None else values * (1 - ignored)


def tversky(prediction: Tensor, target: Tensor) -> Tensor:
    """Tversky index of maps in [0, 1], (B, ...) -> (B,); false positives weigh 0.7."""
    prediction, target = prediction.flatten(1), target.flatten(1)
    true_positive = overlap(prediction, target)
    false_negative = target.sum(1) - true_positive
    false_positive = prediction.sum(1) - true_positive
    denominator = (
        true_positive
        + TVERSKY_DELTA * false_negative
        + (1 - TVERSKY_DELTA) * false_positive
        + TVERSKY_SMOOTHING
    )
    return true_positive / denominator


def exponential_logarithmic(score: Tensor) -> Tensor:
    """EL(x) = min((-ln x)^0.3, 2) of an overlap score in [0, 1], with a finite gradient at 1."""
    negative_log = -torch.log(score.clamp(min=1e-30, max=1.0))
    curved = negative_log.clamp(min=EL_LINEAR_BELOW) ** EL_EXPONENT
    straight = negative_log * EL_LINEAR_BELOW ** (EL_EXPONENT - 1)
    value = torch.where(negative_log < EL_LINEAR_BELOW, straight, curved)
    return value.clamp(max=EL_MAXIMUM)


def el_dice(prediction: Tensor, target: Tensor) -> Tensor:
    """Exponential-logarithmic Dice loss, (B, ...) -> (B,)."""
    return exponential_logarithmic(soft_dice(prediction, target))


def el_tversky(prediction: Tensor, target: Tensor) -> Tensor:
    """Exponential-logarithmic Tversky loss, (B, ...) -> (B,)."""
    return exponential_logarithmic(tversky(prediction, target))


OVERLAP_LOSSES = {"el_dice": el_dice, "el_tversky": el_tversky}


def gaussian_kernel(sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Normalised Gaussian of standard deviation `sigma` px, cut at 4 sigma, (2 r + 1,)."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=device, dtype=dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return kernel / kernel.sum()


def blur_matrix(size: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Matrix (size, size) that blurs a line with a Gaussian and a reflecting border.

    Reflection repeats the edge pixel (d c b a | a b c d | d c b a), as scipy.ndimage does.
    """
    kernel = gaussian_kernel(sigma, device, dtype)
    radius = len(kernel) // 2
    positions = torch.arange(size, device=device)[:, None] + torch.arange(
        -radius, radius + 1, device=device
    )
    folded = positions % (2 * size)
    source = torch.where(folded >= size, 2 * size - 1 - folded, folded)
    matrix = torch.zeros(size, size, device=device, dtype=dtype)
    return matrix.scatter_add_(1, source, kernel.expand(size, -1))


def blur(masks: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of masks (B, 1, H, W), `sigma` in pixels.

    It is separable and its border linear, so it is two products with a banded matrix.
    """
    rows, columns = (
        blur_matrix(side, sigma, masks.device, masks.dtype) for side in masks.shape[-2:]
    )
    return rows @ masks @ columns.T


@torch.no_grad()
def normalised_blur(masks: Tensor, sigma: float, ignored: Tensor | None = None) -> Tensor:
    """Gaussian blur G of masks (B, 1, H, W), each divided by its own maximum; without gradient.

    An empty mask stays empty. A blur of 0 in place of what is ignored would darken the pixels
    around it, so each pixel is the weighted mean of the known ones near it (normalised convolution,
    Knutsson and Westin 1993), and the maximum is that of known pixels.
    """
    smallest = torch.finfo(masks.dtype).tiny
    blurred = blur(leave_out(masks, ignored), sigma)
    if ignored is not None:
        blurred = leave_out(blurred / blur(1 - ignored, sigma).clamp(min=smallest), ignored)
    maximum = blurred.amax(dim=(-2, -1), keepdim=True)
    return blurred.div_(maximum.clamp(min=smallest))


def decoder_loss(
    scores: Tensor,
    pseudo_mask: Tensor,
    sam_mask: Tensor | None,
    overlap_loss: str,
    false_positive_weight: float,
    background_weight: float,
    sam_weight: float,
    foreground_sigma: float,
    background_sigma: float,
    ignored: Tensor | None = None,
) -> Tensor:
    """Decoder loss L_Dec per sample, (B,).

    The targets are blurred in every step, not once per slice: every published recipe turns its
    slices by an angle of their own, and the blur of what a turn cuts off or lets in is not the
    turned blur. Three blurs take a thousandth of a training step.

    Args:
        scores: predicted probabilities P, (B, 1, H, W).
        pseudo_mask: M_DDPT of stage 1, 0 or 1, (B, 1, H, W).
        sam_mask: M_SAM, same shape, or None where no prompted segmenter was used.
        overlap_loss: "el_dice" (poster) or "el_tversky" (released) for the foreground terms.
        foreground_sigma, background_sigma: blur in pixels of these maps.
        ignored: same shape as the masks, or None.
    """
    foreground_loss = OVERLAP_LOSSES[overlap_loss]
    scores, pseudo_mask = leave_out(scores, ignored), leave_out(pseudo_mask, ignored)
    background = leave_out(1 - pseudo_mask, ignored)
    centre = normalised_blur(pseudo_mask, foreground_sigma, ignored).mul_(pseudo_mask)
    loss = where_not_empty(foreground_loss(scores, centre), centre)
    if sam_mask is not None and sam_weight:
        sam_mask = leave_out(sam_mask, ignored)
        blurred = normalised_blur(sam_mask, foreground_sigma, ignored)
        border = torch.addcmul(sam_mask, sam_mask, blurred, value=-1)  # M (1 - G(M))
        agreement = sam_weight * soft_dice(sam_mask, pseudo_mask)  # gamma
        # Two empty masks agree perfectly, but there is nothing to segment.
        loss = loss + agreement * where_not_empty(foreground_loss(scores, border), border)
    loss = loss + false_positive_weight * overlap(scores, background) / count(scores, ignored)
    surroundings = normalised_blur(background, background_sigma, ignored).mul_(background)
    # EL-Dice of (1 - P) (1 - M) and the surroundings, which are 0 wherever 1 - M is.
    rest = 1 - scores
    dice = dice_of_sums(
        overlap(rest, surroundings), overlap(rest, background), surroundings.flatten(1).sum(1)
    )
    background_term = exponential_logarithmic(dice)
    return loss + background_weight * where_not_empty(background_term, surroundings)


def cross_entropy_and_dice(
    logits: Tensor,
    pseudo_mask: Tensor,
    sam_mask: Tensor | None,
    sam_weight: float,
    ignored: Tensor | None = None,
) -> Tensor:
    """Cross-entropy plus a quarter of 1 - soft Dice, per sample, (B,): decoder loss "bce_dice".

    The poster's overlap losses reward certainty without end, so that the order of scores inside and
    outside a lesion is lost (see `fit_temperature` in training). Cross-entropy keeps it; soft Dice
    asks for the area where there is a lesion. M_SAM is a second target, as much as both agree.

    Args:
        logits: (B, 1, H, W).
        pseudo_mask, sam_mask, sam_weight, ignored: as for `decoder_loss`.
    """
    pseudo_mask = leave_out(pseudo_mask, ignored)
    loss = one_mask_loss(logits, pseudo_mask, ignored)
    if sam_mask is None or not sam_weight:
        return loss
    sam_mask = leave_out(sam_mask, ignored)
    agreement = sam_weight * soft_dice(sam_mask, pseudo_mask)
    second = where_not_empty(one_mask_loss(logits, sam_mask, ignored), sam_mask)
    return loss + agreement * second


def one_mask_loss(logits: Tensor, mask: Tensor, ignored: Tensor | None) -> Tensor:
    """Cross-entropy of logits and mask (B, 1, H, W), plus their Dice term, (B,)."""
    surprise = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    surprise = leave_out(surprise, ignored).flatten(1).sum(1) / count(logits, ignored)
    dice = soft_dice(leave_out(logits.sigmoid(), ignored), mask)
    return surprise + DICE_SHARE * where_not_empty(1 - dice, mask)


def count(values: Tensor, ignored: Tensor | None) -> Tensor | int:
    """How many values of a sample (B, ...) are known, (B,), at least 1; a number if all are."""
    return values[0].numel() if ignored is None else (1 - ignored).flatten(1).sum(1).clamp(min=1)


def where_not_empty(loss: Tensor, target: Tensor) -> Tensor:
    """The loss per sample, 0 where the sample's target holds nothing to overlap with, (B,)."""
    # The border of a mask that fills the slice is rounding error, not a target.
    return torch.where(target.flatten(1).amax(1) > 1e-5, loss, torch.zeros_like(loss))


def point_activation_loss(
    point_activations: Tensor, point_mask: Tensor, ignored: Tensor | None = None
) -> Tensor:
    """Point activation loss L_PA: EL-Dice of activations and mask at the points, (B, k) -> (B,)."""
    point_mask = leave_out(point_mask, ignored)
    return where_not_empty(el_dice(leave_out(point_activations, ignored), point_mask), point_mask)


def structural_loss(
    point_embeddings: Tensor, point_mask: Tensor, ignored: Tensor | None = None
) -> Tensor:
    """Structural loss L_Struct: active point embeddings towards +1, the others towards -1.

    Args:
        point_embeddings: (B, k, d).
        point_mask: 1 where the candidate point lies on the pseudo-mask, (B, k).
        ignored: (B, k); such a point is neither active nor inactive.

    Returns:
        (B,); a sample without active (inactive) points has 0 for that half. The poster prints the
        active set in both halves; the second one is meant for the inactive points, as its text and
        the released code say.
    """
    active, inactive = leave_out(point_mask, ignored), leave_out(1 - point_mask, ignored)
    weight = active / active.sum(1, keepdim=True).clamp(min=1)
    weight = weight + inactive / inactive.sum(1, keepdim=True).clamp(min=1)
    goal = (active - inactive)[..., None].expand_as(point_embeddings)  # +1 or -1
    distance = F.mse_loss(point_embeddings, goal, reduction="none").mean(-1)  # (B, k)
    return (distance * weight).sum(1)


def sample_at_points(masks: Tensor, grid_size: int) -> Tensor:
    """Masks (B, 1, H, W) read at the grid of candidate points, (B, k), row by row.

    The grid is aligned with the top left pixel: point (i, j) is pixel (i H / grid, j W / grid).
    """
    row_step, column_step = (math.ceil(side / grid_size) for side in masks.shape[-2:])
    return masks[:, 0, ::row_step, ::column_step].flatten(1)


def resize_masks(masks: Tensor, size: int) -> Tensor:
    """Masks (B, H, W) or (B, 1, H, W) as float (B, 1, size, size), nearest pixel, never dilated."""
    if masks.ndim == 3:
        masks = masks[:, None]
    masks = masks.float()
    if masks.shape[-2:] == (size, size):
        return masks
    return F.interpolate(masks, (size, size), mode="nearest-exact")
