"""Bootstrap intervals: coverage, limit cases, and pairs that are sharper than their means."""

import numpy as np
import pytest
from small_scores import random_scores

from modeling_rasalore.evaluation.intervals import (
    bootstrap_interval,
    paired_bootstrap,
    pooled_interval,
)
from modeling_rasalore.evaluation.metrics import pooled_average_precision, score_histograms


def test_bootstrap_interval_covers_the_mean_of_few_patients() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        patients = generator.normal(0.6, 0.2, (8, 1)) + generator.normal(0, 0.1, (8, 5))
        low, high = bootstrap_interval(list(patients), seed=trial, n=500)
        covered += low is not None and high is not None and low <= 0.6 <= high
    assert 0.91 <= covered / 300 <= 0.99


def test_more_slices_of_the_same_patients_do_not_narrow_the_interval() -> None:
    patients = [np.array([value]) for value in (0.2, 0.5, 0.6, 0.9)]
    repeated = [np.repeat(values, 50) for values in patients]
    assert bootstrap_interval(repeated, 0) == pytest.approx(bootstrap_interval(patients, 0))


def test_one_patient_has_no_interval() -> None:
    assert bootstrap_interval([np.arange(100)], 0) == (None, None)
    assert bootstrap_interval([], 0) == (None, None)


def test_two_patients_have_their_range_as_interval() -> None:
    assert bootstrap_interval([np.array([0.2]), np.array([0.8])], 0) == pytest.approx((0.2, 0.8))


def test_equal_patients_have_an_interval_without_width() -> None:
    assert bootstrap_interval([np.full(3, 0.5)] * 6, 0) == pytest.approx((0.5, 0.5))


def test_undefined_values_are_left_out_of_the_interval() -> None:
    values = [np.array([0.2, np.nan]), np.array([0.8]), np.array([np.nan])]
    assert bootstrap_interval(values, 0) == bootstrap_interval([values[0][:1], values[1]], 0)


def test_a_paired_difference_is_sharper_than_its_two_means() -> None:
    reference = [np.array([value]) for value in np.linspace(0.1, 0.9, 12)]
    better = [values + 0.05 for values in reference]
    assert paired_bootstrap(better, reference, 0) == pytest.approx((0.05, 0.05, 0.05))
    low, high = bootstrap_interval(better, 0)
    assert low is not None and high is not None and high - low > 0.2


def test_a_pair_of_different_patients_is_refused() -> None:
    with pytest.raises(ValueError, match="same patients"):
        paired_bootstrap([np.ones(3)], [np.ones(4)], 0)


def test_the_interval_of_a_pooled_score_resamples_whole_histograms() -> None:
    pairs = [random_scores(seed, 2000) for seed in range(6)]
    tables = np.stack([score_histograms(s[None], t[None])[0] for s, t in pairs])
    low, high = pooled_interval(tables, pooled_average_precision, seed=0, n=300)
    value = float(pooled_average_precision(tables.sum(0)))
    assert low is not None and high is not None and low < value < high < low + 0.3
    assert pooled_interval(tables, pooled_average_precision, seed=0, n=300) == (low, high)


def test_a_score_undefined_in_every_resample_has_no_interval() -> None:
    tables = np.zeros((3, 2, 5), np.int64)
    assert pooled_interval(tables, pooled_average_precision, seed=0, n=50) == (None, None)
