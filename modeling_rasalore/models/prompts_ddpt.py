"""Make DDPT's prompts: learned words for the text tower, class-aware tokens for the vision tower.

Poster, "Stage 1". Letters in shapes: B batch, P patches, D width of the vision tower, J width of
the joint space.
"""

import torch
from torch import Tensor, nn

from .configuration_ddpt import DdptConfig


class TextPrompts(nn.Module):
    """The context vectors V_1 .. V_M that both class prompts share, and the words around them."""

    def __init__(self, config: DdptConfig):
        super().__init__()
        self.config = config
        width = config.clip_config.text_config.hidden_size
        self.context = nn.Parameter(torch.empty(config.num_context_tokens, width))
        if config.stored_prompt_words:
            self.words: Tensor
            self.register_buffer("words", torch.empty(sum(self.count_words()), width))

    def count_words(self) -> list[int]:
        """Rows of `words` for each class: start, class word, full stop, end."""
        return [len(word) + 3 for word in self.config.class_token_ids]

    def learned(self, embed: nn.Embedding) -> list[Tensor]:
        """Embedded learned prompt of each class, (L, width): start, context, class, ".", end."""
        config, half = self.config, self.config.num_context_tokens // 2
        split = half if config.class_token_position == "middle" else 2 * half
        before, after = self.context[:split], self.context[split:]
        words = self.words if config.stored_prompt_words else self.backbone_words(embed)
        return [
            torch.cat([rows[:1], before, rows[1:-2], after, rows[-2:]])
            for rows in words.split(self.count_words())
        ]

    def backbone_words(self, embed: nn.Embedding) -> Tensor:
        """The backbone's embeddings of what stands around the context, (rows, width)."""
        config, ids = self.config, []
        for word in config.class_token_ids:
            ids += [config.start_token_id, *word, config.full_stop_token_id, config.end_token_id]
        return self.embed_ids(embed, ids)

    def template(self, embed: nn.Embedding) -> list[Tensor]:
        """Embedded fixed sentence of each class, (L, width), e.g. "a photo of a healthy brain."."""
        config = self.config
        before, after = config.template_token_ids
        return [
            self.embed_ids(
                embed,
                [
                    config.start_token_id,
                    *before,
                    *word,
                    *after,
                    config.full_stop_token_id,
                    config.end_token_id,
                ],
            )
            for word in config.class_token_ids
        ]

    def embed_ids(self, embed: nn.Embedding, ids: list[int]) -> Tensor:
        return embed(torch.tensor(ids, device=self.context.device))


class ClassAwarePrompts(nn.Module):
    """CAVPT: one visual prompt per class, made from the text features and the slice's tokens."""

    def __init__(self, config: DdptConfig):
        super().__init__()
        clip = config.clip_config
        width, inner = clip.vision_config.hidden_size, config.class_attention_dim
        self.free_tokens = nn.Parameter(torch.empty(config.num_free_tokens, width))
        self.query = nn.Linear(clip.projection_dim, width)
        self.query_projection = nn.Linear(width, inner, bias=False)
        self.key_projection = nn.Linear(width, inner, bias=False)
        self.value_projection = nn.Linear(width, width, bias=False)
        self.classifier_norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, 2, bias=False)
        self.prompt_norm = nn.LayerNorm(width)

    def forward(self, text_features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return prompts (B, 2, D), their class logits (B, 2, 2) and attention (B, 2, n).

        Args:
            text_features: (2, J), one row per class.
            tokens: CLS and patch tokens at the input of the last layer, (B, 1 + P, D).
        """
        free = self.free_tokens.expand(len(tokens), -1, -1)
        context = torch.cat([tokens.detach(), free], dim=1)
        query = self.query(text_features).expand(len(tokens), -1, -1)
        queries, keys = self.query_projection(query), self.key_projection(context)
        attention = (queries @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5).softmax(-1)
        attended = self.value_projection(attention @ context)
        logits = self.classifier(self.classifier_norm(attended))
        return self.prompt_norm(attended + query), logits, attention
