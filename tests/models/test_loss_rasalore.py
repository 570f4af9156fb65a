"""Losses against hand-computed cases, slow and obvious versions, and stored outputs."""

import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from small_masks import LN_1_5, SIZE, WEIGHTS, batch, make_mask, make_scores, square
from torch import Tensor

from modeling_rasalore.models.loss_rasalore import (
    decoder_loss,
    el_dice,
    el_tversky,
    exponential_logarithmic,
    gaussian_kernel,
    normalised_blur,
    point_activation_loss,
    resize_masks,
    sample_at_points,
    soft_dice,
    structural_loss,
    tversky,
)


# --- One formula at a time --------------------------------------------------------------------
def test_soft_dice_is_twice_the_overlap_over_the_sum() -> None:
    dice = soft_dice(batch([1, 0.5, 0.25, 0]), batch([1, 1, 0, 0]))
    assert dice.tolist() == pytest.approx([3 / 3.75])


def test_soft_dice_of_two_empty_maps_is_one_and_of_disjoint_maps_zero() -> None:
    dice = soft_dice(batch([0, 0], [1, 0]), batch([0, 0], [0, 1]))
    assert dice.tolist() == pytest.approx([1, 0], abs=1e-6)


def test_tversky_weighs_misses_by_0_3_and_false_alarms_by_0_7() -> None:
    # TP 1.5, FN 0.5, FP 0.25
    index = tversky(batch([1, 0.5, 0.25, 0]), batch([1, 1, 0, 0]))
    assert index.tolist() == pytest.approx([1.5 / (1.5 + 0.3 * 0.5 + 0.7 * 0.25)])


def test_a_miss_costs_less_than_a_false_alarm_of_the_same_size() -> None:
    target = batch([1, 1, 0, 0])
    miss, alarm = tversky(batch([1, 0, 0, 0]), target), tversky(batch([1, 1, 1, 0]), target)
    assert miss.item() == pytest.approx(1 / 1.3) and alarm.item() == pytest.approx(2 / 2.7)


@pytest.mark.parametrize(
    ("score", "loss"),
    [(1, 0), (math.exp(-1), 1), (math.exp(-0.5), 0.5**0.3), (math.exp(-11), 2), (0, 2)],
)
def test_exponential_logarithmic_is_a_power_of_the_log_up_to_two(score: float, loss: float) -> None:
    assert exponential_logarithmic(torch.tensor(float(score))).item() == pytest.approx(loss)


def test_the_straight_end_of_exponential_logarithmic_meets_the_curve() -> None:
    score = torch.tensor([-0.99e-4, -1e-4, -1.01e-4], dtype=torch.float64).exp()
    expected = [0.99 * 1e-4**0.3, 1e-4**0.3, 1.01e-4**0.3]
    assert exponential_logarithmic(score).tolist() == pytest.approx(expected, rel=1e-6)


def test_exponential_logarithmic_never_rises_with_the_score() -> None:
    losses = exponential_logarithmic(torch.linspace(0, 1, 2001, dtype=torch.float64))
    assert (losses.diff() <= 0).all()


def test_the_gradient_at_a_perfect_score_is_finite_and_points_the_right_way() -> None:
    score = torch.ones(1, requires_grad=True)
    exponential_logarithmic(score).sum().backward()
    assert score.grad is not None and -1000 < score.grad.item() < -1


def test_el_losses_are_the_el_of_their_overlap() -> None:
    prediction, target = batch([0.5, 0.5, 0.5, 0.5]), batch([1, 1, 1, 1])
    assert el_dice(prediction, target).item() == pytest.approx(LN_1_5)
    # TP 2, FN 2: 2 / 2.6
    assert el_tversky(prediction, target).item() == pytest.approx(math.log(1.3) ** 0.3)


def test_the_gaussian_kernel_is_cut_at_four_sigma_and_sums_to_one() -> None:
    kernel = gaussian_kernel(2.0, torch.device("cpu"), torch.float64)
    assert len(kernel) == 17 and kernel.sum().item() == pytest.approx(1)
    assert (kernel[8] / kernel[10]).item() == pytest.approx(math.exp(0.5))


