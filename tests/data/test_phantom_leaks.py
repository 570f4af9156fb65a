"""Nothing but the tumour tells synthetic patients with and without one apart."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import rankdata
from small_phantoms import SEEDS, VOXEL, phantom

from modeling_rasalore.data.phantoms import SEQUENCES, Phantom

Rows = list[np.ndarray]


def test_without_its_tumour_a_patient_is_the_same_brain() -> None:
    changed = phantom(7).images["t2"] != phantom(7, tumour=False).images["t2"]
    distance = ndimage.distance_transform_edt(phantom(7).mask == 0) * VOXEL
    assert changed.any() and not changed[distance > 40].any()


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_maximum_of_an_image_says_nothing_about_a_tumour(sequence: str) -> None:
    pairs = [(phantom(s), phantom(s, tumour=False)) for s in SEEDS]
    same = [a.images[sequence].max() == b.images[sequence].max() for a, b in pairs]
    assert np.mean(same) >= 0.85


def slice_statistics(of: Phantom, levels: np.ndarray) -> np.ndarray:
    """Rows of global statistics per slice, every image divided by its patient's maximum."""
    images = [image / image.max() for image in of.images.values()]
    rows = []
    for level in levels:
        brains = [image[:, :, level][image[:, :, level] > 0] for image in images]
        moments = [(v.mean(), v.std(), v.max(), *np.quantile(v, (0.1, 0.5, 0.9))) for v in brains]
        rows.append(np.ravel(moments))
    return np.array(rows).reshape(len(levels), -1)


def fit_logistic(features: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    mean, std = features.mean(axis=0), features.std(axis=0)

    def design(rows: np.ndarray) -> np.ndarray:
        return np.column_stack([(rows - mean) / std, np.ones(len(rows))])

    inputs = design(features)
    weights = np.zeros(inputs.shape[1])
    for _ in range(20):  # Newton steps with a unit ridge
        p = 1 / (1 + np.exp(-inputs @ weights))
        hessian = inputs.T @ (inputs * (p * (1 - p))[:, None]) + np.eye(len(weights))
        weights -= np.linalg.solve(hessian, inputs.T @ (p - labels) + weights)
    return lambda rows: design(rows) @ weights


def held_out_auroc(positive: Rows, negative: Rows) -> float:
    """Train on the first half of the patients, test on the second."""
    half = len(positive) // 2
    train = [np.concatenate(rows[:half]) for rows in (positive, negative)]
    test = [np.concatenate(rows[half:]) for rows in (positive, negative)]
    score = fit_logistic(np.concatenate(train), np.repeat([1, 0], [len(rows) for rows in train]))
    ranks = rankdata(np.concatenate([score(rows) for rows in test]))
    n = len(test[0])
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(test[1])))


def test_slices_without_lesion_do_not_tell_whose_they_are_but_slices_with_one_do() -> None:
    # The same brain with and without its tumour, at the same levels: anatomy cancels out.
    free: tuple[Rows, Rows] = ([], [])
    ill: tuple[Rows, Rows] = ([], [])
    for seed in SEEDS:
        area = (phantom(seed).mask > 0).sum(axis=(0, 1)) * VOXEL**2
        brain = (phantom(seed).images["t2"] > 0).sum(axis=(0, 1)) > 60
        for index, tumour in enumerate((True, False)):
            patient = phantom(seed, tumour=tumour)
            free[index].append(slice_statistics(patient, np.flatnonzero(brain & (area == 0))[::2]))
            ill[index].append(slice_statistics(patient, np.flatnonzero(brain & (area > 200))[::2]))
    assert held_out_auroc(*free) == pytest.approx(0.5, abs=0.06)
    assert held_out_auroc(*ill) > 0.8
