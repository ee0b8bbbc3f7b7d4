"""The transformer that tracr compiles RASP programs to, as a model of the transformers library.

No layer norm, ReLU, no biases, attention in both directions over all tokens, BOS included, divided by the root of the
head's width; token and position embeddings added; an output of a few coordinates at every position (Lindner et al.
2023, arXiv 2301.05062). Token 0 is padding: nothing attends to it, so sequences of several lengths fit in one batch.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

PAD = 0

#: Attention logit of a masked token, as in tracr's attention.
_MASKED = -1e30


class TracrConfig(PreTrainedConfig):
    """Shape of a compiled transformer."""

    model_type = "tracr"

    def __init__(
        self,
        vocab_size: int = 3,
        n_outputs: int = 1,
        d_model: int = 1,
        n_layers: int = 1,
        n_heads: int = 1,
        d_head: int = 1,
        d_mlp: int = 1,
        max_position_embeddings: int = 2,
        **kwargs: Any,
    ) -> None:
        """`max_position_embeddings` counts BOS; `n_outputs` is 1 for a number, else the number of symbols."""
        self.vocab_size, self.n_outputs, self.d_model = vocab_size, n_outputs, d_model
        self.n_layers, self.n_heads, self.d_head, self.d_mlp = n_layers, n_heads, d_head, d_mlp
        self.max_position_embeddings = max_position_embeddings
        kwargs |= {"tie_word_embeddings": False, "pad_token_id": PAD}
        super().__init__(**kwargs)


class Attention(nn.Module):
    """Softmax attention over all real tokens."""

    def __init__(self, config: TracrConfig) -> None:
        """Heads lie side by side, in order."""
        super().__init__()
        width = config.n_heads * config.d_head
        self.d_head = config.d_head
        self.query, self.key, self.value = (nn.Linear(config.d_model, width, bias=False) for _ in range(3))
        self.linear = nn.Linear(width, config.d_model, bias=False)

    def forward(
        self, x: Float[Tensor, "row pos d_model"], real: Bool[Tensor, "row pos"]
    ) -> Float[Tensor, "row pos d_model"]:
        """What the heads write to the residual stream."""
        q, k, v = (
            module(x).unflatten(2, (-1, self.d_head)).transpose(1, 2) for module in (self.query, self.key, self.value)
        )
        logits = q @ k.transpose(2, 3) / self.d_head**0.5
        attended = torch.softmax(logits.masked_fill(~real[:, None, None], _MASKED), 3) @ v
        return self.linear(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two maps with a ReLU between."""

    def __init__(self, config: TracrConfig) -> None:
        """No biases: tracr keeps a constant direction in the residual stream instead."""
        super().__init__()
        self.linear_1 = nn.Linear(config.d_model, config.d_mlp, bias=False)
        self.linear_2 = nn.Linear(config.d_mlp, config.d_model, bias=False)

    def forward(self, x: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        """What the MLP writes to the residual stream."""
        return self.linear_2(torch.relu(self.linear_1(x)))


class Block(nn.Module):
    """Attention, then MLP."""

    def __init__(self, config: TracrConfig) -> None:
        """See `TracrConfig`."""
        super().__init__()
        self.attn, self.mlp = Attention(config), Mlp(config)

    def forward(
        self, x: Float[Tensor, "row pos d_model"], real: Bool[Tensor, "row pos"]
    ) -> Float[Tensor, "row pos d_model"]:
        """The residual stream after the block."""
        x = x + self.attn(x, real)
        return x + self.mlp(x)


class TracrModel(PreTrainedModel):
    """A compiled program: outputs at every position."""

    config_class = TracrConfig
    _no_split_modules = ["Block"]  # noqa: RUF012  # the library reads a list

    def __init__(self, config: TracrConfig) -> None:
        """Weights are loaded or copied in; there is nothing to train from scratch."""
        super().__init__(config)
        self.token_embed = nn.Embedding(config.vocab_size, config.d_model)
        self.pos_embed = nn.Embedding(config.max_position_embeddings, config.d_model)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.unembed = nn.Linear(config.d_model, config.n_outputs, bias=False)
        self.post_init()

    def forward(self, input_ids: Int[Tensor, "row pos"], use_cache: bool = False) -> CausalLMOutput:
        """Outputs of shape `[row, pos, n_outputs]` in the field that language models call logits.

        `use_cache` is what callers of any model of the library may say; there is no cache.
        """
        real = input_ids != PAD
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.token_embed(input_ids) + self.pos_embed(positions)
        for block in self.layers:
            x = block(x, real)
        return CausalLMOutput(logits=self.unembed(x))


AutoConfig.register(TracrConfig.model_type, TracrConfig)
AutoModelForCausalLM.register(TracrConfig, TracrModel)
