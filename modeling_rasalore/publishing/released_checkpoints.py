"""Convert the authors' released files into model folders.

The released code stores stage 2 as two state dicts and a table, and stage 1 as three checkpoints
that also hold its optimizers. Every tensor of a file fills one part of a model; a file that leaves
a part empty, or holds anything more, is refused with a list of what does not fit.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..models.configuration_ddpt import PRESETS, DdptConfig
from ..models.configuration_rasalore import RasaloreConfig
from ..models.image_processing_rasalore import RasaloreImageProcessor
from ..models.modeling_ddpt import DdptModel
from ..models.modeling_rasalore import RasaloreModel
from .safe_reading import FilePath, read_checkpoint

# Released name -> the parts of our model that the tensor fills, first rows first. A part is a view
# of a parameter or buffer, in the released shape, so that copying into it fills the model.
Layout = dict[str, list[Tensor]]


# --- Layouts ----------------------------------------------------------------------------------
def fill(layout: Layout, stored: Any, path: FilePath) -> None:
    """Copy every stored tensor into the model.

    Raises:
        ValueError: lists the names that are missing, surplus, or of another shape; nothing is
            copied then.
    """
    if not isinstance(stored, Mapping):
        raise ValueError(f"{path} must hold named tensors, got {type(stored).__name__}.")
    misfits = describe_misfits(layout, stored)
    if misfits:
        raise ValueError(f"{path} does not fit the released layout. {misfits}.")
    for name, parts in layout.items():
        lengths = [len(part) for part in parts] if len(parts) > 1 else []
        pieces = stored[name].split(lengths) if lengths else [stored[name]]
        for part, piece in zip(parts, pieces, strict=True):
            part.copy_(piece)


def describe_misfits(layout: Layout, stored: Mapping[Any, Any]) -> str:
    """Return what of a file has no counterpart in a layout, or another shape; "" for a fit."""
    expected = {name: expected_shape(parts) for name, parts in layout.items()}
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in stored.items()}
    misfits = {
        "missing": [name for name in expected if name not in shapes],
        "surplus": [str(name) for name in shapes if name not in expected],
        "no tensor": [n for n in expected if n in shapes and not isinstance(stored[n], Tensor)],
        "misshaped": [
            f"{name} {shapes[name]} instead of {shape}"
            for name, shape in expected.items()
            if isinstance(stored.get(name), Tensor) and shapes[name] != shape
        ],
    }
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in misfits.items() if names)


def expected_shape(parts: list[Tensor]) -> tuple[int, ...]:
    """Return the shape of parts that stand below one another; a single part may have no rows."""
    return tuple(parts[0].shape if len(parts) == 1 else torch.cat(parts).shape)


def renamed_layout(state: Mapping[str, Tensor], prefixes: dict[str, str]) -> Layout:
    """Return the layout of tensors that differ in the beginning of their names alone."""
    return {
        theirs + name.removeprefix(ours): [value]
        for ours, theirs in prefixes.items()
        for name, value in state.items()
        if name.startswith(f"{ours}.")
    }


# --- Stage 2 ----------------------------------------------------------------------------------
ENCODER = {
    f"encoder.blocks.{i}.conv{j}": f"e{i + 1}.conv.conv{j}" for i in range(4) for j in (1, 2)
}
ENCODER |= {f"encoder.blocks.{i}.norm": f"e{i + 1}.norm" for i in range(4)}
ENCODER |= {
    "refiner.conv": "adapter1.conv.0",
    "refiner.conv_norm": "adapter1.conv.1",
    "refiner.up1": "adapter1.upconv1.0",
    "refiner.up1_norm": "adapter1.upconv1.1",
    "refiner.up2": "adapter1.upconv2.0",
    "refiner.up2_norm": "adapter1.upconv2.1",
    "refiner.skip": "adapter1.skip_conv",
    "spatial_attention.output": "adapter2.output_proj",
    "point_head.layers": "adapter2.FF",
}
DECODER = {
    "mask_decoder.output": "cross_attention.out_proj",
    "mask_decoder.up1": "upsample.0",
    "mask_decoder.up2": "upsample.2",
    "mask_decoder.head": "upsample.4",
    "mask_decoder.point_norm": "norm1",
    "mask_decoder.similarity_norm": "norm2",
}
PROJECTIONS = ("query", "key", "value")


def load_released_rasalore(
    encoder: FilePath, decoder: FilePath, location_embeddings: FilePath
) -> RasaloreModel:
    """Return the `released` preset with the weights of the authors' files, in evaluation mode.

    Args:
        encoder: `Encoder_Model.pth`, a state dict.
        decoder: `Decoder_Model.pth`, a state dict.
        location_embeddings: `Candidate_Prompt_Embedding*.pt`, one tensor (1024, 256).

    Raises:
        OSError: for a file that is not there.
        ValueError: for a file that cannot be read safely, or does not fit; all misfits are listed.
    """
    model = RasaloreModel(RasaloreConfig.preset("released"))
    fill(encoder_layout(model), read_checkpoint(encoder), encoder)
    fill(decoder_layout(model), read_checkpoint(decoder), decoder)
    table = {"table": read_checkpoint(location_embeddings)}
    fill({"table": [model.location_embeddings.table]}, table, location_embeddings)
    return model.eval()


def encoder_layout(model: RasaloreModel) -> Layout:
    """Return the layout of `Encoder_Model.pth`; its attention heads are stored one by one."""
    state = model.state_dict()
    layout = renamed_layout(state, ENCODER)
    for part in PROJECTIONS:
        for kind in ("weight", "bias"):
            joint = state[f"spatial_attention.{part}.{kind}"]
            for head, rows in enumerate(joint.chunk(model.config.num_attention_heads)):
                layout[f"adapter2.{part}_projections.{head}.{kind}"] = [rows]
    layout["adapter2.positional_noise_encoding"] = [state["spatial_attention.noise.noise"]]
    return layout


def decoder_layout(model: RasaloreModel) -> Layout:
    """Return the layout of `Decoder_Model.pth`; its three projections are stored as one."""
    state = model.state_dict()
    layout = renamed_layout(state, DECODER)
    for kind in ("weight", "bias"):
        layout[f"cross_attention.in_proj_{kind}"] = [
            state[f"mask_decoder.{part}.{kind}"] for part in PROJECTIONS
        ]
    side = model.config.image_size // 2
    noise = state["mask_decoder.noise.noise"]  # (side * side, d); theirs is (1, d, side, side)
    layout["positional_encoding"] = [noise.T.unflatten(1, (side, side))[None]]
    return layout


# --- Stage 1 ----------------------------------------------------------------------------------
PROMPT_LEARNER = "prompt_learner"
VISUAL_PROMPTS = "image_encoder.transformer.ctx_learner"
CLASS_AWARE_PROMPTS = "image_encoder.transformer.extractor"
CLASS_AWARE = {
    "query": "meta_nets.0",
    "query_projection": "attns.0.qmlp",
    "key_projection": "attns.0.kmlp",
    "value_projection": "attns.0.vmlp",
    "classifier_norm": "lns.0",
    "classifier": "classfiers.0",
    "prompt_norm": "lns2.0",
}
EPOCH = re.compile(r"model\.pth\.tar-(\d+)")


def load_released_ddpt(folder: FilePath, clip: FilePath, **fields: Any) -> DdptModel:
    """Return the `released` preset with the prompts of the authors' files, in evaluation mode.

    The words around the learned context keep the embeddings that the files hold.

    Args:
        folder: holds `prompt_learner`, `image_encoder.transformer.ctx_learner` and
            `image_encoder.transformer.extractor`, each with `model.pth.tar-<epoch>`; the latest
            epoch that all three have is read.
        clip: repo id or folder of the CLIP that the prompts were tuned on.
        fields: of `DdptConfig`, where the files were trained with others, for example
            `class_token_position="middle"`, or `revision` of a repo id.

    Raises:
        OSError: for files that are not there, or a backbone that cannot be had.
        ValueError: for a file that cannot be read safely, or does not fit; all misfits are listed.
    """
    paths = latest_epoch(Path(folder))
    source = str(Path(clip).absolute()) if Path(clip).is_dir() else str(clip)
    preset = {**PRESETS["released"], "stored_prompt_words": True, **fields}
    model = DdptModel.from_backbone(DdptConfig.from_clip(source, **preset))
    fill_text_prompts(model, paths[PROMPT_LEARNER])
    visual = {"ctx": [model.state_dict()["visual_prompts"]]}
    class_aware = model.class_aware_prompts.state_dict()
    extractor = renamed_layout(class_aware, CLASS_AWARE)
    extractor["ctx"] = [class_aware["free_tokens"][None]]
    for name, layout in ((VISUAL_PROMPTS, visual), (CLASS_AWARE_PROMPTS, extractor)):
        fill(layout, read_state_dict(paths[name]), paths[name])
    return model.eval()


def fill_text_prompts(model: DdptModel, path: Path) -> None:
    """Copy the learned context, and the embeddings of the words around it, into the model."""
    state = model.state_dict()
    context, words = state["text_prompts.context"], state["text_prompts.words"]
    lengths, width = model.text_prompts.count_words(), context.shape[1]
    room = model.config.clip_config.text_config.max_position_embeddings
    prefix = torch.empty(len(lengths), 1, width)  # start
    # Class word, full stop, end, and padding, which no earlier token sees.
    suffix = torch.empty(len(lengths), room - 1 - len(context), width)
    layout = {"ctx": [context], "token_prefix": [prefix], "token_suffix": [suffix]}
    fill(layout, read_state_dict(path), path)
    sentences = torch.cat([prefix, suffix], dim=1)
    rows = [sentence[:length] for sentence, length in zip(sentences, lengths, strict=True)]
    words.copy_(torch.cat(rows))


def read_state_dict(path: Path) -> Any:
    """Return the weights in a checkpoint that holds more; ValueError where there are none."""
    stored = read_checkpoint(path)
    if not isinstance(stored, Mapping) or "state_dict" not in stored:
        raise ValueError(f"{path} must hold a 'state_dict', as the released training saves it.")
    return stored["state_dict"]


def latest_epoch(folder: Path) -> dict[str, Path]:
    """Return each prompt file of the latest epoch that all have; OSError where there is none."""
    names = (PROMPT_LEARNER, VISUAL_PROMPTS, CLASS_AWARE_PROMPTS)
    epochs = [
        {int(m[1]) for p in (folder / name).glob("*") if (m := EPOCH.fullmatch(p.name))}
        for name in names
    ]
    common = set.intersection(*epochs)
    if not common:
        raise FileNotFoundError(
            f"{folder} must hold {', '.join(f'{name}/model.pth.tar-<epoch>' for name in names)} "
            f"of one epoch, found epochs {', '.join(str(sorted(e)) for e in epochs)}."
        )
    return {name: folder / name / f"model.pth.tar-{max(common)}" for name in names}


# --- Writing ----------------------------------------------------------------------------------
def released_processor(model: RasaloreModel | DdptModel) -> RasaloreImageProcessor:
    """Return what prepares slices as the released weights expect them."""
    if isinstance(model, RasaloreModel):  # trained on 0 .. 255
        return RasaloreImageProcessor(model.config.image_size, rescale_factor=255.0)
    vision = model.config.clip_config.vision_config
    return RasaloreImageProcessor(
        vision.image_size,
        vision.num_channels,
        gamma=1.0,
        crop_to_brain=False,
        image_mean=OPENAI_CLIP_MEAN,
        image_std=OPENAI_CLIP_STD,
    )


def save_converted(
    model: PreTrainedModel, processor: Any, folder: Path, notices: Mapping[str, str] | None = None
) -> Path:
    """Return `folder`, holding model and image processor; it appears complete or not at all.

    Args:
        notices: texts to keep beside the weights, by file name.

    Raises:
        ValueError: for a folder that exists, so that no other model's files stay among these.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists; choose another folder for the converted model.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".converted-") as temporary:
        draft = Path(temporary) / folder.name
        model.save_pretrained(draft)
        processor.save_pretrained(draft)
        for name, text in (notices or {}).items():
            (draft / name).write_text(text, encoding="utf-8")
        os.replace(draft, folder)
    return folder
