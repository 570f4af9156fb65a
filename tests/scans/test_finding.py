"""What is taken of a folder, what is left out and why: every file is accounted for."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_folders import (
    AFFINE,
    bet,
    disc,
    linked,
    not_fetched,
    odd_names,
    raw_channels,
    save,
    study,
    tiny_voxels,
)

from modeling_rasalore.cli import main
from modeling_rasalore.files import walk
from modeling_rasalore.scans.finding import FoundScans, find_scans
from modeling_rasalore.scans.naming import Times, say_times, sequence_of, times_in
from modeling_rasalore.scans.reading import WrongSequenceError, read_scan, role_by_content
from modeling_rasalore.scans.volumes import VolumeError, read_volume

pydicom = pytest.importorskip("pydicom")
from dicom_files import write_series, zip_series  # noqa: E402


def names(found: FoundScans) -> list[str]:
    return sorted(path.name for path in found.scans)


def reasons(found: FoundScans) -> dict[str, str]:
    return {entry.path.name: entry.reason for entry in found.left_out}


def count_files(folder: Path) -> int:
    """Files below a folder, links among them, by other means than those of the module."""
    return sum(len(files) for _, _, files in os.walk(folder, followlinks=False))


@pytest.mark.parametrize(
    ("modality", "taken"), [("t1", "SE000001"), ("t2", "SE000002"), ("flair", "SE000003")]
)
def test_the_descriptions_of_a_study_choose_its_series(
    tmp_path: Path, modality: str, taken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = find_scans([study(tmp_path)], modality)
    assert names(found) == [taken]
    assert {entry.reason.split(",")[0] for entry in found.left_out} == {
        f"its description says {name}" for name in {"t1", "t2", "flair"} - {modality}
    }
    assert found.counts == {"files": 18, "used": 6, "left_out": 12, "hidden": 0, "own_results": 0}
    assert main(["inspect", str(tmp_path), "--modality", modality]) == 0
    printed = capsys.readouterr().out
    assert printed.count("left out: ") == 2
    assert "6 of 18 files used, 12 left out" in printed


def test_a_study_without_a_choice_gives_what_the_model_knows_or_nothing(tmp_path: Path) -> None:
    study(tmp_path)
    assert names(find_scans([tmp_path], trained_on="t2")) == ["SE000002"]
    with pytest.raises(ValueError, match="holds flair, t1, t2; a model fits one of them"):
        find_scans([tmp_path])


def test_a_description_in_a_zip_is_asked_too(tmp_path: Path) -> None:
    folder = study(tmp_path / "study")
    for number in (1, 2):
        zip_series(tmp_path / f"{number}.zip", folder / f"SE{number:06d}")
    shutil.rmtree(folder)
    assert names(find_scans([tmp_path], "t2")) == ["2.zip"]


@pytest.mark.parametrize(
    ("name", "header", "contradiction"),
    [
        ("scan_flair", "", "its name says flair, not t2"),
        ("scan_dwi", "", "its name says dwi, not t2"),
        ("T2_star", "", "its name says t2star, not t2"),
        ("mprage", "", "its name says t1, not t2"),
        ("scan", "tirm_tra_dark-fluid", "its header says flair, not t2"),
        ("scan", "3T 3D GR TR=2300ms/TE=2.98ms/FA=9deg", "its echo time of 2.98 ms"),
        ("scan", "TE=110 TI=2500", "its inversion time of 2500 ms is that of a flair, not t2"),
        ("scan", "TE=93;Time=104312.000", None),
        ("scan_T2", "T2 TSE", None),
        ("scan", "", None),
    ],
)
def test_what_a_file_says_of_itself_is_checked(
    tmp_path: Path, name: str, header: str, contradiction: str | None
) -> None:
    path = save(tmp_path / f"{name}.nii.gz", header=header)
    save(tmp_path / "other_t2.nii.gz")
    found = find_scans([tmp_path], "t2")
    assert (path not in found.scans) == bool(contradiction)
    if contradiction is None:
        assert read_scan(path, modality="t2").sequence == "t2"
        return
    assert contradiction in reasons(found)[path.name]
    with pytest.raises(WrongSequenceError, match=r"not t2; give a t2 scan, or --assume-modality"):
        read_scan(path, modality="t2")
    assumed = read_scan(path, modality="t2", assume=True)
    assert assumed.sequence == "t2"
    assert "because of --assume-modality, although" in " ".join(assumed.warnings)
    assert path in find_scans([tmp_path], "t2", assume=True).scans


def test_the_times_of_a_series_contradict_its_name(tmp_path: Path) -> None:
    times = {"EchoTime": "9", "RepetitionTime": "550"}
    folder = write_series(tmp_path / "p1_t2", tiny_voxels(), AFFINE, **times)
    with pytest.raises(ValueError, match="echo time of 9 ms is that of a t1, not t2"):
        find_scans([tmp_path], "t2")
    assert find_scans([tmp_path], "t2", assume=True).scans == [folder]
    ct = write_series(tmp_path / "ct", tiny_voxels(), AFFINE, Modality="CT")
    assert ct.name in reasons(find_scans([tmp_path, save(tmp_path / "a_t2.nii")], "t2"))


def test_notes_of_a_converter_beside_a_scan_are_read(tmp_path: Path) -> None:
    save(tmp_path / "001.nii.gz")
    (tmp_path / "001.json").write_text('{"EchoTime": 0.11, "InversionTime": 2.5}')
    save(tmp_path / "002.nii.gz")
    (tmp_path / "002.json").write_text('{"SeriesDescription": "AX T2 TSE", "EchoTime": 0.09}')
    assert names(find_scans([tmp_path], "t2")) == ["002.nii.gz"]
    assert names(find_scans([tmp_path], "flair")) == ["001.nii.gz"]


def test_folders_tell_the_sequence_of_files_that_do_not(tmp_path: Path) -> None:
    for place in ("flair/001.nii.gz", "T2/001.nii.gz", "T2/002_FLAIR.nii.gz"):
        save(tmp_path / place)
    assert find_scans([tmp_path], "t2").scans == [tmp_path / "T2/001.nii.gz"]


@pytest.mark.parametrize(
    ("times", "fitting"),
    [
        (Times(echo=2.98, repetition=2300, inversion=900), {"t1", "t1ce"}),
        (Times(echo=12, repetition=500), {"t1", "t1ce"}),
        (Times(echo=100, repetition=4000), {"t2", "flair"}),
        (Times(echo=120, repetition=9000, inversion=2500), {"flair"}),
        (Times(echo=70, repetition=5000, inversion=160), {"t2"}),
        (Times(), {"t1", "t1ce", "t2", "flair"}),
    ],
)
def test_published_times_fit_their_sequences(times: Times, fitting: set[str]) -> None:
    fits = {"t1", "t1ce", "t2", "flair"}.intersection(*(said.fits for said in say_times(times)))
    assert fits == fitting


def test_a_text_without_units_tells_no_repetition_time() -> None:
    assert times_in("TR=9 TE=100").repetition is None
    assert sequence_of("AX T1 FLAIR") == "t1"


def test_channels_of_raw_data_are_told_by_their_dataset_json(tmp_path: Path) -> None:
    channels = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    folder = raw_channels(tmp_path / "told", channels) / "imagesTr"
    found = find_scans([folder], "t2")
    assert names(found) == ["BRATS_001_0003.nii.gz", "BRATS_002_0003.nii.gz"]
    assert len(found.left_out) == 6
    untold = raw_channels(tmp_path / "untold") / "imagesTr"
    with pytest.raises(ValueError, match=r"and 5 more: one of several channels, and no dataset"):
        find_scans([untold], "t2")
    assert find_scans([untold / "BRATS_001_0003.nii.gz"], "t2").counts["used"] == 1
    save(tmp_path / "patients" / "scan_0000.nii.gz")
    save(tmp_path / "patients" / "scan_0001.nii.gz")
    assert len(find_scans([tmp_path / "patients"], "t2").scans) == 2  # numbers of patients


@pytest.mark.parametrize(
    "name", ["tumor_007_t2", "MS-lesion_012_t2", "p04_T2_gold", "T2_truth_3", "lesion_011"]
)
def test_a_scan_may_be_named_after_what_the_patient_has(tmp_path: Path, name: str) -> None:
    scan = save(tmp_path / f"{name}.nii.gz")
    mask = save(tmp_path / f"{name}_2.nii.gz", (tiny_voxels() > 300).astype(np.uint8))
    found = find_scans([tmp_path], "t2")
    assert found.scans == [scan]
    assert reasons(found) == {mask.name: "a mask by its name and its voxels"}


def test_a_mask_of_the_brain_is_known_by_its_voxels(tmp_path: Path) -> None:
    scan, brain = read_volume(save(tmp_path / "a.nii")), tiny_voxels() > 0
    roles = {
        "brain_mask": brain,
        "mask": brain & (np.indices(brain.shape)[0] < 6),
        "scan": tiny_voxels(1),
    }
    for role, voxels in roles.items():
        saved = read_volume(save(tmp_path / "b.nii", voxels.astype(np.int16)))
        assert role_by_content(saved, scan) == role


def test_a_file_of_zeros_and_ones_is_no_scan(tmp_path: Path) -> None:
    path = save(tmp_path / "a_t2.nii", (tiny_voxels() > 0).astype(np.uint8))
    with pytest.raises(VolumeError, match="all voxels are 0 or 1, as in a mask"):
        read_scan(path)


def test_linked_folders_are_followed_and_circles_are_left(tmp_path: Path) -> None:
    folder = linked(tmp_path)
    found = find_scans([folder], "t2")
    assert names(found) == ["p1_t2.nii.gz", "p2_t2.nii.gz"]
    assert reasons(found) == {
        "back": "a link to a folder that is looked through by another name",
        "p3": "a link to a file that is not there",
    }
    assert len(walk(folder).files) == 3


def test_a_scan_that_was_not_fetched_fails_and_its_neighbour_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(not_fetched(tmp_path)), "--modality", "t2"]) == 1
    captured = capsys.readouterr()
    assert "sub-02_T2w.nii.gz: this link leads to a file that is not there; fetch" in captured.err
    assert "sub-01_T2w.nii.gz: 6 slices" in captured.out


def test_a_series_with_a_slice_that_was_not_fetched_fails(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", tiny_voxels(), AFFINE)
    last = max(folder.iterdir())
    last.unlink()
    last.symlink_to("nowhere")
    with pytest.raises(VolumeError, match=f"{last.name} lead to files that are not there"):
        read_scan(folder)
    found = find_scans([tmp_path])
    assert found.scans == [folder]
    assert found.counts["left_out"] == 1


def test_a_list_of_files_and_a_zip_of_notes_are_no_scans(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = disc(tmp_path)
    assert reasons(find_scans([folder], "t2")) == {
        "DICOMDIR": "a list of DICOM files, without an image",
        "README.TXT": "no scan by its ending and its first bytes",
        "papers.zip": "holds no DICOM image",
    }
    assert main(["inspect", str(folder), "--modality", "t2"]) == 0
    assert "6 of 9 files used, 3 left out" in capsys.readouterr().out


def test_a_folder_without_scans_says_what_is_there(tmp_path: Path) -> None:
    for number in range(24):
        (tmp_path / f"IM{number:04d}").write_bytes(b"no mark" * 50)
    with pytest.raises(ValueError, match=r"found 24 files \(IM0000, .* and 21 more: no scan by"):
        find_scans([tmp_path], "t2")


def test_an_empty_folder_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    scan = save(tmp_path / "a_t2.nii")
    assert main(["inspect", str(tmp_path / "empty"), str(scan)]) == 1
    captured = capsys.readouterr()
    assert "a folder is a scan only with DICOM files right in it" in captured.err
    assert "a_t2.nii: 6 slices" in captured.out


def test_endings_are_known_in_any_case_and_other_formats_are_named(tmp_path: Path) -> None:
    for name in ("A_T2.nii.gz", "B_T2.NII.GZ", "C_T2.NII"):
        save(tmp_path / "made.nii").rename(tmp_path / name) if name.endswith("NII") else save(
            tmp_path / "made.nii.gz"
        ).rename(tmp_path / name)
    for name in ("d_t2.nrrd", "e_t2.MGZ", "f_t2.mnc"):
        (tmp_path / name).write_bytes(b"voxels")
    found = find_scans([tmp_path], "t2")
    scans = ["A_T2.nii.gz", "B_T2.NII.GZ", "C_T2.NII", "d_t2.nrrd", "e_t2.MGZ"]
    assert names(found) == scans  # damaged ones fail when they are read, with their reason
    assert reasons(found) == {"f_t2.mnc": "a .mnc file, which is not read; convert it to NIfTI"}


def test_of_a_bids_data_set_parts_and_other_suffixes_are_left_out(tmp_path: Path) -> None:
    for name in ("acq-lesion_T2w", "T2w", "part-phase_T2w", "T2starw", "PDT2", "FLAIR"):
        save(tmp_path / "sub-01" / "anat" / f"sub-01_{name}.nii.gz")
    save(tmp_path / "derivatives" / "x" / "sub-01" / "anat" / "sub-01_T2w.nii.gz")
    (tmp_path / "dataset_description.json").write_text("{}")
    found = find_scans([tmp_path], "t2")
    assert names(found) == ["sub-01_T2w.nii.gz", "sub-01_acq-lesion_T2w.nii.gz"]
    assert reasons(found) == {
        "sub-01_part-phase_T2w.nii.gz": "the phase of the signal, not its magnitude",
        "sub-01_T2starw.nii.gz": "its name says t2star, not t2",
        "sub-01_PDT2.nii.gz": "its name says pdt2, not t2",
        "sub-01_FLAIR.nii.gz": "its name says flair, not t2",
        "sub-01_T2w.nii.gz": "no raw anatomical scan of this BIDS data set",
        "dataset_description.json": "no scan by its ending and its first bytes",
    }


def test_inspecting_tells_names_of_any_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(odd_names(tmp_path)), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 5
    assert main(["inspect", str(tmp_path)]) == 0
    assert "Andr\\udce9_t2.nii.gz: 6 slices" in capsys.readouterr().out


def test_both_options_for_a_sequence_must_agree(tmp_path: Path) -> None:
    words = ["inspect", str(save(tmp_path / "a.nii")), "--modality", "t2"]
    assert main([*words, "--assume-modality", "t1"]) == 2
    assert main([*words, "--assume-modality", "t2"]) == 0


def test_a_mask_of_the_brain_is_left_out_of_a_folder(tmp_path: Path) -> None:
    found = find_scans([bet(tmp_path)], "t2")
    assert names(found) == ["p01_t2_bet.nii.gz", "p02_t2_bet.nii.gz"]
    assert set(reasons(found).values()) == {"a brain mask by its name"}


KINDS = ("scan", "cut", "link", "flair", "mask", "note", "hidden", "zip")


@settings(max_examples=25, deadline=None)
@given(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=8))
def test_the_lists_add_up_to_the_number_of_files(
    kinds: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    save(folder / "first_t2.nii")
    for number, kind in enumerate(kinds):
        write_kind(folder / f"p{number}", kind)
    found = find_scans([folder], "t2")
    assert found.counts["files"] == count_files(folder) == len(kinds) + 1
    assert len(found.scans) == found.counts["used"]
    assert found.counts["used"] == 1 + sum(kind in ("scan", "cut", "link") for kind in kinds)
    assert found.counts["hidden"] == kinds.count("hidden")


def write_kind(folder: Path, kind: str) -> None:
    """One file of a kind, readable or not."""
    folder.mkdir()
    if kind == "link":
        (folder / "a_t2.nii").symlink_to("nowhere")
    elif kind in ("note", "hidden", "zip"):
        (folder / {"note": "a.txt", "hidden": ".a.nii", "zip": "a.tar"}[kind]).write_text("none")
    else:
        mask = (tiny_voxels() > 300).astype(np.uint8)
        name = {"flair": "a_flair.nii", "mask": "a_seg.nii"}.get(kind, "a_t2.nii")
        path = save(folder / name, mask if kind == "mask" else None)
        if kind == "cut":
            path.write_bytes(path.read_bytes()[:500])
