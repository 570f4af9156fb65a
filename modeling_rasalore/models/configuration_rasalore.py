"""Define a RASALoRE network, stage 2: its fields, presets and checks (poster, "Stage 2")."""

import difflib
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

from transformers import PreTrainedConfig


class RasaloreConfig(PreTrainedConfig):
    """Architecture and loss of `RasaloreModel`.

    The defaults are the `poster` preset. `RasaloreConfig.preset(name)` returns `poster`,
    `released` (the authors' code, number by number), `base` (slices seen with their scan) or
    `tiny` (two cores, minutes).

    Raises:
        ValueError: for a misspelt field or a combination that cannot be built.
    """

    model_type = "rasalore"

    # --- Input and output -------------------------------------------------------------------
    # Side of the square input slice in pixels; the score map is twice as large.
    image_size: int = 128
    # 1 for one MRI sequence; more when co-registered sequences are stacked as channels, or when
    # the image processor shows a slice with its neighbours and its mirror image.
    num_channels: int = 1
    # MRI sequence it was trained on, such as "t2"; None: unknown. Scans of another are warned of.
    modality: str | None = None
    # Divides the logits outside training, so that scores say how sure the network is; no mask at
    # 0.5 changes. Poster and released: 1. Where lesions are painted, train/stage2.py fits it.
    temperature: float = 1.0

    # --- Encoder ----------------------------------------------------------------------------
    # "plain": as published, three blocks at full resolution, one at half of it. "pyramid": blocks
    # at S, S/2, S/4 and S/8, joined from coarse to fine, so that a feature sees most of the slice.
    encoder: Literal["plain", "pyramid"] = "plain"

    # --- Size: one dial ---------------------------------------------------------------------
    # Width of the first encoder block. Blocks are 1, 2, 4 and 8 times as wide, and the last
    # width is the embedding width d = 8 * base_channels.
    base_channels: int = 32
    # Candidate points per side: k = grid_size ** 2 points.
    grid_size: int = 32
    # Cells per side of the refiner's output R(X). The poster gives every candidate point its own
    # cell (= grid_size); the released code pools to half the input (64).
    refiner_grid: int = 32
    num_attention_heads: int = 4
    # Width of one head of region-aware spatial attention; None: d / heads, the standard choice.
    # The released code gives every head the full width d.
    attention_head_dim: int | None = None

    # --- Location embeddings (LoRE) ---------------------------------------------------------
    # "random": fixed Fourier features of the candidate points; "learned": the same start, trained;
    # "none": zeros, and "aliased": whole frequencies as released, both for ablation.
    location_embeddings: Literal["random", "learned", "aliased", "none"] = "random"
    location_seed: int = 0
    # Standard deviation of the random frequencies, in cycles per half slice. The released code
    # divides its frequencies down to integers, so that only 256 of 1024 rows are distinct; real
    # frequencies keep every candidate point apart.
    location_scale: float = 1.0

    # --- Regularisation ---------------------------------------------------------------------
    # Noise on the attention values. Poster: "gaussian", drawn anew in training. Released:
    # "learned", one trained tensor added to every image.
    value_noise: Literal["gaussian", "learned", "none"] = "gaussian"
    value_noise_std: float = 0.1
    dropout: float = 0.1

    # --- Loss -------------------------------------------------------------------------------
    # Form of the decoder loss's foreground terms. Poster: "el_dice"; released: "el_tversky".
    # "bce_dice" replaces the whole decoder loss by cross-entropy and soft Dice; then neither
    # false_positive_weight, background_weight nor the blurs are used.
    decoder_loss: Literal["el_dice", "el_tversky", "bce_dice"] = "el_dice"
    false_positive_weight: float = 0.6  # alpha
    background_weight: float = 0.6  # beta
    sam_weight: float = 1.0  # multiplies gamma = soft Dice(M_SAM, M_DDPT); 0 for ablation
    point_activation_weight: float = 1.0
    structural_weight: float = 1.0
    # Blur of the foreground and background targets in pixels of a 256-pixel map.
    foreground_sigma: float = 10.0
    background_sigma: float = 15.0

    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        reject_misspelt_fields(self, kwargs)
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Check the combination of fields; raises ValueError with the offending values."""
        reject_unknown_choices(self)
        for name in ("image_size", "num_channels", "base_channels", "grid_size", "refiner_grid"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}.")
        if self.image_size % 2:
            raise ValueError(
                f"image_size must be even, as the encoder halves it once, got {self.image_size}."
            )
        if self.encoder == "pyramid" and self.image_size % 8:
            raise ValueError(
                "image_size must be a multiple of 8, as the pyramid halves it three times, got "
                f"{self.image_size}; choose for example {self.image_size // 8 * 8 + 8}."
            )
        if self.first_map_size % self.refiner_grid:
            side = "image_size" if self.encoder == "plain" else "image_size / 2"
            raise ValueError(
                f"{side} must be a multiple of refiner_grid, got {self.first_map_size} and "
                f"{self.refiner_grid}; choose for example refiner_grid={self.first_map_size // 4}."
            )
        if (2 * self.image_size) % self.grid_size:
            raise ValueError(
                f"the score map's side (2 * image_size = {2 * self.image_size}) must be a multiple "
                f"of grid_size, got {self.grid_size}."
            )
        if self.num_attention_heads < 1 or self.embedding_dim % self.num_attention_heads:
            raise ValueError(
                f"8 * base_channels = {self.embedding_dim} must be a multiple of "
                f"num_attention_heads, got {self.num_attention_heads}."
            )

    @property
    def embedding_dim(self) -> int:
        """Width d of image tokens, location embeddings and point embeddings."""
        return 8 * self.base_channels

    @property
    def first_map_size(self) -> int:
        """Side of the map that the encoder hands to the refiner, in pixels."""
        return self.image_size if self.encoder == "plain" else self.image_size // 2

    @property
    def output_size(self) -> int:
        """Side of the score map in pixels."""
        return 2 * self.image_size

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "RasaloreConfig":
        """Return the preset `poster`, `released`, `base` or `tiny`, some fields replaced."""
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}.")
        return cls(**{**PRESETS[name], **overrides})


SMALL = {
    "grid_size": 16,
    "refiner_grid": 16,
    # A target that fades towards its border is learned as a smaller one; this is nearly flat.
    "foreground_sigma": 60.0,
    # Channel dropout starves few channels, and in minutes the point terms only slow the masks.
    "dropout": 0.0,
    "point_activation_weight": 0.1,
    "structural_weight": 0.1,
}
PRESETS: dict[str, dict[str, Any]] = {
    "poster": {},
    "released": {
        "refiner_grid": 64,
        "attention_head_dim": 256,
        "value_noise": "learned",
        "decoder_loss": "el_tversky",
    },
    "base": {
        **SMALL,
        "image_size": 96,
        "num_channels": 4,
        "base_channels": 12,
        # A view of 22 of 96 pixels is too narrow for lesions of real patients; train/EVIDENCE.md.
        "encoder": "pyramid",
        # With the poster's losses, an average precision of 71 instead of 77 on 20 people of
        # TCGA-LGG, by their masks: results on those are not quite free of pixel labels.
        "decoder_loss": "bce_dice",
        "point_activation_weight": 0.05,
        "structural_weight": 0.05,
    },
    "tiny": {**SMALL, "image_size": 64, "base_channels": 6},
}


def reject_misspelt_fields(config: PreTrainedConfig, unknown: dict[str, Any]) -> None:
    """Raise ValueError when an unknown keyword looks like one of the configuration's own fields.

    Transformers keeps unknown keywords silently (its own bookkeeping travels that way), so that a
    typing error would leave a default in force unnoticed.
    """
    own = [field.name for field in fields(config)]
    for name in unknown:
        nearest = difflib.get_close_matches(name, own, n=1, cutoff=0.8)
        if nearest:
            raise ValueError(f"unknown field {name!r}; did you mean {nearest[0]!r}?")


def reject_unknown_choices(config: PreTrainedConfig) -> None:
    """Raise ValueError when a field that takes one of a few names holds another."""
    for field in fields(config):
        value = getattr(config, field.name)
        if get_origin(field.type) is Literal and value not in get_args(field.type):
            raise ValueError(f"{field.name} must be one of {get_args(field.type)}, got {value!r}.")
