"""An archive in shards: one row per scan, whatever happens on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from predict_archive import main as predict_archive
from small_rasalore import make_model, small_config
from small_study import write_scans

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.prediction.archive import Archive, close_line, read_ahead, run_shard
from modeling_rasalore.prediction.run import RunSettings
from modeling_rasalore.scans.volumes import read_volume

ROOT = Path(__file__).parents[2]
SETTINGS = RunSettings(modality="t2")


def write_archive(folder: Path, count: int = 3) -> Archive:
    root = write_scans(folder / "scans", count)
    names = tuple(path.relative_to(root).as_posix() for path in sorted(root.glob("*/*_t2.nii.gz")))
    return Archive(root, names, folder / "out")


def run(archive: Archive, shard: tuple[int, int] = (0, 1)) -> dict[str, int]:
    processor = RasaloreImageProcessor(small_config().image_size, 1)
    return run_shard(archive, shard, make_model(), processor, SETTINGS, say=lambda line: None)


def rows(archive: Archive) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(archive.out / "results.parquet").to_pylist()
    return found


def test_every_scan_has_a_row_and_a_mask_on_its_own_grid(tmp_path: Path) -> None:
    archive = write_archive(tmp_path)
    assert run(archive) == {"scans": 3, "done": 3, "failed": 0, "left": 0}
    assert [row["scan"] for row in rows(archive)] == list(archive.names)
    for row in rows(archive):
        scan = read_volume(archive.root / row["scan"])
        mask = read_volume(
            archive.out / "files" / row["scan"].replace("_t2.nii.gz", "_t2_mask.nii.gz")
        )
        assert (mask.affine == scan.affine).all()
        voxel = 2.0 * 2.0 * 3.0 / 1000
        assert row["millilitres"] == pytest.approx((mask.slices > 0).sum() * voxel)
        assert row["slices"] == 14


def test_the_table_appears_with_the_last_shard(tmp_path: Path) -> None:
    archive = write_archive(tmp_path)
    assert run(archive, (1, 2))["left"] == 2
    assert not (archive.out / "results.parquet").exists()
    assert run(archive, (0, 2))["left"] == 0
    assert len(rows(archive)) == 3


def test_shards_may_be_cut_anew_and_nothing_is_done_twice(tmp_path: Path) -> None:
    archive = write_archive(tmp_path)
    run(archive, (0, 2))
    run(archive, (0, 1))
    lines = [p.read_text().splitlines() for p in (archive.out / "shards").iterdir()]
    assert sorted(map(len, lines)) == [1, 2]


def test_a_failure_is_listed_with_its_reason_and_tried_again(tmp_path: Path) -> None:
    archive = write_archive(tmp_path)
    scan = archive.root / archive.names[1]
    content = scan.read_bytes()
    scan.write_bytes(b"damaged")
    assert run(archive) == {"scans": 3, "done": 2, "failed": 1, "left": 0}
    failed = rows(archive)[1]
    assert failed["status"] == "failed" and "plain data" in failed["reason"]
    assert str(tmp_path) not in failed["reason"]
    scan.write_bytes(content)
    assert run(archive)["failed"] == 0
    assert rows(archive)[1]["status"] == "done"


def test_half_a_line_left_by_a_kill_does_not_count(tmp_path: Path) -> None:
    archive = write_archive(tmp_path)
    run(archive)
    (journal,) = (archive.out / "shards").iterdir()
    journal.write_bytes(journal.read_bytes()[:-20])
    assert archive.progress()["left"] == 1
    close_line(journal)
    assert archive.progress()["left"] == 1
    before = rows(archive)
    (archive.out / "results.parquet").unlink()
    assert run(archive)["left"] == 0
    assert rows(archive) == before


def test_reading_ahead_keeps_order_errors_and_a_bounded_number(tmp_path: Path) -> None:
    loaded: list[int] = []

    def load(item: int) -> int:
        loaded.append(item)
        return 1 // item

    ahead = read_ahead(load, iter([3, 2, 0, 1, 5, 6, 7, 8]), depth=2)
    first, future = next(ahead)
    assert (first, future.result()) == (3, 0)
    assert len(loaded) <= 3
    found = list(ahead)
    assert [item for item, _ in found] == [2, 0, 1, 5, 6, 7, 8]
    with pytest.raises(ZeroDivisionError):
        found[1][1].result()


def test_the_script_refuses_to_mix_two_models(tmp_path: Path, capsys: Any) -> None:
    archive = write_archive(tmp_path)
    for seed in (0, 1):
        make_model(seed).save_pretrained(tmp_path / f"model{seed}")
        RasaloreImageProcessor(16, 1).save_pretrained(tmp_path / f"model{seed}")
    words = [f"scans={archive.root}", f"out={archive.out}", "modality=t2", "files=[]"]
    assert predict_archive([*words, f"model={tmp_path}/model0", "shard=1/2"]) == 0
    assert "1 of 3 scans done, 0 failed, 2 left" in capsys.readouterr().out
    with pytest.raises(ValueError, match="made with other settings"):
        predict_archive([*words, f"model={tmp_path}/model1"])
    assert predict_archive([*words, f"model={tmp_path}/model0"]) == 0
    assert predict_archive([*words, f"model={tmp_path}/model0", "only_progress=true"]) == 0
    assert len(rows(archive)) == 3 and not (archive.out / "files").exists()
    assert json.loads((archive.out / "run.json").read_text())["versions"]["torch"]


@pytest.mark.parametrize("shard", ["2/2", "x", "1", "-1/2"])
def test_a_shard_that_is_none_is_refused(shard: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard must be like 0/4"):
        predict_archive([f"scans={tmp_path}", f"out={tmp_path}", "model=x", f"shard={shard}"])


@pytest.mark.slow
def test_a_cluster_gives_the_rows_and_masks_of_one_process(tmp_path: Path) -> None:
    archive = write_archive(tmp_path, 3)
    bad = archive.root / archive.names[1]
    bad.write_bytes(b"no scan")
    processor = RasaloreImageProcessor(small_config().image_size, 1)
    model = tmp_path / "model"
    make_model().save_pretrained(model)
    processor.save_pretrained(model)
    words = [f"scans={archive.root}", f"model={model}", "modality=t2"]
    alone, cluster = tmp_path / "alone", tmp_path / "cluster"
    assert predict_archive([*words, f"out={alone}"]) == 1  # one scan failed
    done = subprocess.run(
        [sys.executable, "train/predict_archive.py", *words, f"out={cluster}", "ray.workers=1"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-3000:]
    assert "2 of 3 scans done, 1 failed, 0 left" in done.stdout
    one, other = (pq.read_table(out / "results.parquet").to_pylist() for out in (alone, cluster))
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
        [sys.executable, "tests/helpers/forked_archive.py", str(tmp_path), "40"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same_table"] and found["same_files"]
    assert (found["rows"], found["files"], len(found["failed"])) == (40, 39, 1)
    assert found["drafts"] == []
    assert found["memory"]["end"] < found["memory"]["early"] + 20
