"""The benchmark refuses leaks, survives failures, and keeps what is finished."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_benchmark
from baselines.registry import LEARNED, PROMPTED
from small_study import benchmark, in_this_process

from modeling_rasalore.benchmark.own import OWN_ROWS, ModalityRuns
from modeling_rasalore.benchmark.recipe import BenchmarkRecipe, CrossRecipe
from modeling_rasalore.benchmark.running import choose_rows, clear_unless, known_rows
from modeling_rasalore.benchmark.scoring import find_threshold
from modeling_rasalore.benchmark.slices import (
    HeldOut,
    as_scan,
    read_examples,
    refuse_leaks,
    training_slices,
)
from modeling_rasalore.benchmark.systems import ScanSlices
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.data.phantoms import write_phantoms
from modeling_rasalore.data.splits import write_split
from modeling_rasalore.evaluation.scan_thresholds import scan_threshold
from modeling_rasalore.evaluation.tables import cost_table, results_table, sequence_table
from modeling_rasalore.prediction.free_map import POLARITIES, free_map
from modeling_rasalore.recipes import DataRecipe, run_script

Split = dict[str, list[Patient]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataRecipe:
    folder = tmp_path_factory.mktemp("scans")
    write_phantoms(folder, 5, seed=3, healthy_patients=1, shape=(44, 54, 44), voxel_size=4.0,
                   processes=1)  # fmt: skip
    return DataRecipe(root=str(folder), skip_slices=8)


@pytest.fixture
def split(data: DataRecipe) -> Split:
    patients = find_patients(data.root)
    return {"train": patients[:2], "validation": patients[2:3], "test": patients[3:]}


@pytest.fixture
def stage(tmp_path: Path, split: Split) -> Callable[[str], str]:
    """Makes a folder with the split and the run.json that trained models have, but no model."""

    def make(name: str) -> str:
        (tmp_path / name).mkdir()
        write_split(split, tmp_path / name / "split.json")
        (tmp_path / name / "run.json").write_text("{}")
        return str(tmp_path / name)

    return make


def recipe(**changes: Any) -> BenchmarkRecipe:
    return BenchmarkRecipe(**({"stage1": "s1", "out": "x"} | changes))


def choose(systems: str, **changes: Any) -> list[str]:
    return [row.name for row in choose_rows(recipe(systems=systems, **changes))]


# --- Leaks --------------------------------------------------------------------------------------
def test_a_patient_in_two_parts_is_refused(split: Split, data: DataRecipe) -> None:
    split["test"] = [*split["test"], split["train"][0]]
    with pytest.raises(ValueError, match="got BraTS2021_phantom001 in train and test"):
        refuse_leaks(split, data, [])


def test_a_test_scan_that_was_trained_on_under_another_name_is_refused(
    split: Split, data: DataRecipe
) -> None:
    split["test"] = [replace(split["train"][0], patient_id="somebody-else")]
    with pytest.raises(ValueError, match="somebody-else shows the same image as"):
        refuse_leaks(split, data, [])


def test_a_model_of_another_split_is_refused(
    split: Split, data: DataRecipe, stage: Callable[..., str]
) -> None:
    folder = stage("stage2")
    refuse_leaks(split, data, [folder, ""])  # an honest split passes
    split["train"], split["test"] = split["test"], split["train"]
    with pytest.raises(ValueError, match="was trained on another split"):
        refuse_leaks(split, data, [folder])


TRAINED = ("synthetic_only", "rasalore_control", "rasalore_poster", "rasalore", "rasalore_with_sam",
           "rasalore_with_litemedsam", "rasalore_selftrained", "ceiling",
           "modalities.flair")  # fmt: skip


@pytest.mark.parametrize("row", TRAINED)
def test_the_benchmark_refuses_every_row_of_another_split(
    row: str, data: DataRecipe, split: Split, stage: Callable[..., str], tmp_path: Path
) -> None:
    words = [f"data.root={data.root}", "data.skip_slices=8", f"stage1={stage('stage1')}"]
    folder = stage("other")
    write_split({**split, "train": split["test"], "test": split["train"]},
                tmp_path / "other" / "split.json")  # fmt: skip
    with pytest.raises(ValueError, match="was trained on another split"):
        benchmark([*words, f"out={tmp_path}/out", f"{row}={folder}"])


def test_a_start_that_has_seen_who_is_scored_is_refused(
    split: Split, data: DataRecipe, stage: Callable[..., str], tmp_path: Path
) -> None:
    folder = Path(stage("stage2"))
    refuse_leaks(split, data, [str(folder)])
    (tmp_path / "start").mkdir()
    seen = {"train": split["test"], "validation": [], "test": []}
    write_split(seen, tmp_path / "start" / "split.json")
    write_split(split, folder / "split.json", sources=[tmp_path / "start"])
    with pytest.raises(ValueError, match="or what it started from, was trained on another split"):
        refuse_leaks(split, data, [str(folder)])


def test_a_copy_in_another_data_set_is_refused_whatever_sequence_is_scored(
    split: Split, data: DataRecipe
) -> None:
    copy = replace(split["validation"][0], patient_id="elsewhere")
    others = split["test"]  # nobody learned from them
    refuse_leaks(split, data, [], HeldOut(others, replace(data, modality="flair")))
    with pytest.raises(ValueError, match="elsewhere shows the same image as"):
        refuse_leaks(split, data, [], HeldOut([*others, copy], replace(data, modality="flair")))
    only_flair = replace(copy, images={"flair": copy.images["flair"]})
    with pytest.raises(ValueError, match="elsewhere shows the same image as"):
        refuse_leaks(split, data, [], HeldOut([only_flair], replace(data, modality="flair")))


def test_systems_get_no_mask(split: Split, data: DataRecipe) -> None:
    for patient in split["train"]:
        assert all(example.mask is None for example in read_examples(patient, data))


# --- Slices -------------------------------------------------------------------------------------
def test_a_scan_s_white_point_becomes_1(split: Split, data: DataRecipe) -> None:
    images = np.stack([example.image for example in read_examples(split["test"][0], data)])
    assert np.quantile(images[images > 0], 0.99) == pytest.approx(1, rel=1e-5)


def test_all_sequences_are_planes_of_one_slice(split: Split, data: DataRecipe) -> None:
    patient = split["test"][-1]
    one = read_examples(patient, data)
    four = read_examples(patient, data, all_sequences=True)
    assert [e.slice_index for e in one] == [e.slice_index for e in four]
    assert four[5].image.shape == (4, *one[5].image.shape)
    assert np.array_equal(four[5].image[2], one[5].image)  # t2 is the third of them


def test_a_sequence_that_a_patient_lacks_is_0(split: Split, data: DataRecipe) -> None:
    patient = split["test"][-1]
    images = {name: path for name, path in patient.images.items() if name != "t1"}
    four = read_examples(replace(patient, images=images), data, all_sequences=True)
    whole = read_examples(patient, data, all_sequences=True)
    assert not four[5].image[0].any()
    assert np.array_equal(four[5].image[1:], whole[5].image[1:])
    slices = [example.image for example in four[:2]]
    with pytest.raises(ValueError, match="YooAll learns from all four sequences"):
        known_rows()["yoo_all"].make(recipe()).fit(slices, [0, 1])


def test_training_slices_have_a_known_label_and_can_be_fewer(
    split: Split, data: DataRecipe
) -> None:
    slices, labels = training_slices(split["train"] + split["test"], data, False, 0, seed=0)
    assert set(labels) == {0, 1}
    fewer, fewer_labels = training_slices(split["train"], data, False, 7, seed=0)
    assert len(fewer) == len(fewer_labels) == 7 < len(slices)


# --- Systems that see a scan whole ----------------------------------------------------------------
def test_slices_of_a_scan_are_images_that_know_their_distances() -> None:
    images = [np.full((2, 3), value, np.float32) for value in (1, 2, 3)]
    scan = ScanSlices(images, None, [4, 5, 7], (3.0, 1.0, 1.0), "t2")
    assert len(scan) == 3 and scan[1] is images[1] and scan[1:] == images[1:]
    assert [image[0, 0] for image in scan] == [1, 2, 3]
    assert scan.stack()[:, 0, 0].tolist() == [1, 2, 0, 3]


def test_the_rows_without_training_score_the_whole_scan(split: Split, data: DataRecipe) -> None:
    patient = split["validation"][0]
    examples = read_examples(patient, data)
    scan = as_scan(examples, "t2")
    stacked = np.stack([example.image for example in examples])
    system = known_rows()["mirror"].make(recipe())
    scores = np.stack(system.score(scan))
    expected = free_map(stacked, stacked > 0, examples[0].spacing, POLARITIES["t2"])
    assert np.array_equal(scores, expected)
    healthy = np.array([example.label for example in examples]) == 0
    assert 0 < healthy.sum() < len(healthy)
    found = find_threshold(system, [patient], data, 0.01, scans_above=0.25)
    expected_threshold = scan_threshold(scores[healthy], (stacked > 0)[healthy], 0.01)
    assert found.label_free == expected_threshold


def test_rows_without_training_say_darker_where_lesions_are(split: Split, data: DataRecipe) -> None:
    scan = as_scan(read_examples(split["test"][-1], replace(data, modality="t1")), "t1")
    bright, dark = (
        np.stack(known_rows()["smoothed_rank"].make(recipe()).score(replace(scan, modality=name)))
        for name in ("t2", "t1")
    )
    brain = scan.stack() > 0
    assert bright[brain] == pytest.approx(1 - dark[brain], abs=1e-5)


# --- Which systems ------------------------------------------------------------------------------
def test_every_system_of_the_table_has_a_builder_and_a_name() -> None:
    rows = known_rows()
    names = [row.name for row in (*OWN_ROWS, *LEARNED, *PROMPTED)]
    assert set(rows) == set(names) and len(names) == len(rows)
    assert len({row.title for row in rows.values()}) == len(rows)
    assert all(row.make(recipe()).weights == "trained" for row in LEARNED)
    assert all(pickle.loads(pickle.dumps(row)).title == row.title for row in rows.values())


def test_systems_without_their_folder_have_no_row() -> None:
    unlearned = ["chance", "threshold", "smoothed_rank", "mirror"]
    assert choose("own") == [*unlearned, "ddpt"]
    assert choose("own", rasalore="x")[-1] == "rasalore"
    assert choose("cae, ae") == ["ae", "cae"]
    given = {*unlearned, "ddpt", *(row.name for row in (*LEARNED, *PROMPTED))}
    assert set(choose("all", litemedsam="x")) == given
    assert given == set(known_rows()) - {row.name for row in OWN_ROWS[5:]}
    assert given - set(choose("all")) == {"litemedsam_box", "litemedsam_points"}
    assert list(known_rows())[:5] == [*unlearned, "ae"]
    names = ["rasalore_poster", "rasalore", "rasalore_selftrained"]
    folders = dict(zip(names, "xyz", strict=True))
    assert choose("own", **folders)[5:] == names
    rows = known_rows()
    assert [rows[name].folders(recipe(**folders)) for name in names] == [["x"], ["y"], ["z"]]
    two = {"modalities": ModalityRuns(t2="x", flair="y")}
    assert choose("own", **two)[5:] == ["rasalore_t2", "rasalore_flair", "rasalore_average"]
    assert rows["rasalore_average"].folders(recipe(**two)) == ["x", "y"]
    without = [f"rasalore_all_without_{name}" for name in ("t1", "t1ce", "t2", "flair")]
    assert choose("own", modalities=ModalityRuns(all="x"))[5:] == ["rasalore_all", *without]


def test_wrong_names_of_systems_are_refused() -> None:
    with pytest.raises(ValueError, match="got 'unet'"):
        choose("ae,unet")
    with pytest.raises(ValueError, match="ceiling needs the folder"):
        choose("ceiling")
    with pytest.raises(ValueError, match="litemedsam_box needs the folder"):
        choose("litemedsam_box")
    with pytest.raises(ValueError, match="rasalore_average needs the folder"):
        choose("rasalore_average", modalities=ModalityRuns(t2="x"))
    with pytest.raises(ValueError, match="size must be small or paper, got 'huge'"):
        known_rows()["ae"].make(recipe(size="huge"))


# --- The script ---------------------------------------------------------------------------------
def test_a_failing_system_is_a_row_and_finished_ones_are_kept(
    data: DataRecipe, stage: Callable[..., str], tmp_path: Path
) -> None:
    broken, out = stage("stage2"), tmp_path / "out"
    words = [f"data.root={data.root}", "data.skip_slices=8", f"stage1={stage('stage1')}"]
    words += [f"rasalore={broken}", f"out={out}", "workers=2", "systems=chance,rasalore"]
    benchmark(words)  # each system in a process of its own
    rows = json.loads((out / "results.json").read_text())["rows"]
    failures = {row["view"]: row["failure"] for row in rows if "failure" in row}
    assert set(failures) == {"paper", "volume"}
    assert "OSError" in failures["paper"]
    chance = [row for row in rows if row["system"] == "chance"]
    assert len(chance) == 6 and all(row["peak_mib"] is None for row in chance)
    assert all(row["scoring_peak_mib"] > 50 for row in chance)
    table = (out / "results.md").read_text()
    assert "failed: OSError" in table and "Scoring peak (MiB)" in table

    kept = out / "systems" / "chance" / "rows.json"
    written = kept.stat().st_mtime_ns
    shutil.rmtree(out / "systems" / "chance" / "scores")
    with pytest.raises(SystemExit, match="error: workers must be at least 1, got 0"):
        run_script(run_benchmark.main, [*words, "workers=0"])
    with pytest.raises(SystemExit) as ended:
        run_script(run_benchmark.main, [*words[:-1], "systems=chance"])
    assert not ended.value.code
    assert kept.stat().st_mtime_ns == written  # nothing was scored again


def test_another_data_set_is_scored_with_thresholds_of_the_training_data_set(
    data: DataRecipe, stage: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    other, out = tmp_path / "elsewhere", tmp_path / "out"
    write_phantoms(other, 3, seed=8, shape=(44, 54, 44), voxel_size=4.0, processes=1)
    words = [f"data.root={data.root}", "data.skip_slices=8", f"stage1={stage('stage1')}",
             f"out={out}", "systems=threshold,smoothed_rank,mirror"]  # fmt: skip
    benchmark(words)
    benchmark([*words, f"cross.root={other}", "cross.modality=flair"])
    folders = (out, out / "cross" / "elsewhere")
    here, there = (json.loads((folder / "results.json").read_text()) for folder in folders)
    known = [found["rows"][0]["healthy_thresholds"] for found in (here, there)]
    assert known[0] == known[1] and set(known[0]) <= set(here["meta"]["test_patients"])
    assert len(here["meta"]["test_patients"]) == 2 and len(there["meta"]["test_patients"]) == 3
    assert there["meta"]["learned_from"] == {"root": data.root, "modality": "t2"}
    assert there["meta"]["scored_on"] == {"root": str(other), "modality": "flair"}
    assert {row["modality"] for row in there["rows"]} == {"flair"}
    for system in ("threshold", "smoothed_rank", "mirror"):
        rows = [r for found in (here, there) for r in found["rows"] if r["system"] == system]
        values = [r["threshold_value"] for r in rows if r["threshold"] == "label_free"]
        assert len(rows) == 12 and len(values) == 4 and len(set(values)) == 1
        settings = json.loads((out / "systems" / system / "settings.json").read_text())
        assert "seed" not in settings
    table = (folders[1] / "results.md").read_text()
    assert table.startswith("Scored: all 3 patients of `elsewhere` (flair). Learned from, ")

    promise = "Label-free thresholds: in at most 1 of 2 scans is more than 1 % of healthy brain"
    assert promise in (out / "results.md").read_text()
    for number in ("false_alarm_rate=0", "scans_above=1"):
        with pytest.raises(ValueError, match="false_alarm_rate must lie in"):
            benchmark([*words, number])
    with pytest.raises(ValueError, match="shows the same image as"):
        benchmark([*words, f"cross.root={data.root}"])
    with pytest.raises(ValueError, match="got flair and no cross"):
        benchmark([*words, "cross.modality=flair"])


def test_what_a_system_learned_is_kept_for_another_data_set(tmp_path: Path) -> None:
    here = recipe(out=str(tmp_path), data=DataRecipe(root="a"))
    cross = replace(here, cross=CrossRecipe(root="b/c"))
    assert here.results == tmp_path and here.scored_data == here.data
    assert cross.results == tmp_path / "cross" / "c"
    assert (cross.scored_data.root, cross.scored_data.modality) == ("b/c", "t2")
    folder = clear_unless(tmp_path / "ae", {"sizes": (1, 2)})
    (folder / "learned").touch()
    assert (clear_unless(folder, {"sizes": (1, 2)}) / "learned").exists()
    assert not (clear_unless(folder, {"sizes": (1, 3)}) / "learned").exists()


def test_tables_name_failures_and_costs() -> None:
    failed = {"system": "ae", "modality": "t2", "view": "paper", "threshold": "0.5",
              "patients": 0, "slices": 0, "weights": "none",
              "failure": "ValueError: a | b"}  # fmt: skip
    line = results_table([failed]).splitlines()[-1]
    assert "failed: ValueError: a / b" in line
    assert line.count("|") == results_table([failed]).splitlines()[0].count("|")
    scored = {
        "system": "dae",
        "title": "DAE",
        "weights": "trained",
        "seconds": 12.4,
        "peak_mib": 900,
    }
    assert cost_table([scored]).splitlines()[-1] == "| DAE | trained | 12 | 900 | – | – |"  # noqa: RUF001


def test_a_table_compares_the_sequences() -> None:
    row = {"system": "rasalore_flair", "modality": "flair", "view": "paper", "dice": 0.5}
    rows = [{**row, "threshold": "0.5", "average_precision": 0.25},
            {**row, "threshold": "label_free", "dice": 0.625, "average_precision": 0.25},
            {**row, "system": "rasalore", "threshold": "0.5"}]  # fmt: skip
    lines = sequence_table(rows).splitlines()
    assert lines[2:] == ["| flair | paper | 50.0 | 62.5 | 25.0 |"]
    assert sequence_table(rows[2:]) == ""
