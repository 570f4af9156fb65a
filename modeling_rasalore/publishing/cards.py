"""Fill the templates of model and data cards with what a run wrote about itself."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from ..evaluation.tables import results_table
from ..provenance import DISCLAIMER

Row = Mapping[str, Any]  # of results.json

CLAIMED_THRESHOLDS = ("0.5", "label_free")  # an oracle threshold supports no claim


@dataclass(frozen=True)
class ModelFacts:
    """What a model card states.

    Attributes:
        repo: "user/name" it is published as.
        stage: "ddpt" or "rasalore".
        modality: MRI sequence.
        data_name, data_license: scans it was trained and scored on, and their licence.
        license: of the weights, an identifier of the Hub.
        parameters: how many the model has.
        backbone: repo id of the frozen CLIP, None where there is none.
        skip_slices: lowest and highest slices left out, as in the recipe.
        run: content of run.json.
        row: system of results.json that is this model.
        rows: of results.json, on the same split; empty where none were published.
        thresholds: of calibration.json; empty where the model was not calibrated.
        training_command, benchmark_command: what makes the weights and the scores.
        sees_scans: whether the model sees each slice as part of its scan.
    """

    repo: str
    stage: str
    modality: str
    data_name: str
    data_license: str
    license: str
    parameters: int
    backbone: str | None
    skip_slices: int | str
    run: Mapping[str, Any]
    row: str
    rows: Sequence[Row]
    thresholds: Sequence[Mapping[str, Any]]
    training_command: str
    benchmark_command: str
    sees_scans: bool = False


@dataclass(frozen=True)
class DataFacts:
    """What a data card states.

    Attributes:
        repo: "user/name" it is published as.
        modality: MRI sequence.
        data_name, data_license: the scans it was made of, and their licence.
        license: of the slices, an identifier of the Hub or a name.
        skip_slices: lowest and highest slices left out.
        with_masks: whether true masks lie beside the slices.
        split_sha256: hash of the split by patient.
        splits: a row of counts per split.
    """

    repo: str
    modality: str
    data_name: str
    data_license: str
    license: str
    skip_slices: int
    with_masks: bool
    split_sha256: str
    splits: Sequence[Mapping[str, Any]]


def model_card(facts: ModelFacts, template: Path) -> ModelCard:
    """Return the card of a model; ValueError where its metadata is not what the Hub reads."""
    title = facts.repo.split("/")[-1]
    metadata = ModelCardData(
        model_name=title,
        **license_fields(facts.license),
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["rasalore", "brain-mri", "medical-imaging", "weak-supervision", facts.stage],
        base_model=facts.backbone,
        eval_results=eval_results(facts) or None,
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(template),
        title=title,
        disclaimer=DISCLAIMER,
        masks=facts.run.get("pseudo_masks") or {},
        table=results_table(facts.rows) if facts.rows else "",
        **vars(facts),
    )
    return ModelCard(str(card))  # read back as the Hub does


def eval_results(facts: ModelFacts) -> list[EvalResult]:
    """Return the `model-index` metadata: the model's scores, as shares of 1, with intervals."""
    results = []
    for row in facts.rows:
        if row["system"] != facts.row:
            continue
        at = f"{row['view']} view, threshold {row['threshold']}"
        if row["threshold"] in CLAIMED_THRESHOLDS and row.get("dice") is not None:
            results.append(eval_result(facts, row, "dice", f"Dice ({at})"))
        if row["threshold"] == "0.5" and row.get("average_precision") is not None:  # of any
            name = f"Average precision ({row['view']} view)"
            results.append(eval_result(facts, row, "average_precision", name))
    return results


def eval_result(facts: ModelFacts, row: Row, name: str, title: str) -> EvalResult:
    """Return one score of one row."""
    limits = [row[f"{name}_low"], row[f"{name}_high"]]
    interval = None if None in limits else [round(limit, 4) for limit in limits]
    return EvalResult(
        task_type="image-segmentation",
        dataset_type=slug(facts.data_name),
        dataset_name=facts.data_name,
        dataset_config=facts.modality,
        dataset_split="test",
        metric_type=name,
        metric_name=title,
        metric_value=round(row[name], 4),
        metric_args={"patients": row["patients"], "interval_95": interval},
    )


def data_card(facts: DataFacts, template: Path) -> DatasetCard:
    """Return the card of a data set; its metadata tells `datasets` where each split lies."""
    kinds = {"default": "data", "masks": "masks"} if facts.with_masks else {"default": "data"}
    configs = [
        {
            "config_name": name,
            "data_files": [
                {"split": row["split"], "path": f"{kind}/{row['split']}/*.parquet"}
                for row in facts.splits
            ],
        }
        for name, kind in kinds.items()
    ]
    title = facts.repo.split("/")[-1]
    metadata = DatasetCardData(
        pretty_name=title,
        **license_fields(facts.license),
        task_categories=["image-segmentation", "image-classification"],
        tags=["rasalore", "brain-mri", "medical-imaging"],
        configs=configs,
    )
    card = DatasetCard.from_template(
        metadata, template_path=str(template), title=title, **vars(facts)
    )
    return DatasetCard(str(card))


def license_fields(name: str) -> dict[str, Any]:
    """Return a licence as the Hub states it: its identifier, or "other" with its name."""
    if re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        return {"license": name}
    return {"license": "other", "license_name": slug(name)}


def slug(name: str) -> str:
    """Return a name as an identifier: lower case, words joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