@pytest.mark.parametrize("sigma", [0.7, 3.0, 10.0])
# Smaller than the kernel, and larger.
@pytest.mark.parametrize("shape", [(24, 24), (9, 31), (150, 70)])
def test_the_blur_is_scipys_divided_by_its_maximum(sigma: float, shape: tuple[int, int]) -> None:
    masks = np.random.default_rng(0).random((2, 1, *shape)) < 0.2
    blurred = normalised_blur(torch.from_numpy(masks.astype(np.float64)), sigma).numpy()
    for mask, ours in zip(masks[:, 0].astype(np.float64), blurred[:, 0], strict=True):
        expected = ndimage.gaussian_filter(mask, sigma, mode="reflect", truncate=4)
        np.testing.assert_allclose(ours, expected / expected.max(), atol=1e-12)


def test_the_blur_of_nothing_is_nothing_and_of_everything_is_one() -> None:
    blurred = normalised_blur(torch.cat([make_mask("empty"), make_mask("full")]), 10.0)
    assert blurred[0].abs().max() == 0
    torch.testing.assert_close(blurred[1], torch.ones(1, SIZE, SIZE))


def test_point_activation_loss_is_el_dice_at_the_points() -> None:
    # Dice 2 * 1 / (2 + 2)
    loss = point_activation_loss(batch([0.5, 0.5, 0.5, 0.5]), batch([1, 1, 0, 0]))
    assert loss.tolist() == pytest.approx([math.log(2) ** 0.3])


def test_point_activation_loss_of_an_empty_pseudo_mask_is_zero() -> None:
    assert point_activation_loss(batch([0.5, 0.9]), batch([0, 0])).tolist() == [0]


def test_structural_loss_pulls_active_points_to_plus_one_and_others_to_minus_one() -> None:
    embeddings = torch.tensor([[[0.5, 0.5], [0.0, 0.0], [-1.0, 1.0]]])
    # active: 0.25; inactive: mean of 1 and (0 + 4) / 2
    loss = structural_loss(embeddings, batch([1, 0, 0]))
    assert loss.tolist() == pytest.approx([0.25 + 1.5])


@pytest.mark.parametrize(("points", "expected"), [([1.0, 1.0], 0.25), ([0.0, 0.0], 2.25)])
def test_structural_loss_leaves_out_a_half_without_points(
    points: list[float], expected: float
) -> None:
    assert structural_loss(torch.full((1, 2, 3), 0.5), batch(points)).item() == expected


def test_points_are_read_row_by_row_from_the_top_left_of_each_cell() -> None:
    image = torch.arange(64.0).view(1, 1, 8, 8)
    assert sample_at_points(image, 2).tolist() == [[0, 4, 32, 36]]


def test_masks_are_resized_to_the_nearest_pixel_and_stay_binary() -> None:
    mask = square()[0].to(torch.uint8)  # (1, H, W)
    assert torch.equal(resize_masks(mask, SIZE), square())
    torch.testing.assert_close(
        resize_masks(mask, 2 * SIZE)[0, 0], torch.kron(square()[0, 0], torch.ones(2, 2))
    )


# --- Decoder loss -----------------------------------------------------------------------------


