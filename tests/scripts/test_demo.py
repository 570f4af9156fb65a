"""train/demo.sh and train/folds.sh, the whole story, on toy scans and in a few steps."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modeling_rasalore.data.phantoms import write_phantoms

ROOT = Path(__file__).parents[2]
PHANTOMS = {"shape": (44, 54, 44), "voxel_size": 4.0, "processes": 1}
# In place of the interpreter: the script's own commands with fewer patients and steps.
HASTY = f"""#!{sys.executable}
import os, sys
words = sys.argv[1:]
small = [] if words[0].startswith("train/pool_folds") else ["data.skip_slices=8"]
if words[0].startswith("train/stage"):
    small += ["loop.max_steps=4", "loop.batch_size=8", "data.shuffle_buffer=50"]
    small += ["split.validation=1", "split.test=2"] if "split.test=20" in " ".join(words) else []
if words[0].startswith("train/stage2"):
    small += ["minimum_area=1", "synthetic_lesions.minimum_brain_area=100"]
if words[0].startswith("train/make_pseudo_masks") and "source=truth" not in words:
    small += ["minimum_probability=0"]
if "teacher=" in " ".join(words):  # after four steps it is sure of nothing
    small += ["uncertain_above=0", "uncertain_up_to=0"]
if "phantom" in words:
    from modeling_rasalore.data.phantoms import write_phantoms
    write_phantoms(words[words.index("phantom") + 1], 7, healthy_patients=1, **{PHANTOMS!r})
elif words[0].startswith("train/"):
    os.execv(sys.executable, [sys.executable, *words, *small])
else:
    os.execv(sys.executable, [sys.executable, *words])
"""


@pytest.fixture
def strangers(tmp_path: Path) -> Path:
    """Patients of other names than the demo's own synthetic ones."""
    folder = tmp_path / "scans"
    write_phantoms(folder, 7, seed=3, healthy_patients=1, **PHANTOMS)  # type: ignore[arg-type]
    for path in sorted(folder.rglob("*phantom*"), key=lambda found: -len(found.parts)):
        path.rename(path.with_name(path.name.replace("phantom", "0")))
    return folder


def tell(script: str, strangers: Path, out: Path, **told: str) -> None:
    """Run a story to its end, in a hurry."""
    out.mkdir()
    hasty = out / "python"
    hasty.write_text(HASTY)
    hasty.chmod(0o755)
    told |= {"DATA": str(strangers), "OUT": str(out), "PYTHON": str(hasty)}
    done = subprocess.run(
        ["sh", f"train/{script}"], cwd=ROOT, env=os.environ | told, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def scored(results: dict[str, Any]) -> set[str]:
    return {row["system"] for row in results["rows"] if row["dice"] is not None}


@pytest.mark.slow
def test_real_scans_start_on_synthetic_patients_and_end_in_a_table(
    strangers: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    tell("demo.sh", strangers, out)
    results = json.loads((out / "results.json").read_text())
    assert {"ddpt", "synthetic_only", "rasalore_without_sam", "ceiling"} <= scored(results)
    assert "BraTS2021_phantom" in (out / "start/stage1/split.json").read_text()
    assert all(name.startswith("BraTS2021_0") for name in results["meta"]["test_patients"])
    assert list((out / "prediction").rglob("*_mask.nii.gz"))


@pytest.mark.slow
def test_folds_score_every_patient_once_and_other_data_sets_each_time(
    strangers: Path, tmp_path: Path
) -> None:
    own = "threshold,rasalore_warm,rasalore_warm_selftrained"
    write_phantoms(tmp_path / "others", 2, seed=4, **PHANTOMS)  # type: ignore[arg-type]
    others = str(tmp_path / "others")
    tell("folds.sh", strangers, tmp_path / "out", FOLDS="2", SYSTEMS=own, CROSS=others)
    for data, pooled in ((strangers, "pooled"), (tmp_path / "others", "pooled/cross/others")):
        results = json.loads((tmp_path / "out" / pooled / "results.json").read_text())
        assert scored(results) == set(own.split(","))
        assert results["meta"]["test_patients"] == sorted(p.name for p in data.iterdir())
