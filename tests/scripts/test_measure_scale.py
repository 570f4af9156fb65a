"""The script that measures scale, on tiny scans and networks."""

import json
from pathlib import Path

import pytest
import scale
from small_study import write_scans

ROOT = Path(__file__).parents[2]


def test_the_cost_of_a_million_scans_names_its_bottleneck(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scans(tmp_path / "scans", 1)
    recipe = scale.ScaleRecipe(
        out=str(tmp_path / "scale"),
        root=str(tmp_path / "scans"),
        stage1=str(ROOT / "hub_configs" / "ddpt-tiny"),
        stage2=str(ROOT / "hub_configs" / "rasalore-tiny"),
        scans=1,
        skip_slices=1,
    )
    scale.main(recipe)
    results = json.loads((tmp_path / "scale" / "scale.json").read_text())
    assert list(results["stages"]) == [
        *("decode", "prepare", "stage 1", "heatmap", "stage 2", "write")
    ]
    million = results["million_scans"]
    slowest = max(
        ("decode", "prepare", "stage 2", "write"),
        key=lambda name: results["stages"][name]["seconds_per_scan"],
    )
    assert million["bottleneck"] == slowest
    assert million["bottleneck"] in capsys.readouterr().out