def obvious_decoder_loss(
    scores: np.ndarray, pseudo: np.ndarray, sam: np.ndarray, overlap_loss: str
) -> float:
    """The formula, term by term, of one sample (H, W) with targets that are not empty."""

    def blur(mask: np.ndarray, sigma: float) -> np.ndarray:
        blurred = ndimage.gaussian_filter(mask, sigma, mode="reflect", truncate=4)
        return blurred / blurred.max()

    def dice(p: np.ndarray, t: np.ndarray) -> float:
        return 2 * (p * t).sum() / (p.sum() + t.sum())

    def tversky_index(p: np.ndarray, t: np.ndarray) -> float:
        hit = (p * t).sum()
        return hit / (hit + 0.3 * (t * (1 - p)).sum() + 0.7 * (p * (1 - t)).sum())

    def el(x: float) -> float:
        return min((-math.log(x)) ** 0.3, 2)

    overlap = dice if overlap_loss == "el_dice" else tversky_index
    centre, border = pseudo * blur(pseudo, 1.0), sam * (1 - blur(sam, 1.0))
    loss = el(overlap(scores, centre)) + dice(sam, pseudo) * el(overlap(scores, border))
    outside = 1 - pseudo
    loss += 0.6 * (scores * outside).mean()
    return loss + 0.6 * el(dice((1 - scores) * outside, outside * blur(outside, 1.5)))


@pytest.mark.parametrize("overlap_loss", ["el_dice", "el_tversky"])
def test_decoder_loss_is_its_formula(overlap_loss: str) -> None:
    pseudo, sam = square().double(), square(5, 12).double()
    scores = make_scores("random", pseudo)
    loss = decoder_loss(scores, pseudo, sam, **{**WEIGHTS, "overlap_loss": overlap_loss})
    arrays = [tensor[0, 0].numpy() for tensor in (scores, pseudo, sam)]
    expected = obvious_decoder_loss(arrays[0], arrays[1], arrays[2], overlap_loss)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_decoder_loss_of_an_empty_pseudo_mask_is_its_background_part() -> None:
    mask = make_mask("empty")
    loss = decoder_loss(make_scores("halves", mask), mask, mask, **WEIGHTS)
    assert loss.item() == pytest.approx(0.6 * 0.5 + 0.6 * LN_1_5, rel=1e-5)


def test_decoder_loss_of_a_full_pseudo_mask_is_its_foreground_part() -> None:
    mask = make_mask("full")
    loss = decoder_loss(make_scores("halves", mask), mask, None, **WEIGHTS)
    assert loss.item() == pytest.approx(LN_1_5, rel=1e-5)


def test_a_mask_that_fills_the_slice_has_no_border_to_learn() -> None:
    mask, scores = make_mask("full"), torch.full((1, 1, SIZE, SIZE), 0.5)
    without = decoder_loss(scores, mask, None, **WEIGHTS)
    assert torch.equal(decoder_loss(scores, mask, mask, **WEIGHTS), without)


@pytest.mark.parametrize("sam", ["empty", "elsewhere"])
def test_a_sam_mask_that_shares_nothing_has_no_say(sam: str) -> None:
    pseudo = square(0, 5)
    sam_mask = square(9, 13) if sam == "elsewhere" else make_mask("empty")
    scores = make_scores("random", pseudo)
    without = decoder_loss(scores, pseudo, None, **WEIGHTS)
    torch.testing.assert_close(decoder_loss(scores, pseudo, sam_mask, **WEIGHTS), without)


def test_the_sam_term_is_scaled_by_its_weight() -> None:
    pseudo, sam = square(), square(5, 12)
    scores = make_scores("random", pseudo)
    none, half, one = (
        decoder_loss(scores, pseudo, sam, **{**WEIGHTS, "sam_weight": weight}).item()
        for weight in (0.0, 0.5, 1.0)
    )
    assert none < half and half - none == pytest.approx(one - half, rel=1e-4)


def test_a_better_prediction_costs_less() -> None:
    pseudo = square()
    losses = [
        decoder_loss(make_scores(kind, pseudo), pseudo, None, **WEIGHTS).item()
        for kind in ("equal", "halves", "opposite")
    ]
    assert losses == sorted(losses)


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    kinds = ["empty", "full", "pixel", "random", "random"]
    pseudo = torch.cat([make_mask(kind, seed) for seed, kind in enumerate(kinds)])
    sam = torch.cat([make_mask(kind, seed + 9) for seed, kind in enumerate(reversed(kinds))])
    scores = torch.rand(pseudo.shape, generator=torch.Generator().manual_seed(3))
    together = decoder_loss(scores, pseudo, sam, **WEIGHTS)
    one_by_one = [
        decoder_loss(scores[i : i + 1], pseudo[i : i + 1], sam[i : i + 1], **WEIGHTS)
        for i in range(len(kinds))
    ]
    torch.testing.assert_close(together, torch.cat(one_by_one))


