"""Heatmaps are scaled, filtered and cut: hand-computed cases and limits."""

import numpy as np
import pytest

from modeling_rasalore.models.heatmaps_ddpt import HEATMAPS
from modeling_rasalore.pseudo_masks.rule import (
    SCALING,
    PseudoMaskRule,
    guided_filter,
    scale_heatmap,
)


def heat(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


# --- Scaling ----------------------------------------------------------------------------------

BRAIN = np.array([[False, True, True, True]])


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ("maximum", [0, 0.01, 0.1, 1]),
        ("range", [0, 0, 0.09 / 0.99, 1]),
        ("geometric", [0, 0, 0, 1]),  # 0.2 is the median
    ],
)
def test_a_heatmap_is_scaled_inside_the_brain(scaling: str, expected: list[float]) -> None:
    scaled = scale_heatmap(heat(9, 0.02, 0.2, 2), BRAIN, scaling)
    assert scaled.dtype == np.float32
    assert scaled[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("scaling", ["range", "geometric"])
def test_scaling_does_not_depend_on_the_heatmaps_own_scale(scaling: str) -> None:
    heatmap = np.random.default_rng(0).random((8, 9), dtype=np.float32) + 0.01
    brain = np.ones((8, 9), bool)
    scaled = scale_heatmap(heatmap, brain, scaling)
    np.testing.assert_allclose(scale_heatmap(1e-3 * heatmap, brain, scaling), scaled, atol=1e-5)
    assert scaled.min() == 0 and scaled.max() == pytest.approx(1)


def test_geometric_scaling_takes_brain_without_heat_as_the_coldest() -> None:
    brain = np.ones((1, 4), bool)
    scaled = scale_heatmap(heat(0, 0.02, 0.2, 2), brain, "geometric")
    # The median lies half way, in logarithms, between 0.02 and 0.2.
    assert scaled[0].tolist() == pytest.approx([0, 0, 1 / 3, 1], abs=1e-6)


@pytest.mark.parametrize("scaling", ["maximum", "range", "geometric"])
@pytest.mark.parametrize("heatmap", [heat(0, 0, 0, 0), heat(1, 0, 0, 0)])
def test_a_brain_without_heat_has_a_heatmap_of_zeros(heatmap: np.ndarray, scaling: str) -> None:
    assert not scale_heatmap(heatmap, BRAIN, scaling).any()


@pytest.mark.parametrize("scaling", ["maximum", "range", "geometric"])
def test_a_slice_without_brain_has_a_heatmap_of_zeros(scaling: str) -> None:
    assert not scale_heatmap(heat(1, 2, 3, 4), np.zeros((1, 4), bool), scaling).any()


def test_scaling_leaves_its_input_alone() -> None:
    heatmap = heat(0, 1, 2, 3)
    for scaling in ("maximum", "range", "geometric"):
        scale_heatmap(heatmap, BRAIN, scaling)
    assert heatmap.tolist() == [[0, 1, 2, 3]]


def test_every_kind_of_heatmap_has_a_scaling_that_exists() -> None:
    assert set(SCALING) == set(HEATMAPS)
    for scaling in SCALING.values():
        scale_heatmap(heat(0, 1, 2, 3), BRAIN, scaling)


def test_an_unknown_scaling_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'linear'"):
        scale_heatmap(heat(0, 1, 2, 3), BRAIN, "linear")


# --- Guided filter and the rule that makes pseudo-masks ---------------------------------------


def blurred_disc() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A slice with a bright disc, the disc, and a heatmap that knows its place but not its edge."""
    rows, columns = np.indices((64, 64)) - 32.0
    disc = (rows - 6) ** 2 + columns**2 < 9**2
    heat = np.exp(-((rows - 6) ** 2 + columns**2) / (2 * 9.0**2)).astype(np.float32)
    image = np.where(disc, 0.9, 0.4) * (rows**2 + columns**2 < 28**2)
    return image.astype(np.float32), disc, heat


@pytest.mark.parametrize("lesion", [0.9, 0.1])
def test_guided_heat_takes_over_the_outline_of_bright_and_dark_lesions(lesion: float) -> None:
    image, disc, heat = blurred_disc()
    image = np.where(disc, np.float32(lesion), image)
    plain = np.abs((heat > 0.5) ^ disc).sum()
    guided = guided_filter(heat, image, image > 0, reach=0.1)
    assert np.abs((guided > 0.5) ^ disc).sum() < 0.5 * plain
    assert (guided[image == 0] == 0).all()


def test_guided_heat_of_a_slice_without_edges_is_only_smoother() -> None:
    _, _, heat = blurred_disc()
    flat = np.full((64, 64), 3.0, np.float32)
    guided = guided_filter(heat, flat, flat > 0, reach=0.02)
    assert np.abs(guided - heat).max() < 0.05


def test_a_filtered_slice_without_brain_is_nothing() -> None:
    blank = np.zeros((8, 8), np.float32)
    assert not guided_filter(blank, blank, blank > 0, reach=0.1).any()


def test_a_rule_s_scores_cross_one_half_where_its_threshold_lies() -> None:
    image, _, heat = blurred_disc()
    scores = PseudoMaskRule("maximum", threshold=0.3).scores(heat, image)
    expected = scale_heatmap(heat, image > 0, "maximum") > 0.3
    assert np.array_equal(scores > 0.5, expected)
    assert scores.min() >= 0 and scores.max() == 1
