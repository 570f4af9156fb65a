"""Find the threshold that a new scan keeps to, from the thresholds that healthy scans need.

Each healthy scan has one: the lowest at which no more of it is marked than is asked for. Where a
new scan is exchangeable with those n (same scanner, protocol and kind of people, none of them
learned from), the threshold that it needs has any rank among all n + 1 with equal probability. So
it is above the k-th strictest of the n in at most k of n + 1 scans, whatever the scores look like
(split conformal prediction: Papadopoulos et al. 2002, Inductive Confidence Machines for
Regression). A quantile of all scans' scores together promises nothing for a single scan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from .metrics import false_alarm_threshold

UNITS = ("voxels", "slices", "ml")
USUAL_SHARE = 0.1  # of new scans; the strictest of many thresholds is that of the oddest scan
ROUNDING = 1e-9  # a share of 0.1 of 10 scans is one scan, whatever its last bit


@dataclass(frozen=True)
class Promise:
    """A threshold, and in how many scans more may be marked than was asked for.

    Attributes:
        threshold: in [0, 1]; a voxel is marked when its score is above it.
        scans: n, the healthy scans that it comes from.
        rank: k, which of their thresholds it is, from the strictest, 1.
    """

    threshold: float
    scans: int
    rank: int

    @property
    def share(self) -> float:
        """The largest share of new scans in which more is marked than was asked for."""
        return self.rank / (self.scans + 1)

    def in_words(self, rate: float, unit: str = "voxels") -> str:
        """Return the promise as a sentence, without its full stop.

        Args:
            rate, unit: as for `scan_threshold`.
        """
        much = {
            "voxels": f"is more than {100 * rate:g} % of healthy brain",
            "slices": f"are more than {100 * rate:g} % of healthy slices",
            "ml": f"is more than {rate:g} mL of healthy brain",
        }[unit]
        return f"in at most {self.rank} of {self.scans + 1} scans {much} marked"


def scan_threshold(
    scores: np.ndarray,
    brain: np.ndarray,
    rate: float,
    unit: str = "voxels",
    voxel_ml: float = 0.0,
) -> float:
    """Return the lowest threshold at which no more of a healthy scan is marked than asked for.

    Args:
        scores: (S, H, W) in [0, 1].
        brain: (S, H, W) bool; where nothing is healthy brain, nothing counts.
        rate: the most that may be marked: a share in (0, 1), or mL above 0.
        unit: "voxels" (share of those inside the brain), "slices" (share of those with brain in
            which any voxel is marked) or "ml".
        voxel_ml: volume of a voxel, for "ml".

    Raises:
        ValueError: the scan shows no brain.
    """
    inside = scores[brain]
    if not inside.size:
        raise ValueError("a scan must show brain to have a threshold, got 0 voxels of brain.")
    if unit == "slices":
        planes = zip(scores, brain, strict=True)
        inside = np.array([plane[shown].max() for plane, shown in planes if shown.any()])
    share = rate / (voxel_ml * inside.size) if unit == "ml" else rate
    return false_alarm_threshold(inside, share) if share < 1 else 0.0


def promised_threshold(thresholds: Sequence[float], share: float = 0.0) -> Promise:
    """Return the loosest of the scans' thresholds that keeps to an asked share of new scans.

    Args:
        thresholds: of one healthy scan each, in any order.
        share: of new scans in which more may be marked, in [0, 1); 0: the least that so many
            scans can promise, 1 of n + 1.

    Raises:
        ValueError: no scan, a share that is none, or fewer scans than the share needs.
    """
    scans = len(thresholds)
    if not scans or not 0 <= share < 1:
        raise ValueError(
            "a threshold needs at least one healthy scan and a share of scans from 0 to below 1, "
            f"got {scans} scans and {share:g}."
        )
    rank = min(int(share * (scans + 1) + ROUNDING), scans) if share else 1
    if not rank:
        raise ValueError(
            f"{scans} healthy scans promise nothing for less than 1 of {scans + 1} new scans, got "
            f"a share of {share:g}; give {scans_needed(share)} healthy scans, or a share of "
            f"{1 / (scans + 1):.3g} or more."
        )
    return Promise(sorted(thresholds, reverse=True)[rank - 1], scans, rank)


def attainable_share(share: float, scans: int) -> float:
    """Return the share of new scans nearest to `share` that so many healthy scans can promise."""
    return max(share, 1 / (scans + 1))


def scans_needed(share: float) -> int:
    """Return how many healthy scans a share of new scans needs at least."""
    return max(ceil(1 / share - 1 - ROUNDING), 1)
