"""One patient in two places is found: by id, and by what an image shows."""

import numpy as np
import pytest

from modeling_rasalore.evaluation.leaks import check_disjoint, image_fingerprint


def test_a_patient_in_two_splits_is_refused() -> None:
    with pytest.raises(ValueError, match="got b in train and test"):
        check_disjoint({"train": ["a", "b"], "validation": ["c"], "test": ["b"]})


def test_a_clean_split_passes() -> None:
    check_disjoint({"train": ["a", "b"], "validation": [], "test": ["c"]})


def test_a_copy_of_an_image_has_its_fingerprint() -> None:
    image = np.random.default_rng(0).integers(0, 1021, (5, 9, 9)).astype(np.int16)
    image[2, 4, 4] = 1020  # an even maximum: many intensities fall on half levels
    padded = np.pad(image, ((0, 1), (3, 2), (0, 4)))
    negative = np.where(padded == 0, -3, padded)  # resampled scans dip below an empty background
    copies = [image.astype(np.float32), image * 0.1, image / np.float32(7), padded, negative]
    assert {image_fingerprint(copy) for copy in copies} == {image_fingerprint(image)}


def test_another_image_has_another_fingerprint() -> None:
    image = np.random.default_rng(0).random((5, 9, 9))
    others = [image[::-1], image[:, :8], image**2, np.zeros((5, 9, 9))]
    assert len({image_fingerprint(other) for other in [image, *others]}) == 5
