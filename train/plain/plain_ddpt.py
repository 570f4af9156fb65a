"""Stage 1 as the released recipe steps: five passes of everything, and heatmaps one by one.

A pass encodes both learned prompts, padded to the text tower's full length, the prompted slices,
and the frozen image and text features, whether or not they are needed.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_rasalore import DdptModel


@dataclass
class Pass:
    """What one pass gives: features of slices (B, J) and of classes (2, J), prompts' logits."""

    image: Tensor
    text: Tensor
    frozen_image: Tensor
    frozen_text: Tensor
    prompt_logits: Tensor  # (B, 2 prompts, 2 classes)


def encode_padded(model: DdptModel, prompts: list[Tensor]) -> Tensor:
    """Features (2, J) of prompts, padded with zeros to the text tower's full length."""
    tower = model.clip.text_model
    length = len(tower.embeddings.position_embedding.weight)
    hidden = torch.stack([F.pad(prompt, (0, 0, 0, length - len(prompt))) for prompt in prompts])
    hidden = hidden + tower.embeddings.position_embedding.weight
    mask = torch.full((length, length), -torch.inf).triu(1).to(hidden)[None, None]
    for layer in tower.encoder.layers:
        hidden = layer(hidden, mask)
    ends = torch.tensor([len(prompt) - 1 for prompt in prompts])
    return model.clip.text_projection(tower.final_layer_norm(hidden)[[0, 1], ends])


def run_pass(
    model: DdptModel, pixel_values: Tensor, attentions: list[Tensor] | None = None
) -> Pass:
    """One pass of everything; `attentions` collects each layer's (B, heads, n, n)."""
    embed = model.clip.text_model.embeddings.token_embedding
    text = encode_padded(model, model.text_prompts.learned(embed))
    with torch.no_grad():
        frozen_image = model.clip.get_image_features(pixel_values).pooler_output
        frozen_text = encode_padded(model, model.text_prompts.template(embed))
    image, prompt_logits, _ = model.encode_image(pixel_values, text, attentions)
    return Pass(image, text, frozen_image, frozen_text, prompt_logits)


def plain_step(model: DdptModel, pixel_values: Tensor, labels: Tensor) -> Tensor:
    """The guided loss: each of its four terms, and the logits to log, from a pass of its own."""
    rows = torch.arange(len(labels))
    passes = [run_pass(model, pixel_values) for _ in range(5)]
    model.similarity(passes[4].image, passes[4].text).argmax(1)
    return (
        F.cross_entropy(model.similarity(passes[0].frozen_image, passes[0].text), labels)
        + F.cross_entropy(model.similarity(passes[1].image, passes[1].frozen_text), labels)
        + model.config.guided_logits_weight
        * F.cross_entropy(model.similarity(passes[2].image, passes[2].text), labels)
        + model.config.class_prompt_weight
        * F.cross_entropy(passes[3].prompt_logits[rows, labels], labels)
    )


@torch.no_grad()
def plain_heatmaps(model: DdptModel, pixel_values: Tensor) -> Tensor:
    """CLS attention of the last layer, (B, rows, columns), one slice after the other."""
    patch = model.config.clip_config.vision_config.patch_size
    rows, columns = (side // patch for side in pixel_values.shape[-2:])
    heatmaps = []
    for i in range(len(pixel_values)):
        attentions: list[Tensor] = []
        run_pass(model, pixel_values[i : i + 1], attentions)
        heatmaps.append(attentions[-1].mean(1)[0, 0, 1 : 1 + rows * columns].view(rows, columns))
    return torch.stack(heatmaps)
