"""Competing systems see what `base` sees when asked: the scan's square, neighbours and mirror."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blobs import SHAPE, make_blobs
from small_study import benchmark, in_this_process
from test_baselines import TINY

# isort: split
from baselines.ae import Ae
from baselines.dae import Dae
from baselines.frames import BRAIN, to_grid
from baselines.gp_unet import GpUnet
from baselines.grids import ScanGrid, SliceGrid
from baselines.interface import LearnedSystem
from baselines.registry import LEARNED
from baselines.ts_cam import TsCam
from baselines.yoo import YooAll

from modeling_rasalore.benchmark.finished import comparable
from modeling_rasalore.benchmark.recipe import BenchmarkRecipe
from modeling_rasalore.benchmark.running import check_words
from modeling_rasalore.benchmark.systems import SeenSlices
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.phantoms import write_phantoms
from modeling_rasalore.data.splits import write_split
from modeling_rasalore.models.scan_view_rasalore import CHANNELS
from modeling_rasalore.pseudo_masks.criteria import is_brain

SPACING = (5.0, 1.0, 1.0)
ROWS = {row.name: row for row in LEARNED}


def seen(slices: list[np.ndarray], spacing: tuple[float, float, float] = SPACING) -> SeenSlices:
    """Slices as those of one scan, seen in its first sequence."""
    first = np.stack([image.reshape(-1, *image.shape[-2:])[0] for image in slices])
    see = ScanGrid(32).see
    assert see is not None
    return SeenSlices(slices, list(see(first, spacing)))


def brain_with(*blobs: tuple[slice, slice], value: float = 1.0) -> np.ndarray:
    """A brain (48, 40) of 0.5, cut off by the upper edge, with blobs of another value."""
    rows, columns = np.indices((48, 40))
    image = np.where((rows - 8) ** 2 + (columns - 22) ** 2 < 15**2, 0.5, 0).astype(np.float32)
    for blob in blobs:
        image[blob] = value
    return image


def recipe(**changes: Any) -> BenchmarkRecipe:
    return BenchmarkRecipe(**({"stage1": "s1", "out": "x"} | changes))


# --- What all systems share -----------------------------------------------------------------------
@pytest.mark.parametrize("system", list(TINY), ids=lambda system: system.__name__)
def test_scores_lie_in_the_slices_frame_and_survive_saving(
    system: type[LearnedSystem], tmp_path: Path
) -> None:
    sequences = 4 if system.ALL_SEQUENCES else 1
    slices, labels, _ = make_blobs(8, sequences=sequences)
    built = system(TINY[system], view="scan")
    built.fit(seen(slices), labels)
    scores = built.score(seen(slices))
    assert len(scores) == 8
    for score, image in zip(scores, slices, strict=True):
        assert score.shape == SHAPE and score.dtype == np.float32
        assert score.min() >= 0 and score.max() <= 1
        assert not score[image.reshape(-1, *SHAPE)[0] == 0].any()
    built.save(tmp_path / "system")
    again = system.load(tmp_path / "system", built.settings, "scan")
    assert all(map(np.array_equal, again.score(seen(slices)), scores))


def test_each_slice_by_itself_is_seen_as_before() -> None:
    slices, _, _ = make_blobs(4)
    built = Ae(TINY[Ae])
    assert built.see is None and isinstance(built.grid, SliceGrid) and built.channels == 1
    assert torch.equal(built.grid.images(slices), to_grid(slices, 32))
    assert "view" not in ROWS["ae"].facts(recipe())  # so that what is finished stays finished


def test_slices_without_their_scan_are_refused() -> None:
    slices, labels, _ = make_blobs(4)
    with pytest.raises(ValueError, match="sees a slice as part of its scan"):
        TsCam(TINY[TsCam], view="scan").fit(slices, labels)


# --- The square -----------------------------------------------------------------------------------
@pytest.mark.parametrize("names", [(), CHANNELS], ids=["alone", "channels"])
@pytest.mark.parametrize("spacing", [SPACING, (5.0, 1.0, 1.5)], ids=["square", "oblong"])
def test_a_map_made_in_the_square_returns_to_the_place_it_came_from(
    names: tuple[str, ...], spacing: tuple[float, float, float]
) -> None:
    blob = np.s_[5:9, 26:31]
    # Not the median, and not so bright that channels end there: a blob keeps its edges.
    image = brain_with(blob, value=0.504)
    slices = seen([image] * 3, spacing)
    box = slices.views[0].scan.box  # type: ignore[index]
    assert box.top < 0 and box.bottom < 48  # it reaches beyond the slice
    grid = ScanGrid(96, names)
    images = grid.images(slices)
    assert images.shape == (3, len(names) or 1, 96, 96)
    halfway = (0.5 + float(images[1, 0].max())) / 2  # the brain's median is 0.5
    back = grid.maps(images[:, 0], slices)
    assert back[1].shape == image.shape
    assert np.array_equal(back[1].numpy() > halfway, image > 0.502)


def test_the_slice_alone_keeps_its_scale() -> None:
    images = ScanGrid(96).images(seen([brain_with((slice(3, 9), slice(20, 31)))] * 2))
    assert float(images.max()) == pytest.approx(1)
    assert float(images[0, 0, 64, 48]) == pytest.approx(0.5)


def test_four_sequences_share_the_square_of_the_scored_one() -> None:
    first, other = brain_with(), brain_with((slice(5, 9), slice(26, 31)))
    slices = seen([np.stack([first, other, first * 0, other * 2])] * 2)
    built = YooAll(replace(TINY[YooAll], pixels=48), view="scan")
    images = built.grid.images(slices)
    alone = ScanGrid(48).images(seen([other] * 2))
    assert images.shape == (2, 4, 48, 48) and built.channels == 4
    assert torch.allclose(images[:, 1:2], alone) and torch.allclose(images[:, 3:], 2 * alone)
    assert not images[:, 2].any()


# --- Channels of the scan -------------------------------------------------------------------------
def test_the_background_of_channels_is_0_and_all_brain_is_above_it() -> None:
    dark = brain_with((slice(5, 9), slice(26, 31)), value=0.001)  # as dark as a ventricle
    grid = ScanGrid(96, CHANNELS)
    images = grid.images(seen([dark] * 2))
    alone = ScanGrid(96).images(seen([(dark > 0).astype(np.float32)] * 2))
    assert torch.equal(images[:, 0] > BRAIN, alone[:, 0] >= 0.5)
    assert not images[(images[:, :1] == 0).expand_as(images)].any()
    assert float(images[0, 0, 64, 48]) == pytest.approx(0.5)  # the median
    assert grid.levels is not None
    assert torch.equal(is_brain(images, grid.levels), images[:, 0] > 0)


def test_neighbours_and_the_other_hemisphere_are_channels() -> None:
    bright = brain_with((slice(8, 14), slice(29, 34)))
    images = ScanGrid(96, CHANNELS).images(seen([bright, brain_with(), brain_with()]))
    below, above, mirror = images[1, 1], images[1, 2], images[0, 3]
    assert float(below.max()) > 1 and float(above.max()) == pytest.approx(0.5)
    assert float(mirror.max()) > 0.2 and float(mirror.min()) < -0.05
    assert int(mirror.amax(0).argmax()) > 48 > int(mirror.amin(0).argmin())  # it lies to the right


def test_pretrained_weights_of_three_colours_take_three_channels() -> None:
    assert TsCam(TINY[TsCam], view="scan").channels == 3
    assert GpUnet(TINY[GpUnet], view="scan").channels == 4
    assert Dae(TINY[Dae], view="scan").channels == 1


# --- The benchmark --------------------------------------------------------------------------------
@pytest.mark.parametrize("row", LEARNED, ids=lambda row: row.name)
def test_every_row_sees_at_least_96_pixels_and_says_so(row: Any) -> None:
    alone, whole = row.facts(recipe()), row.facts(recipe(view="scan"))
    assert whole["view"] == "scan" and whole != alone
    assert whole["settings"] == alone["settings"] | {"pixels": 96}
    assert row.facts(recipe(view="scan", size="paper"))["settings"]["pixels"] >= 128
    assert row.make(recipe(view="scan")).see is not None


def test_folds_of_different_views_do_not_belong_in_one_table() -> None:
    views = ("slice", "scan")
    alone, whole = (
        comparable(ROWS["dae"].facts(recipe(view=view, size="paper")) | {"data": {}})
        for view in views
    )
    assert {key for key in whole if whole[key] != alone.get(key)} == {"view"}


def test_another_view_is_refused() -> None:
    with pytest.raises(ValueError, match="view must be slice or scan, got 'volume'"):
        check_words(recipe(view="volume"))


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Of a benchmark of DAE on five phantoms."""
    scans, stage = tmp_path / "scans", tmp_path / "stage1"
    write_phantoms(scans, 5, seed=3, healthy_patients=1, shape=(44, 54, 44), voxel_size=4.0,
                   processes=1)  # fmt: skip
    patients = find_patients(scans)
    stage.mkdir()
    split = {"train": patients[:2], "validation": patients[2:3], "test": patients[3:]}
    write_split(split, stage / "split.json")
    (stage / "run.json").write_text("{}")
    return [f"data.root={scans}", "data.skip_slices=8", f"stage1={stage}",
            f"out={tmp_path / 'out'}", "systems=dae"]  # fmt: skip


def test_scores_of_another_view_are_not_taken(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    monkeypatch.setattr(Dae, "SIZES", {"small": TINY[Dae]})
    fits: list[str] = []
    fit: Callable[..., None] = Dae.fit

    def counted(system: Dae, *args: Any) -> None:
        fits.append(type(system.grid).__name__)
        fit(system, *args)

    monkeypatch.setattr(Dae, "fit", counted)
    out = tmp_path / "out"
    for view in ("slice", "scan", "scan", "slice"):
        benchmark([*words, f"view={view}"])
        assert json.loads((out / "results.json").read_text())["meta"]["view"] == view
        table = (out / "results.md").read_text()
        assert ("in the square around their scan's brain" in table) == (view == "scan")
    assert fits == ["SliceGrid", "ScanGrid", "SliceGrid"]  # the second scan run was finished
