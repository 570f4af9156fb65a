"""What is assembled states whose scores it holds, and only facts that others may read."""

import json
from pathlib import Path

import numpy as np
import pytest
import small_rasalore

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.publishing import checks
from modeling_rasalore.publishing.assembly import (
    PushRecipe,
    public_results,
    require_row,
    what_to_publish,
    without_paths,
)


def test_scores_of_another_data_set_are_not_published_as_the_model_s(tmp_path: Path) -> None:
    meta = {"split_sha256": "a", "learned_from": {"root": "x"}, "scored_on": {"root": "x"}}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"meta": meta, "rows": []}))
    assert public_results(path, {"split_sha256": "a"})["meta"] == {"split_sha256": "a"}
    path.write_text(json.dumps({"meta": {**meta, "scored_on": {"root": "y"}}, "rows": []}))
    with pytest.raises(ValueError, match="scores y, another data set than the run's"):
        public_results(path, {"split_sha256": "a"})


def test_a_table_of_several_runs_is_no_model_s(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"meta": {"runs": []}, "rows": []}))
    with pytest.raises(ValueError, match="a table of several runs, which no single model has made"):
        public_results(path, {"split_sha256": "a"})


def test_of_folders_only_the_names_are_published(tmp_path: Path) -> None:
    facts = {"segmenter": str(tmp_path / "medsam"), "networks": [str(tmp_path)], "threshold": 0.5}
    told = {"segmenter": "medsam", "networks": [tmp_path.name], "threshold": 0.5}
    assert without_paths({"pseudo_masks": facts}) == {"pseudo_masks": told}
    assert without_paths({"segmenter": "user/medsam"}) == {"segmenter": "user/medsam"}


def test_a_model_claims_only_a_row_that_is_its_own() -> None:
    rows = [{"system": "ddpt"}, {"system": "rasalore_poster"}, {"system": "rasalore_poster"}]
    require_row("rasalore_poster", rows, "results.json")
    with pytest.raises(ValueError, match="no row 'rasalore', only ddpt, rasalore_poster; say"):
        require_row("rasalore", rows, "results.json")


def test_one_thing_is_published_at_a_time_and_says_where_its_scans_come_from(
    tmp_path: Path,
) -> None:
    folder = str(tmp_path)
    for recipe, message in (
        (PushRecipe(), "got none"),
        (PushRecipe(stage1=folder, space=folder), "got stage1 and space"),
        (PushRecipe(stage2=f"{folder}/none"), "there is none at"),
        (PushRecipe(stage2=folder, data_name="x"), "add data_license="),
        (PushRecipe(scans=folder, data_name="x", data_license="y"), "add split="),
    ):
        with pytest.raises(ValueError, match=message):
            what_to_publish(recipe)
    assert what_to_publish(PushRecipe(space=folder)) == "space"


def test_a_folder_named_from_here_is_loaded_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_rasalore.make_model()
    processor = RasaloreImageProcessor(model.config.image_size, 1)
    monkeypatch.chdir(tmp_path)
    asked = []

    def refuse(source: Path, images: np.ndarray) -> None:
        asked.append(source)
        raise ValueError("enough")

    monkeypatch.setattr(checks, "outputs_without_package", refuse)
    with pytest.raises(ValueError, match="enough"):
        checks.check_model(model, processor, Path("published"))
    assert asked == [tmp_path / "published"]  # else it would be a repo id of the Hub
