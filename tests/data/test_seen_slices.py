"""Slices carry what was seen of their scan: read from scans or prepared, chosen or not."""

from pathlib import Path

import numpy as np
import pytest
from small_study import write_study

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.patient import LabelledSlice, Patient
from modeling_rasalore.data.shard_writing import SliceChoice, write_manifest, write_part
from modeling_rasalore.data.slices import read_slices
from modeling_rasalore.scans.background import zero_background
from modeling_rasalore.scans.volumes import read_volume

PROCESSOR = RasaloreImageProcessor(24, 4, view="scan", neighbour_mm=6.0)


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> list[Patient]:
    return find_patients(write_study(tmp_path_factory.mktemp("study"), patients=4) / "scans")


def same(first: LabelledSlice, second: LabelledSlice) -> bool:
    pairs = [(getattr(s.seen, n) for s in (first, second)) for n in ("below", "this", "above")]
    return first.seen.scan == second.seen.scan and all(np.array_equal(*pair) for pair in pairs)


def test_a_scan_is_seen_once_and_whole_whatever_is_read_of_it(patients: list[Patient]) -> None:
    volume = read_volume(patients[0].images["t2"])
    images = zero_background(volume.slices)
    expected = PROCESSOR.see_scan(images, volume.spacing)
    calls = []

    def see(*words: object) -> object:
        calls.append(words)
        return PROCESSOR.see_scan(*words)  # type: ignore[arg-type]

    rows = list(read_slices(patients[0], "t2", skip=2, only={3, 6}, see=see))
    assert len(calls) == 1 and len(rows) == 2
    for row in rows:
        view = expected[row.slice_index]
        assert row.seen.scan == view.scan
        for name in ("below", "this", "above"):
            assert np.array_equal(getattr(row.seen, name), getattr(view, name))
        assert np.array_equal(row.image, view.this)


def test_without_see_a_slice_carries_nothing(patients: list[Patient]) -> None:
    assert {row.seen for row in read_slices(patients[0], "t2", skip=1)} == {None}


def prepare(patients: list[Patient], folder: Path, skip: int) -> list[Patient]:
    choice = SliceChoice(("t2",), skip=skip)
    write_manifest(folder, [write_part(folder, "a", patients, choice)], choice)
    return find_patients(folder)


def test_prepared_slices_see_the_same(patients: list[Patient], tmp_path: Path) -> None:
    prepared = prepare(patients, tmp_path, skip=0)
    for pair in zip(patients, prepared, strict=True):
        scans, shards = (
            list(read_slices(p, "t2", skip=2, labels={0, 1}, see=PROCESSOR.see)) for p in pair
        )
        assert len(scans) == len(shards) > 0
        assert all(map(same, scans, shards))


def test_slices_left_out_when_prepared_are_nobodys_neighbours(
    patients: list[Patient], tmp_path: Path
) -> None:
    first, *_ = prepare(patients, tmp_path, skip=4)
    rows = list(read_slices(first, "t2", skip=4, see=PROCESSOR.see))
    assert np.array_equal(rows[0].seen.below, rows[0].image)
    assert np.array_equal(rows[-1].seen.above, rows[-1].image)


def test_all_sequences_at_once_are_refused(patients: list[Patient]) -> None:
    with pytest.raises(ValueError, match="whole scans takes one sequence, got modality=all"):
        list(read_slices(patients[0], "all", see=PROCESSOR.see))
