"""Model and data cards: a template, filled with what a run wrote about itself."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from ..evaluation.tables import results_table
from ..provenance import DISCLAIMER

Row = Mapping[str, Any]  # of results.json

# The rows of results.json that score a stage's own weights.
OWN_SYSTEMS = {"ddpt": ("ddpt",), "rasalore": ("rasalore", "rasalore_without_sam")}
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
        skip_slices: lowest and highest slices left out.
        run: content of run.json.
        rows: of results.json, on the same split; empty where none were published.
        thresholds: of calibration.json; empty where the model was not calibrated.
        training_command, benchmark_command: what makes the weights and the scores.
    """

    repo: str
    stage: str
    modality: str
    data_name: str
    data_license: str
    license: str
    parameters: int
    backbone: str | None
    skip_slices: int
    run: Mapping[str, Any]
    rows: Sequence[Row]
    thresholds: Sequence[Mapping[str, Any]]
    training_command: str
    benchmark_command: str


@dataclass(frozen=True)
class DataFacts:
    """What a data card states; `splits` has one row of counts per split."""

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
    """The card of a model; ValueError where its metadata is not what the Hub reads."""
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
    """The `model-index` metadata: this model's scores, as shares of 1 with their intervals."""
    results = []
    for row in facts.rows:
        if row["system"] not in OWN_SYSTEMS[facts.stage]:
            continue
        at = f"{row['view']} view, threshold {row['threshold']}"
        if row["threshold"] in CLAIMED_THRESHOLDS and row.get("dice") is not None:
            results.append(eval_result(facts, row, "dice", f"Dice ({at})"))
        if row["threshold"] == "0.5" and row.get("average_precision") is not None:  # of any
            name = f"Average precision ({row['view']} view)"
            results.append(eval_result(facts, row, "average_precision", name))
    return results


def eval_result(facts: ModelFacts, row: Row, name: str, title: str) -> EvalResult:
    """One score of one row."""
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
    """The card of a data set of slices; its metadata tells `datasets` where each split lies."""
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
    """A licence as the Hub's metadata states it: its identifier, or "other" with its name."""
    if re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        return {"license": name}
    return {"license": "other", "license_name": slug(name)}


def slug(name: str) -> str:
    """A name as an identifier: lower case, words joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
