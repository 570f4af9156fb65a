"""Sequences of one patient help each other: one labels another, all together are one network."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_study import benchmark, in_this_process, run_stage2, write_study

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.benchmark.systems import ScanSlices
from modeling_rasalore.benchmark.trained import AllSequencesNetwork, SequenceNetworks
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.shard_writing import SliceChoice, read_rows, write_manifest, write_part
from modeling_rasalore.data.slices import check_one_grid, read_slices
from modeling_rasalore.prediction.volume import predict_slices, predict_volume
from modeling_rasalore.scans.volume_writing import write_nifti
from modeling_rasalore.scans.volumes import read_volume
from modeling_rasalore.training.work_list import WorkList

FEW = ["loop.max_steps=2", "loop.evaluate_every=2", "loop.tensorboard=false"]


pytestmark = pytest.mark.usefixtures("own_accelerator")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy study with a FLAIR, twice as bright, and a T1 beside each T2; masks are of T2."""
    folder = write_study(tmp_path_factory.mktemp("study"), patients=4)
    for path in sorted((folder / "scans").glob("*/*_t2.nii.gz")):
        add_sequence(path, "flair", 2.0)
        add_sequence(path, "t1", 0.5)
    (folder / "masks" / "run.json").write_text(json.dumps({"modality": "t2"}))
    return folder


def add_sequence(like: Path, name: str, factor: float, shift: float = 0.0) -> Path:
    """Write a scan of the same voxels, `factor` as bright and moved by `shift` mm."""
    volume = read_volume(like)
    voxels = volume.slices.transpose(2, 1, 0)[::1] * np.float32(factor)
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    affine[0, 3] = shift
    path = like.with_name(like.name.replace("_t2", f"_{name}"))
    write_nifti(path, voxels, affine)
    return path


def words(study: Path, out: Path, *more: str) -> list[str]:
    start = [str(study / "training.yaml"), f"data.root={study / 'scans'}", f"out={out}"]
    return [*start, *FEW, *more]


def test_pseudo_masks_of_t2_supervise_flair(study: Path, tmp_path: Path) -> None:
    run_stage2(words(study, tmp_path, "data.modality=flair"))
    made = json.loads((tmp_path / "run.json").read_text())
    assert (made["modality"], made["pseudo_masks"]["modality"]) == ("flair", "t2")
    assert made["training_slices"] > 0


def test_sequences_on_different_grids_are_refused(study: Path, tmp_path: Path) -> None:
    patient = find_patients(study / "scans")[0]
    check_one_grid(patient, ("t2", "flair", "t1ce"))  # a sequence that is not there breaks nothing
    flair = patient.images["flair"]
    kept = flair.read_bytes()
    try:
        add_sequence(patient.images["t2"], "flair", 1.0, shift=5.0)
        with pytest.raises(ValueError, match=r"t2 and flair of .* have corners up to 5.0 mm apart"):
            check_one_grid(patient, ("t2", "flair"))
        with pytest.raises(ValueError, match="must lie on one grid"):
            list(read_slices(patient, "all", skip=1))
        with pytest.raises(ValueError, match="must lie on one grid"):
            read_rows(patient, SliceChoice(("t2", "flair")))
        write_nifti(flair, np.ones((32, 30, 14), np.float32), np.diag([-2.0, -2.0, 3.0, 1.0]))
        with pytest.raises(ValueError, match=r"have \(14, 32, 32\) and \(14, 30, 32\) voxels"):
            check_one_grid(patient, ("flair", "t2")[::-1])
        with pytest.raises(ValueError, match="must lie on one grid"):
            run_stage2(words(study, tmp_path, "data.modality=flair"))
        assert not (tmp_path / "run.json").exists()
    finally:
        flair.write_bytes(kept)


# --- All of them as channels --------------------------------------------------------------------
def test_all_sequences_are_channels_and_missing_ones_0(study: Path) -> None:
    patient = find_patients(study / "scans")[1]
    one = list(read_slices(patient, "t2", with_mask=True, skip=1))
    four = list(read_slices(patient, "all", with_mask=True, skip=1))
    assert [e.slice_index for e in four] == [e.slice_index for e in one]
    for example, alone in zip(four, one, strict=True):
        assert example.image.shape == (4, *alone.image.shape)
        assert np.array_equal(example.image[2], alone.image)  # t1, t1ce, t2, flair
        assert np.allclose(example.image[3], 2 * alone.image)
        assert not example.image[1].any()
        assert np.array_equal(example.mask, alone.mask)
        assert example.label == alone.label
    labelled = list(read_slices(patient, "all", skip=1, labels={1}, only={4, 5}))
    assert {e.slice_index for e in labelled} <= {4, 5} and labelled


