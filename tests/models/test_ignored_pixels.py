"""What nobody knows changes no loss: ignored pixels and points, by hand and by property."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from small_masks import WEIGHTS, batch, make_mask, make_scores, square
from torch import Tensor

from modeling_rasalore.models.loss_rasalore import (
    decoder_loss,
    normalised_blur,
    point_activation_loss,
    structural_loss,
)

POINT_LIKE = {"foreground_sigma": 0.1, "background_sigma": 0.1}  # a kernel of one pixel: no blur


def flipped(mask: Tensor, where: Tensor) -> Tensor:
    return torch.where(where > 0, 1 - mask, mask)


@pytest.mark.parametrize("overlap_loss", ["el_dice", "el_tversky"])
@pytest.mark.parametrize("with_sam", [True, False])
def test_what_is_predicted_or_marked_on_an_ignored_pixel_changes_neither_loss_nor_gradient(
    overlap_loss: str, with_sam: bool
) -> None:
    pseudo, sam, ignored = square(), square(5, 12), make_mask("random", 4)
    weights = {**WEIGHTS, "overlap_loss": overlap_loss, "ignored": ignored}

    def loss_and_gradient(change: bool) -> tuple[Tensor, Tensor]:
        masks = [flipped(mask, ignored) if change else mask for mask in (pseudo, sam)]
        scores = make_scores("random", pseudo)
        scores = (flipped(scores, ignored) if change else scores).requires_grad_()
        loss = decoder_loss(scores, masks[0], masks[1] if with_sam else None, **weights)
        return loss, torch.autograd.grad(loss.sum(), scores)[0]

    loss, gradient = loss_and_gradient(False)
    other_loss, other_gradient = loss_and_gradient(True)
    assert torch.equal(loss, other_loss) and torch.equal(gradient, other_gradient)
    assert not gradient[ignored > 0].any() and gradient[ignored == 0].any()


@pytest.mark.parametrize("overlap_loss", ["el_dice", "el_tversky"])
def test_without_blur_the_loss_is_that_of_the_slice_without_its_ignored_columns(
    overlap_loss: str,
) -> None:
    weights = {**WEIGHTS, **POINT_LIKE, "overlap_loss": overlap_loss}
    pseudo, sam = make_mask("random", 1), make_mask("random", 2)
    scores, ignored = make_scores("random", pseudo), torch.zeros_like(pseudo)
    ignored[..., 10:] = 1
    whole = decoder_loss(scores, pseudo, sam, **weights, ignored=ignored)
    cut = decoder_loss(*(m[..., :10] for m in (scores, pseudo, sam)), **weights)
    torch.testing.assert_close(whole, cut)


def test_a_decoder_loss_with_an_ignored_pixel_by_hand() -> None:
    def row(*values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1)

    scores, pseudo, ignored = row(0.5, 0.25, 0.75, 0.9), row(1, 0, 0, 0), row(0, 0, 0, 1)
    loss = decoder_loss(scores, pseudo, None, **{**WEIGHTS, **POINT_LIKE}, ignored=ignored)

    def el(value: float) -> float:
        return (-math.log(value)) ** 0.3

    # Dice with the lesion 2 * 0.5 / (1.5 + 1), false alarms (0.25 + 0.75) / 3, and of the
    # background, 1 - P against 1 - M there, 2 * (0.75 + 0.25) / (1 + 2).
    assert loss.item() == pytest.approx(el(1 / 2.5) + 0.6 / 3 + 0.6 * el(2 / 3), rel=1e-5)


def test_the_blur_is_the_mean_of_the_known_pixels_around() -> None:
    random = np.random.default_rng(0)
    mask, ignored = ((random.random((24, 30)) < share).astype(float) for share in (0.4, 0.3))
    known = 1 - ignored
    ours = normalised_blur(*(torch.from_numpy(m)[None, None] for m in (mask,)), 2.0,
                           torch.from_numpy(ignored)[None, None])[0, 0]  # fmt: skip
    blurred = [ndimage.gaussian_filter(m, 2.0, truncate=4) for m in (mask * known, known)]
    expected = blurred[0] / blurred[1] * known
    np.testing.assert_allclose(ours.numpy(), expected / expected.max(), atol=1e-12)


def test_a_mask_of_ones_stays_one_up_to_the_edge_of_what_is_ignored() -> None:
    ignored = square()
    blurred = normalised_blur(make_mask("full"), 1.5, ignored)
    torch.testing.assert_close(blurred, 1 - ignored)


def test_nothing_ignored_is_the_loss_without_the_argument() -> None:
    pseudo, sam = square(), square(5, 12)
    scores = make_scores("random", pseudo)
    plain = decoder_loss(scores, pseudo, sam, **WEIGHTS)
    same = decoder_loss(scores, pseudo, sam, **WEIGHTS, ignored=make_mask("empty"))
    torch.testing.assert_close(same, plain)


def test_all_ignored_is_no_loss() -> None:
    scores, full = make_scores("halves", square()), make_mask("full")
    loss = decoder_loss(scores, square(), square(), **WEIGHTS, ignored=full)
    assert loss.tolist() == [0]


def test_point_losses_are_those_of_the_points_that_are_not_ignored() -> None:
    activations, points = batch([0.5, 0.5, 0.5, 0.9]), batch([1, 1, 0, 1])
    ignored = batch([0, 0, 0, 1])
    embeddings = torch.rand((1, 4, 3), generator=torch.Generator().manual_seed(0))
    embeddings.requires_grad_(), activations.requires_grad_()
    activation = point_activation_loss(activations, points, ignored)
    assert activation.tolist() == pytest.approx([math.log(1.75) ** 0.3])  # Dice 2 / (1.5 + 2)
    structural = structural_loss(embeddings, points, ignored)
    torch.testing.assert_close(structural, structural_loss(embeddings[:, :3], points[:, :3]))
    (activation + structural).sum().backward()
    assert embeddings.grad is not None and activations.grad is not None
    assert not embeddings.grad[:, 3].any() and not activations.grad[:, 3].any()
    assert embeddings.grad[:, :3].all() and activations.grad[:, :3].all()
