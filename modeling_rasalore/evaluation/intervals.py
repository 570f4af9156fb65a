"""Put bootstrap intervals over patients around means and pooled scores."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, stdtrit


class Interval(NamedTuple):
    """Limits of a 95 % interval; None where there are too few patients for one."""

    low: float | None
    high: float | None


class Estimate(NamedTuple):
    """A mean and the limits of its 95 % interval."""

    mean: float | None
    low: float | None
    high: float | None

    def columns(self, name: str) -> dict[str, float | None]:
        """The three columns of a row of results: `name`, `name_low`, `name_high`."""
        return {name: self.mean, f"{name}_low": self.low, f"{name}_high": self.high}


def bootstrap_interval(values: Sequence[np.ndarray], seed: int, n: int = 2000) -> Interval:
    """95 % interval of the mean of all values, resampling whole patients.

    Percentiles of `n` resampled means, widened for few patients as a t quantile is (Hesterberg
    2015, expanded percentiles). No interval reaches beyond the patients it is made of: with 2 to 5
    of them it is about their range and covers less than it says. Empty below 2 patients.

    Args:
        values: one array per patient, for instance the Dice of each slice; NaN is left out.
        seed: the same seed gives the same resamples of the same number of patients.
    """
    defined = [np.asarray(value, np.float64)[~np.isnan(value)] for value in values]
    sums = np.array([[value.sum(), value.size] for value in defined if value.size])  # (patients, 2)
    return pooled_interval(sums, lambda table: table[..., 0] / table[..., 1], seed, n)


def paired_bootstrap(
    values: Sequence[np.ndarray], reference: Sequence[np.ndarray], seed: int, n: int = 2000
) -> Estimate:
    """Mean of `values - reference` and its 95 % interval over patients.

    Args:
        values, reference: one array per patient: same patients, same slices, same order.
    """
    if [np.shape(value) for value in values] != [np.shape(value) for value in reference]:
        raise ValueError("values and reference must hold the same patients and slices; align them.")
    differences = [np.subtract(*pair, dtype=float) for pair in zip(values, reference, strict=True)]
    mean = float(np.nanmean(np.concatenate(differences)))
    return Estimate(mean, *bootstrap_interval(differences, seed, n))


def pooled_interval(
    tables: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int, n: int = 2000
) -> Interval:
    """95 % interval of a statistic of summed tables, over patients as in `bootstrap_interval`.

    Args:
        tables: (patients, ...), one additive table per patient, such as a score histogram.
        statistic: (resamples, ...) -> (resamples,).
    """
    patients = len(tables)
    if patients < 2:
        return Interval(None, None)
    draws = np.random.default_rng(seed).multinomial(patients, [1 / patients] * patients, size=n)
    flat = tables.reshape(patients, -1).astype(np.float64)
    estimates = [
        statistic((part @ flat).reshape(-1, *tables.shape[1:]))
        for part in np.array_split(draws.astype(np.float64), 1 + n // 50)  # 11 MB of bins at a time
    ]
    defined = np.concatenate(estimates)
    defined = defined[~np.isnan(defined)]
    if not defined.size:
        return Interval(None, None)
    tail = ndtr(stdtrit(patients - 1, 0.025) * np.sqrt(patients / (patients - 1)))
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(float(low), float(high))
