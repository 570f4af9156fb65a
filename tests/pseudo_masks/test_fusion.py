"""Maps fused by slice labels: scales, weights and levels by hand and on drawn maps."""

import numpy as np
import pytest

from modeling_rasalore.pseudo_masks.fusion import (
    Fusion,
    SliceEvidence,
    collect_evidence,
    fit_fusion,
    fit_weights,
)

BRAIN = np.zeros((40, 40), bool)
BRAIN[4:36, 4:36] = True


def draw_slice(label: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """A map that sees the lesion of an unhealthy slice, and one that sees nothing."""
    telling, blind = generator.normal(3, 2, (2, 40, 40)).astype(np.float32)
    if label:
        telling[10:16, 10:16] += 20
    return {"telling": telling, "blind": 100 * blind}


def drawn_evidence(count: int = 30) -> list[SliceEvidence]:
    generator = np.random.default_rng(0)
    return [
        collect_evidence(draw_slice(n % 2, generator), BRAIN, n % 2, generator)
        for n in range(count)
    ]


def test_a_slice_is_pooled_from_its_hottest_two_hundredths() -> None:
    plane = np.zeros((40, 40), np.float32)
    plane[BRAIN] = np.arange(1024)
    plane[~BRAIN] = 1e6  # nothing outside the brain counts
    evidence = collect_evidence({"a": plane}, BRAIN, 1, np.random.default_rng(0))
    assert evidence.pooled == pytest.approx(np.arange(1024)[-20:].mean())
    assert evidence.sample.shape == (0, 1)


def test_maps_are_scaled_added_and_cut_as_by_hand() -> None:
    fusion = Fusion(("a", "b"), (1.0, 0.0), (2.0, 10.0), (0.25, 0.75), 0.5, 1.0)
    maps = {
        "a": np.array([[1, 3, 9, 9]], np.float32),
        "b": np.array([[0, 10, 0, 10]], np.float32),
    }
    fused = fusion.fuse(maps)
    assert fused.tolist() == [[0.0, 1.0, 1.0, 1.75]]
    lesion, unknown = fusion.cut(fused, np.array([[True, True, True, True]]))
    assert lesion.tolist() == [[0, 0, 0, 1]]
    assert unknown.tolist() == [[0, 1, 1, 0]]
    lesion, _ = fusion.cut(fused, np.zeros((1, 4), bool))
    assert not lesion.any()


def test_labels_give_the_map_that_sees_lesions_its_weight() -> None:
    fusion = fit_fusion(("telling", "blind"), drawn_evidence())
    assert sum(fusion.weights) == pytest.approx(1)
    assert fusion.weights[0] > 0.9
    assert fit_fusion(("telling", "blind"), drawn_evidence(), True).weights == (0.5, 0.5)


def test_one_in_a_hundred_healthy_pixels_is_taken_for_a_lesion() -> None:
    fusion = fit_fusion(("telling", "blind"), drawn_evidence(200))
    fused = fusion.fuse(draw_slice(0, np.random.default_rng(9)))
    lesion, unknown = fusion.cut(fused, BRAIN)
    assert 0.003 < lesion[BRAIN].mean() < 0.02
    assert 0.02 < unknown[BRAIN].mean() < 0.06
    lesion, _ = fusion.cut(fusion.fuse(draw_slice(1, np.random.default_rng(9))), BRAIN)
    assert lesion[10:16, 10:16].mean() > 0.9


def test_another_scale_of_a_map_changes_no_mask() -> None:
    generator = np.random.default_rng(1)
    slices = [draw_slice(n % 2, generator) for n in range(20)]

    def masks_with(factor: float, offset: float) -> list[np.ndarray]:
        changed = [{**maps, "blind": maps["blind"] * factor + offset} for maps in slices]
        draws = np.random.default_rng(2)
        evidence = [collect_evidence(m, BRAIN, n % 2, draws) for n, m in enumerate(changed)]
        fusion = fit_fusion(("telling", "blind"), evidence)
        return [fusion.cut(fusion.fuse(maps), BRAIN)[0] for maps in changed]

    for first, second in zip(masks_with(1, 0), masks_with(1e-3, 77), strict=True):
        assert np.mean(first != second) < 1e-3


def test_maps_that_are_hotter_in_healthy_slices_get_no_weight() -> None:
    labels = np.array([0, 1] * 20)
    pooled = np.random.default_rng(0).normal(size=(40, 2))
    pooled[:, 0] += 3 * labels
    pooled[:, 1] -= 3 * labels
    assert fit_weights(pooled, labels) == pytest.approx([1, 0])
    assert fit_weights(-pooled[:, :1], labels) == pytest.approx([1])  # nothing else to choose


def test_without_healthy_or_unhealthy_slices_nothing_is_fused() -> None:
    evidence = drawn_evidence()
    with pytest.raises(ValueError, match="got 0 and 15; label some"):
        fit_fusion(("telling", "blind"), evidence[1::2])
    with pytest.raises(ValueError, match="got 15 and 0; label some"):
        fit_fusion(("telling", "blind"), evidence[::2])
    assert fit_fusion(("telling", "blind"), evidence[::2], equal_weights=True)


def test_a_map_of_one_value_is_named() -> None:
    flat = {"flat": np.ones((40, 40), np.float32)}
    evidence = [collect_evidence(flat, BRAIN, n, np.random.default_rng(0)) for n in (0, 1)]
    with pytest.raises(ValueError, match="but flat has one value"):
        fit_fusion(("flat",), evidence)