def test_losses_leave_their_inputs_alone() -> None:
    inputs = make_scores("random", square()), square(), square(5, 12)
    copies = [tensor.clone() for tensor in inputs]
    decoder_loss(inputs[0], inputs[1], inputs[2], **WEIGHTS)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


MASK_KINDS = st.sampled_from(["empty", "full", "pixel", "random"])
SCORE_KINDS = st.sampled_from(["zeros", "ones", "halves", "equal", "opposite", "random"])


@settings(max_examples=150, deadline=None)
@given(
    MASK_KINDS,
    st.one_of(st.none(), MASK_KINDS),
    SCORE_KINDS,
    st.one_of(st.none(), MASK_KINDS),
    st.sampled_from(["el_dice", "el_tversky"]),
    st.integers(0, 99),
)
def test_losses_and_gradients_are_finite_whatever_is_empty_full_equal_or_ignored(
    mask_kind: str,
    sam_kind: str | None,
    score_kind: str,
    ignored_kind: str | None,
    overlap_loss: str,
    seed: int,
) -> None:
    pseudo = make_mask(mask_kind, seed)
    sam = None if sam_kind is None else make_mask(sam_kind, seed + 1)
    ignored = None if ignored_kind is None else make_mask(ignored_kind, seed + 2)
    scores = make_scores(score_kind, pseudo, seed).requires_grad_()
    weights = {**WEIGHTS, "overlap_loss": overlap_loss, "ignored": ignored}
    loss = decoder_loss(scores, pseudo, sam, **weights)
    everywhere = None if ignored is None else ignored.flatten(1)
    loss = loss + point_activation_loss(scores.flatten(1), pseudo.flatten(1), everywhere)
    column = None if ignored is None else ignored[:, 0, :, 0]
    loss = loss + structural_loss(scores[:, 0], pseudo[:, 0, :, 0], column)
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    assert 0 <= loss.item() <= 2 + 2 + 0.6 + 1.2 + 2 + 8
    assert gradient.isfinite().all()


# --- Stored outputs of the released modules ---------------------------------------------------


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    shared = Path(__file__).parents[3] / "shared"
    path = shared / "golden" / "stage2_released" / "golden.safetensors"
    if not path.is_file():
        pytest.skip("needs the stored outputs of ../shared/golden/stage2_released")
    return safetensors.torch.load_file(path)


@pytest.mark.parametrize("overlap_loss", ["el_tversky", "el_dice"])
def test_decoder_loss_equals_the_released_modules(
    golden: dict[str, Tensor], overlap_loss: str
) -> None:
    weights = {"overlap_loss": overlap_loss, "foreground_sigma": 10.0, "background_sigma": 15.0}
    masks = golden["ddpt_mask_256"], golden["sam_mask_256"]
    loss = decoder_loss(golden["mask_logits"].sigmoid(), *masks, **{**WEIGHTS, **weights})
    expected = golden[f"loss_decoder_{overlap_loss}"].item()
    assert loss.mean().item() == pytest.approx(expected, rel=1e-4)


def test_point_losses_equal_the_released_modules(golden: dict[str, Tensor]) -> None:
    points = sample_at_points(golden["ddpt_mask_256"], 32)
    assert torch.equal(points, golden["point_mask"])
    activation = point_activation_loss(golden["point_activation_probability"], points)
    structural = structural_loss(golden["point_embeddings"], points)
    for loss, name in ((activation, "point_activation"), (structural, "structural")):
        assert loss.mean().item() == pytest.approx(golden[f"loss_{name}"].item(), rel=1e-4)