def test_prepared_slices_give_the_same_channels_and_the_same_list(
    study: Path, tmp_path: Path
) -> None:
    patients = find_patients(study / "scans")
    choice = SliceChoice(("t1", "t2", "flair"), skip=1)
    write_manifest(tmp_path, [write_part(tmp_path, "a", patients, choice)], choice)
    prepared = find_patients(tmp_path)
    pairs = zip(*(read_slices(p[0], "all", skip=1) for p in (patients, prepared)), strict=True)
    assert all(np.array_equal(ours.image, theirs.image) for ours, theirs in pairs)
    lists = [WorkList.of(found, "all", 1) for found in (patients, prepared)]
    assert lists[0].fingerprint() == lists[1].fingerprint()
    assert np.array_equal(lists[0].brain_area, WorkList.of(patients, "t2", 1).brain_area)


@pytest.fixture(scope="module")
def network(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of all sequences, a few steps old."""
    out = tmp_path_factory.mktemp("all")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        dropout = "augmentation.sequence_dropout=0.5"
        run_stage2(words(study, out, "data.modality=all", dropout))
    return out


def test_stage_2_learns_from_all_sequences(study: Path, network: Path) -> None:
    model = RasaloreModel.from_pretrained(network)
    processor = RasaloreImageProcessor.from_pretrained(network)
    assert model.config.num_channels == processor.num_channels == 4
    assert json.loads((network / "run.json").read_text())["modality"] == "all"
    images = [e.image for e in read_slices(find_patients(study / "scans")[0], "all", skip=1)]
    scores = predict_slices(model, processor, images)
    assert scores[0].shape == images[0].shape[1:]
    assert not scores[0][images[0][2] == 0].any() and scores[0].any()
    volume = read_volume(find_patients(study / "scans")[0].images["t2"])
    with pytest.raises(ValueError, match="takes 4 sequences as channels"):
        predict_volume(model, processor, volume)


def as_slices(images: list[np.ndarray]) -> ScanSlices:
    return ScanSlices(images, None, range(len(images)), (3.0, 1.0, 1.0), "all")


def test_a_network_without_one_of_its_sequences_is_scored_with_0_there(
    study: Path, network: Path
) -> None:
    images = [e.image for e in read_slices(find_patients(study / "scans")[0], "all", skip=1)]
    kept = [image.copy() for image in images]
    without = AllSequencesNetwork(network, without="flair")
    scan = as_slices(images)
    scores = without.score(scan)
    assert without.sequence == "all but flair"
    assert all(map(np.array_equal, images, kept))
    whole = AllSequencesNetwork(network)
    assert not np.array_equal(scores[3], whole.score(scan)[3])
    for image in images:
        image[3] = 0
    assert all(map(np.array_equal, scores, whole.score(as_slices(images))))
    with pytest.raises(
        ValueError, match=r"modalities.flair must be a run with data.modality=flair"
    ):
        SequenceNetworks({"flair": network})


def test_the_benchmark_has_rows_with_and_without_each_sequence(
    study: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    given = [f"data.root={study / 'scans'}", "data.skip_slices=1", f"stage1={network}"]
    given += [f"modalities.all={network}", f"out={tmp_path}"]
    benchmark([*given, "systems=rasalore_all,rasalore_all_without_t2"])
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["modality"] for row in rows if "failure" not in row} == {"all", "all but t2"}
    assert "\n| all but t2 | paper |" in (tmp_path / "results.md").read_text()
    with pytest.raises(ValueError, match=r"give the folder .* as modalities.all"):
        benchmark([*given, "systems=chance", "data.modality=all"])


def test_the_mean_of_maps_leaves_out_missing_sequences(study: Path, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("t2", "flair")}
    config = RasaloreConfig.from_pretrained(study / "model")
    for name, folder in folders.items():
        RasaloreModel(config).save_pretrained(folder)
        RasaloreImageProcessor.from_pretrained(study / "model").save_pretrained(folder)
        (folder / "run.json").write_text(json.dumps({"modality": name, "seconds": 2}))
    images = [e.image for e in read_slices(find_patients(study / "scans")[0], "all", skip=1)]
    images[1][3] = 0
    mean, t2, flair = (
        SequenceNetworks({name: folders[name] for name in names})
        for names in (("t2", "flair"), ("t2",), ("flair",))
    )
    assert (mean.sequence, mean.seconds, t2.sequence) == ("t2 + flair", 4, "t2")
    maps = [system.score(as_slices(images[:2])) for system in (mean, t2, flair)]
    assert {one.dtype for found in maps for one in found} == {np.dtype(np.float32)}
    assert np.allclose(maps[0][0], (maps[1][0] + maps[2][0]) / 2, atol=1e-6)
    assert np.allclose(maps[0][1], maps[1][1], atol=1e-6) and not maps[2][1].any()
