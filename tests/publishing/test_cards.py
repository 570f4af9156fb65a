"""Cards say what the run says, their metadata is what the Hub reads, and claims are honest."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from loopback_hub import card_problems

from modeling_rasalore.evaluation.rows import PatientScores, Thresholds, evaluate_system
from modeling_rasalore.provenance import DISCLAIMER
from modeling_rasalore.publishing.cards import (
    DataFacts,
    ModelFacts,
    data_card,
    eval_results,
    model_card,
)

TEMPLATES = Path(__file__).parents[2] / "hub_configs"
RUN = {"split_sha256": "f00d", "criterion": "agreement", "training_slices": 12, "commit": "abc1234",
       "seed": 3, "steps": 40, "pseudo_masks": {"segmenter": None}}  # fmt: skip


def rows(system: str) -> list[dict[str, Any]]:
    """Rows of results.json: two patients with one square each."""
    random = np.random.default_rng(0)
    truth = np.zeros((3, 32, 32), bool)
    truth[1, 4:24, 4:24] = True
    patients = [
        PatientScores(
            scores=(0.6 * truth + 0.4 * random.random(truth.shape)).astype(np.float32),
            truth=truth,
            brain=np.ones_like(truth),
            spacing=(1.0, 1.0, 1.0),
            patient_id=f"patient{number}",
        )
        for number in range(2)
    ]
    title = {"threshold": "Intensity threshold"}.get(system, system)
    return [
        row | {"title": title}
        for row in evaluate_system(system, patients, Thresholds(0.3, 0.01), "t2")
    ]


FACTS = ModelFacts(
    repo="me/rasalore",
    stage="rasalore",
    modality="t2",
    data_name="BraTS 2021",
    data_license="registered access",
    license="apache-2.0",
    parameters=1234567,
    backbone=None,
    skip_slices=15,
    run=RUN,
    row="rasalore",
    rows=[*rows("threshold"), *rows("rasalore")],
    thresholds=[],
    training_command="accelerate launch train/stage2.py",
    benchmark_command="python train/run_benchmark.py",
)


def card(**changes: Any) -> ModelCard:
    return model_card(replace(FACTS, **changes), TEMPLATES / "model_card.md")


def test_the_model_index_reads_back_as_the_scores_that_went_in() -> None:
    name, read = model_index_to_eval_results(card().data.to_dict()["model-index"])
    assert name == "rasalore"
    key = [(result.metric_name, result.metric_value, result.metric_args) for result in read]
    written = eval_results(FACTS)
    assert key == [(r.metric_name, r.metric_value, r.metric_args) for r in written]
    own = {(r["view"], r["threshold"]): r for r in FACTS.rows if "rasalore" in r["system"]}
    dice = {result.metric_name: result for result in read}["Dice (volume view, threshold 0.5)"]
    expected = own["volume", "0.5"]
    assert dice.metric_value == round(expected["dice"], 4)
    assert dice.metric_args == {
        "patients": 2,
        "interval_95": [round(expected["dice_low"], 4), round(expected["dice_high"], 4)],
    }


def test_neither_an_oracle_nor_another_system_enters_the_metadata() -> None:
    results = eval_results(FACTS)
    assert len(results) == 6  # two views x (Dice at two thresholds, average precision)
    assert not any("oracle" in str(result.metric_name) for result in results)
    assert eval_results(replace(FACTS, rows=rows("ceiling"))) == []
    several = [*FACTS.rows, *rows("rasalore_poster")]
    assert len(eval_results(replace(FACTS, rows=several))) == len(results)


def test_the_metadata_is_what_the_hub_takes() -> None:
    other = card(license="Registered access (no transfer)")
    for written in (card(), card(rows=[]), other):
        assert card_problems(written.content) == []
    assert other.data.to_dict()["license_name"] == "registered-access-no-transfer"


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("license: apache-2.0", "license: Apache 2"),
        ("    - type: dice", "    - kind: dice"),
        ("      type: image-segmentation", "      nothing: image-segmentation"),
        ("      type: brats-2021", "      nothing: brats-2021"),
        (
            "---\n",
            "",
        ),
    ],
)
def test_a_card_that_the_hub_would_refuse_is_told_apart(right: str, wrong: str) -> None:
    content = card().content
    assert right in content
    assert card_problems(content.replace(right, wrong))


def test_the_card_lists_calibrated_thresholds_or_says_that_there_are_none() -> None:
    row = {"rate": 0.05, "unit": "slices", "threshold": 0.61234, "scans": 3, "slices": 60,
           "voxels": 9000}  # fmt: skip
    text = card(thresholds=[row]).text
    measured = "| 0.6123 | 3 scans, 60 slices, 9000 voxels |"
    assert f"| 5 % of healthy slices, all scans together {measured}" in text
    promise = "in at most 1 of 4 scans are more than 5 % of healthy slices marked"
    assert f"| {promise} {measured}" in card(thresholds=[row | {"promise": promise}]).text
    assert "--false-alarms 0.05 --per slices" in text
    assert "None was calibrated" in card().text
    assert "## Thresholds" not in card(stage="ddpt", row="ddpt", rows=rows("ddpt")).text


def test_a_card_without_scores_says_so_and_has_no_model_index() -> None:
    without = card(rows=[])
    assert "model-index" not in without.data.to_dict()
    assert "None were published with these weights" in without.text


@pytest.mark.parametrize(
    "stated",
    [
        DISCLAIMER,
        "an empty mask does not exclude disease",
        "BraTS 2021, t2; licence: registered access",
        "1,234,567 parameters",
        "`f00d`",
        "commit `abc1234`, seed 3, 40 steps",
        "python train/run_benchmark.py",
        "| Intensity threshold | t2 | volume | 0.5 |",
        'revision": "<commit>"',
        "@inproceedings{",
    ],
)
def test_a_card_states_what_a_reader_must_know(stated: str) -> None:
    assert stated in card().text


def test_the_contamination_statement_follows_the_run() -> None:
    assert "No prompted segmenter" in card().text
    refined = card(run={**RUN, "pseudo_masks": {"segmenter": "some/medsam"}}).text
    assert "refined by `some/medsam`" in refined and "may include BraTS" in refined
    assert "No prompted segmenter" not in refined


def test_a_ceiling_is_not_called_weakly_supervised() -> None:
    ceiling = card(run={**RUN, "pseudo_masks": {"oracle": True}}).text
    assert "trained on true masks" in ceiling
    assert "without any pixel label" not in ceiling


def test_stage_1_names_its_backbone() -> None:
    backbone = "openai/clip-vit-base-patch32"
    ddpt = card(stage="ddpt", backbone=backbone, row="ddpt", rows=rows("ddpt"))
    assert ddpt.data.to_dict()["base_model"] == backbone
    assert f"Backbone: {backbone}" in ddpt.text
    assert "rasalore predict" not in ddpt.text  # it segments no volume


def test_nothing_of_the_template_is_left_over() -> None:
    for text in (card().content, card(rows=[]).content, card(stage="ddpt").content):
        assert not any(mark in text for mark in ("{{", "}}", "{%", "None.", "Undefined"))


def test_a_data_card_tells_where_each_split_lies() -> None:
    counts = {"patients": 3, "slices": 50, "unhealthy": 20, "healthy": 25, "neither": 5}
    facts = DataFacts("me/slices", "t2", "BraTS 2021", "other", "other", 15, True, "f00d",
                      [{"split": "train", **counts}])  # fmt: skip
    written = data_card(facts, TEMPLATES / "data_card.md")
    assert written.data.to_dict()["configs"] == [
        {
            "config_name": "default",
            "data_files": [{"split": "train", "path": "data/train/*.parquet"}],
        },
        {
            "config_name": "masks",
            "data_files": [{"split": "train", "path": "masks/train/*.parquet"}],
        },
    ]
    assert "| train | 3 | 50 | 20 | 25 | 5 |" in written.text
    assert "has `mask`" in written.text
    without = data_card(replace(facts, with_masks=False), TEMPLATES / "data_card.md")
    assert "has `mask`" not in without.text
    assert len(without.data.to_dict()["configs"]) == 1


def test_the_card_of_a_model_that_sees_whole_scans_gives_it_one() -> None:
    text, other = str(card(sees_scans=True)), str(card())
    assert "inputs = processor(slices, views=views, return_tensors" in text
    assert "logits.sigmoid(), slices, views=views)" in text and "spacing=spacing" in text
    assert "views" not in other.partition("## How to run")[2].partition("## Training")[0]
