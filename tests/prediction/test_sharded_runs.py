"""One run in shards, on one machine or a cluster: one row per scan, whatever happens on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from small_rasalore import make_model, small_config
from small_study import write_scans

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.cli import main
from modeling_rasalore.prediction.journal import close_line, pick_shard, read_journals
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.run import predict_scans, read_ahead
from modeling_rasalore.prediction.volume import predict_volume
from modeling_rasalore.scans.finding import find_scans
from modeling_rasalore.scans.volumes import read_volume

ROOT = Path(__file__).parents[2]
OPTIONS = PredictionOptions(modality="t2")
FILES = ("mask",)


def write_archive(folder: Path, count: int = 3) -> list[Path]:
    return find_scans([write_scans(folder / "scans", count)], "t2").scans


def run(scans: list[Path], shard: tuple[int, int] = (0, 1), **words: Any) -> dict[str, int]:
    """Segment a shard into `out` beside the scans; returns the progress of all shards."""
    out = scans[0].parents[2] / "out"
    processor = RasaloreImageProcessor(small_config().image_size, 1)
    words = {"files": FILES, "resume": True, "parquet": True, "say": lambda line: None, **words}
    predict_scans(make_model(), processor, scans, out, OPTIONS, shard=shard, **words)
    return read_journals(out).progress()


def rows(out: Path) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = pq.read_table(out / "results.parquet").to_pylist()
    return table


def lines(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()]


def save_model(folder: Path, seed: int = 0) -> Path:
    make_model(seed).save_pretrained(folder)
    RasaloreImageProcessor(16, 1).save_pretrained(folder)
    return folder


def test_every_scan_has_a_row_and_a_mask_on_its_own_grid(tmp_path: Path) -> None:
    scans = write_archive(tmp_path)
    assert run(scans) == {"scans": 3, "done": 3, "failed": 0, "left": 0}
    keys = [path.relative_to(tmp_path / "scans").as_posix()[:-7] for path in scans]
    assert [row["scan"] for row in rows(tmp_path / "out")] == keys
    for path, row in zip(scans, rows(tmp_path / "out"), strict=True):
        scan = read_volume(path)
        mask = read_volume(tmp_path / "out" / f"{row['scan']}_mask.nii.gz")
        assert (mask.affine == scan.affine).all()
        voxel = 2.0 * 2.0 * 3.0 / 1000
        assert row["millilitres"] == pytest.approx((mask.slices > 0).sum() * voxel)
        assert row["slices"] == 14


def test_the_tables_appear_with_the_last_shard(tmp_path: Path) -> None:
    scans, views = write_archive(tmp_path), ("manifest.json", "report.html", "results.parquet")
    assert run(scans, (1, 2))["left"] == 2
    assert not any((tmp_path / "out" / name).exists() for name in (*views, "results.csv"))
    assert run(scans, (0, 2))["left"] == 0
    assert len(rows(tmp_path / "out")) == 3
    assert all((tmp_path / "out" / name).exists() for name in (*views, "results.csv"))


def test_shards_may_be_cut_anew_and_nothing_is_done_twice(tmp_path: Path) -> None:
    scans = write_archive(tmp_path)
    run(scans, (0, 2))
    run(scans, (0, 1))
    journals = (tmp_path / "out" / "journals").iterdir()
    done = [[line["scan"] for line in lines(path) if "scan" in line] for path in journals]
    assert sorted(map(len, done)) == [1, 2]


def test_without_resume_all_is_done_again_and_the_other_scans_stay(tmp_path: Path) -> None:
    scans = write_archive(tmp_path)
    run(scans)
    said: list[str] = []
    run(scans[:2], resume=False, parquet=False, say=said.append)
    assert not (tmp_path / "out" / "results.parquet").exists()
    assert len(said) == 2 and not any("skipped" in line for line in said)
    journal, packed = sorted((tmp_path / "out" / "journals").iterdir())
    assert [line.get("scan", "") != "" for line in lines(journal)] == [False, True, True]
    assert [line.get("scan", "") != "" for line in lines(packed)] == [False, True, True, True]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (len(manifest["scans"]), len(manifest["earlier"])) == (2, 1)
    assert read_journals(tmp_path / "out").progress() == {
        **{"scans": 2, "done": 2, "failed": 0, "left": 0}
    }
    # The third scan is finished, but on no list of a run since: it is skipped and listed again.
    run(scans, say=said.append)
    assert sum("skipped" in line for line in said) == 3
    assert read_journals(tmp_path / "out").progress()["done"] == 3
    run(scans, resume=False)  # journals do not grow with the runs
    assert len(lines(packed)) == 4


def test_a_failure_is_listed_with_its_reason_and_tried_again(tmp_path: Path) -> None:
    scans = write_archive(tmp_path)
    content = scans[1].read_bytes()
    scans[1].write_bytes(b"damaged")
    assert run(scans) == {"scans": 3, "done": 2, "failed": 1, "left": 0}
    failed = rows(tmp_path / "out")[1]
    assert failed["status"] == "failed" and "plain data" in failed["reason"]
    assert str(tmp_path) not in failed["reason"]
    scans[1].write_bytes(content)
    assert run(scans)["failed"] == 0
    assert rows(tmp_path / "out")[1]["status"] == "done"


@pytest.mark.parametrize("lost", [1, 2, 3, 20])
def test_half_a_line_left_by_a_kill_does_not_count(tmp_path: Path, lost: int) -> None:
    scans, out = write_archive(tmp_path), tmp_path / "out"
    run(scans)
    before = rows(out)
    (journal,) = (out / "journals").iterdir()
    journal.write_bytes(journal.read_bytes()[: -1 - lost])
    assert read_journals(out).progress()["left"] == 1
    close_line(journal)
    assert read_journals(out).progress()["left"] == 1
    (out / "results.parquet").unlink()
    assert run(scans)["left"] == 0
    assert rows(out) == before


def test_results_of_another_device_or_version_are_not_taken_for_equal(tmp_path: Path) -> None:
    scans, out = write_archive(tmp_path, 2), tmp_path / "out"
    run(scans)
    (journal,) = (out / "journals").iterdir()
    text = journal.read_text()
    for change, skipped in (('"cpu"', 2), ('"cpu:1"', 2), ('"cuda:0"', 0)):
        journal.write_text(text.replace('"device": "cpu"', f'"device": {change}'))
        said: list[str] = []
        run(scans, say=said.append)
        assert sum("skipped" in line for line in said) == skipped
    journal.write_text(text.replace('"numpy": "', '"numpy": "1'))
    run(scans, say=said.append)
    assert "skipped" not in said[-1]


def test_reading_ahead_keeps_order_errors_and_a_bounded_number(tmp_path: Path) -> None:
    loaded: list[int] = []

    def load(item: int) -> int:
        loaded.append(item)
        return 1 // item

    ahead = read_ahead(load, iter([3, 2, 0, 1, 5, 6, 7, 8]), depth=2)
    first, future = next(ahead)
    assert (first, future.result()) == (3, 0)
    assert len(loaded) <= 3
    rest = list(ahead)
    assert [item for item, _ in rest] == [2, 0, 1, 5, 6, 7, 8]
    with pytest.raises(ZeroDivisionError):
        rest[1][1].result()


def test_a_scan_that_was_scored_is_kept_when_the_next_one_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, scored = write_archive(tmp_path, 3), []

    def predict_two(*given: Any) -> Any:
        scored.append(given)
        if len(scored) == 3:
            raise KeyboardInterrupt
        return predict_volume(*given)

    monkeypatch.setattr("modeling_rasalore.prediction.run.predict_volume", predict_two)
    with pytest.raises(KeyboardInterrupt):
        run(scans)
    monkeypatch.undo()
    said: list[str] = []
    run(scans, say=said.append, resume=True)
    assert ["skipped" in line for line in said if "warning" not in line] == [True, True, False]


def test_shards_refuse_to_mix_two_models_and_inspect_tells_their_progress(
    tmp_path: Path, capsys: Any
) -> None:
    scans, out = write_archive(tmp_path), tmp_path / "out"
    models = [save_model(tmp_path / f"model{seed}", seed) for seed in (0, 1)]
    words = ["predict", str(tmp_path / "scans"), "--out", str(out), "--modality", "t2"]
    words += ["--files", "", "--parquet"]
    assert main([*words, "--model", str(models[0]), "--shard", "1/2"]) == 0
    assert "1 of 3 scans segmented, 2 left to other shards" in capsys.readouterr().out
    assert main(["inspect", str(out)]) == 0
    assert '"done": 1, "failed": 0, "left": 2' in capsys.readouterr().out
    assert main([*words, "--model", str(models[1]), "--shard", "0/2"]) == 1
    assert "made with other settings (model)" in capsys.readouterr().err
    assert main([*words, "--model", str(models[0]), "--shard", "0/2", "--threshold", "0.4"]) == 1
    assert "other settings (threshold, threshold_source)" in capsys.readouterr().err
    assert main([*words, "--model", str(models[0]), "--shard", "0/1", "--quiet"]) == 0
    assert main(["inspect", str(out), "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert facts["progress"] == {"scans": 3, "done": 3, "failed": 0, "left": 0}
    assert facts["versions"]["torch"]
    assert len(rows(out)) == len(scans) and not list(out.rglob("*.nii.gz"))
    assert json.loads((out / "manifest.json").read_text())["versions"]["torch"]


@pytest.mark.parametrize("shard", ["2/2", "x", "1", "-1/2"])
def test_a_shard_that_is_none_is_refused(shard: str) -> None:
    with pytest.raises(ValueError, match="shard must be like 0/4"):
        pick_shard(shard)


def test_processes_of_a_launch_share_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (pick_shard(None), pick_shard("1/4")) == ((0, 1), (1, 4))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (pick_shard(None), pick_shard("1/4")) == ((1, 2), (3, 8))


def test_only_the_last_process_of_a_launch_ends_with_a_code_for_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, model = write_archive(tmp_path, 2), save_model(tmp_path / "model")
    scans[0].write_bytes(b"damaged")
    words = ["predict", str(tmp_path / "scans"), "--out", str(tmp_path / "out"), "--modality", "t2"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, code in (("0", 0), ("1", 1)):
        monkeypatch.setenv("RANK", rank)
        assert main([*words, "--model", str(model), "--quiet"]) == code


def test_wrong_words_for_files_and_a_lacking_pyarrow_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = write_archive(tmp_path, 1)
    with pytest.raises(ValueError, match=r"files must be some of mask, scores.* got masks"):
        run(scans, files=("masks",))
    monkeypatch.setattr("modeling_rasalore.reports.tables.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"rasalore\[train\]"):
        run(scans)


@pytest.mark.slow
def test_a_cluster_gives_the_rows_and_masks_of_one_process(tmp_path: Path) -> None:
    scans = write_archive(tmp_path, 3)
    scans[1].write_bytes(b"no scan")
    model, alone, cluster = save_model(tmp_path / "model"), tmp_path / "alone", tmp_path / "cluster"
    words = ["predict", str(tmp_path / "scans"), "--model", str(model), "--modality", "t2"]
    words += ["--parquet", "--files", "mask", "--out"]
    assert main([*words, str(alone)]) == 1  # one scan failed
    done = subprocess.run(
        [sys.executable, "-m", "modeling_rasalore.cli", *words, str(cluster), "--ray-workers", "1"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-3000:]
    assert "2 of 3 scans segmented; results are in" in done.stdout
    assert "failed: " in done.stdout
    one, other = (rows(out) for out in (alone, cluster))
    assert one == other
    assert "no scan" not in one[0]["scan"] and one[1]["status"] == "failed"
    masks = sorted(path.relative_to(alone) for path in alone.rglob("*_mask.nii.gz"))
    assert len(masks) == 2
    for mask in masks:
        ours, theirs = (read_volume(out / mask).slices for out in (alone, cluster))
        assert (ours == theirs).all()


@pytest.mark.slow
def test_killed_shards_end_in_the_table_of_one_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "tests/helpers/killed_shards.py", str(tmp_path), "40"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same_table"] and found["same_files"]
    assert (found["rows"], found["files"], len(found["failed"])) == (40, 39, 1)
    assert found["drafts"] == []
    assert found["memory"]["end"] < found["memory"]["early"] + 20
