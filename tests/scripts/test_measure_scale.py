"""The script that measures scale, on tiny scans and networks."""

import json
from pathlib import Path

import growth
import pytest
import scale
import torch
from small_rasalore import small_config
from small_study import write_scans

from modeling_rasalore.data.layouts import find_patients

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
        growth=False,
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


def test_an_exponent_is_that_of_the_law_it_was_computed_by() -> None:
    sizes = [2, 4, 8]
    for exponent in (0.0, 0.5, 1.0, 2.0):
        seconds = [3 * size**exponent for size in sizes]
        assert growth.fit_exponent(sizes, seconds) == pytest.approx(exponent, abs=1e-9)


def test_every_series_does_as_much_work_as_its_size_says(tmp_path: Path) -> None:
    scans = [p.images["t2"] for p in find_patients(write_scans(tmp_path / "scans", 8))]
    series = growth.list_series(small_config(), scans, tmp_path / "out", torch.device("cpu"))
    assert list(series) == ["slices", "patients", "points", "pixels", "processes", "shards"]
    for name in ("patients", "shards"):
        series[name].work_of(2)()
    assert len(list((tmp_path / "out" / "2_1_0").glob("**/*_mask.nii.gz"))) == 2
    assert len(list((tmp_path / "out" / "8_2_0" / "journals").glob("*.jsonl"))) == 2
    assert growth.least_seconds(lambda: 0.5) == 0.5
    for name in ("slices", "points", "pixels"):
        assert growth.least_seconds(series[name].work_of(series[name].sizes[0])) >= 0
