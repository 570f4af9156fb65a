"""Whether the sequences of a patient show the same voxels."""

from collections.abc import Sequence

import numpy as np

from .layouts import Patient
from .volumes import read_facts


def check_one_grid(patient: Patient, modalities: Sequence[str]) -> None:
    """Return nothing where these sequences share shape and place in space; headers alone are read.

    Those that the patient does not have are passed over; prepared slices were checked when they
    were prepared.

    Raises:
        ValueError: two sequences lie on different grids.
    """
    names = [name for name in modalities if name in patient.images]
    if patient.prepared or patient.channels or len(names) < 2:
        return
    first, *others = [(name, read_facts(patient.images[name])) for name in names]
    for name, facts in others:
        if facts.shape == first[1].shape:
            offset = float(np.abs(facts.corners - first[1].corners).max())
            if offset <= min(facts.spacing):
                continue
            found = f"corners up to {offset:.1f} mm apart"
        else:
            found = f"{first[1].shape} and {facts.shape} voxels"
        raise ValueError(
            f"sequences that are used together must lie on one grid, but {first[0]} and {name} of "
            f"{patient.patient_id} have {found}; register and resample one onto the other."
        )
