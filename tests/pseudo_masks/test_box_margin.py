"""The margin of a segmenter's boxes when pseudo-masks are made: given, or chosen without masks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_files import write_slice_labels
from small_study import write_scans

from modeling_rasalore.data.labels import UNHEALTHY
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.patient import LabelledSlice, Patient
from modeling_rasalore.pseudo_masks import sources
from modeling_rasalore.pseudo_masks.recipe import PseudoMaskRecipe
from modeling_rasalore.pseudo_masks.segmenter import MARGINS
from modeling_rasalore.pseudo_masks.sources import ScoreMaker
from modeling_rasalore.recipes import DataRecipe


class BrightMaker(ScoreMaker):
    """Pseudo-masks of what is bright; `located` counts the slices that it saw."""

    located = 0

    see = None

    def locate(self, patient: Patient) -> Iterator[tuple[LabelledSlice, np.ndarray]]:
        for example in self.read(patient, {UNHEALTHY}):
            self.located += 1
            image = example.image
            yield example, (image > np.quantile(image, 0.97)).astype(np.float32)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scans(tmp_path_factory.mktemp("scans"), 3)


def maker(scans: Path, sam_folder: Path, **changes: Any) -> BrightMaker:
    data = DataRecipe(root=str(scans), modality="t2", skip_slices=1)
    fields = {"stage1": "", "out": "", "data": data, "segmenter": str(sam_folder), **changes}
    return BrightMaker(PseudoMaskRecipe(**fields), torch.device("cpu"))


def test_a_margin_left_open_is_chosen_by_what_the_segmenter_expects(
    scans: Path, sam_folder: Path
) -> None:
    make = maker(scans, sam_folder, margin=None)
    facts = make.settle_margin(find_patients(scans))
    assert make.located >= 3  # every patient is looked at
    assert tuple(facts["expected_overlaps"]) == MARGINS
    assert facts["margin"] == make.segmenter.margin
    assert facts["expected_overlaps"][facts["margin"]] == max(facts["expected_overlaps"].values())
    again = maker(scans, sam_folder, margin=None)
    assert again.settle_margin(find_patients(scans)) == facts


def test_masks_of_patients_have_no_say(scans: Path, sam_folder: Path, tmp_path: Path) -> None:
    labels = tmp_path / "bare"
    for patient in find_patients(scans):
        (labels / patient.patient_id).mkdir(parents=True)
        for path in patient.images.values():
            (labels / patient.patient_id / path.name).symlink_to(path)
    write_slice_labels(find_patients(scans), labels / "slice_labels.csv")
    facts = [
        maker(root, sam_folder, margin=None).settle_margin(find_patients(root))
        for root in (scans, labels)
    ]
    assert facts[0] == facts[1]


def test_a_given_margin_is_kept_and_nothing_is_computed_for_it(
    scans: Path, sam_folder: Path
) -> None:
    make = maker(scans, sam_folder, margin=0.2)
    assert make.settle_margin(find_patients(scans)) == {"margin": 0.2}
    assert make.segmenter.margin == 0.2 and make.located == 0


def test_many_patients_are_thinned_out_evenly(
    scans: Path, sam_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MARGIN_PATIENTS", 2)
    make = maker(scans, sam_folder, margin=None)
    assert len(list(make.middle_slices(find_patients(scans)))) == 2
    assert list(make.middle_slices([])) == []
