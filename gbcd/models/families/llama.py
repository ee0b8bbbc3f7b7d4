"""Llama and the models built like it: Mistral, Qwen2 (biases on q, k and v), Qwen3 (norms of queries and keys).

Rotary positions, RMS norms, grouped keys and values, a gated MLP.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from gbcd.models.spec import (
    AttentionSpec,
    EmbeddingSpec,
    MapSpec,
    MlpSpec,
    ModelSpec,
    NormSpec,
    Rotary,
    head_parts,
    shared_parts,
)

_TYPES = ("llama", "mistral", "qwen2", "qwen3")

#: Keys of the configuration that this file reads, or whose every value leaves the forward pass as it is.
KNOWN = {
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "attention_bias", "mlp_bias",
    "sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "attention_dropout", "pretraining_tp",
}  # fmt: skip


def matches(config: PreTrainedConfig) -> bool:
    """True for the decoders named above."""
    return config.model_type in _TYPES


def spec(model: PreTrainedModel) -> ModelSpec:
    """A map each for q, k, v, o, gate, up and down."""
    config = cast(Any, model.config)
    turn = rotary(cast(Any, model).model.rotary_emb)
    has_norms = config.model_type == "qwen3"
    attentions: list[AttentionSpec] = []
    mlps: list[MlpSpec] = []
    for layer in range(config.num_hidden_layers):
        block = f"model.layers.{layer}"
        attentions.append(
            AttentionSpec(
                *attention_maps(config, layer),
                norm=NormSpec(f"{block}.input_layernorm", f"a{layer}.norm", "rms"),
                n_groups=int(config.num_key_value_heads),
                scale=head_width(config) ** -0.5,
                q_norm=NormSpec(f"{block}.self_attn.q_norm", f"a{layer}.q_norm", "rms") if has_norms else None,
                k_norm=NormSpec(f"{block}.self_attn.k_norm", f"a{layer}.k_norm", "rms") if has_norms else None,
                window=window(config, layer),
                rotary=turn,
            )
        )
        mlps.append(
            MlpSpec(
                *mlp_maps(layer),
                norm=NormSpec(f"{block}.post_attention_layernorm", f"m{layer}.norm", "rms"),
                activation=config.hidden_act,
            )
        )
    embedding = EmbeddingSpec("model.embed_tokens", None, "lm_head", bool(config.tie_word_embeddings))
    final_norm = NormSpec("model.norm", "final.norm", "rms")
    heads, width = int(config.num_attention_heads), int(config.hidden_size)
    return ModelSpec(tuple(attentions), tuple(mlps), final_norm, embedding, heads, width)


def attention_maps(config: Any, layer: int) -> tuple[tuple[MapSpec, ...], MapSpec]:
    """The maps of attention, which Gemma names in the same way."""
    path = f"model.layers.{layer}.self_attn"
    n_heads, n_groups = int(config.num_attention_heads), int(config.num_key_value_heads)
    maps = (
        MapSpec(f"{path}.q_proj", head_parts(layer, "q", n_heads), "out"),
        MapSpec(f"{path}.k_proj", shared_parts(layer, "k", n_groups, n_heads), "out"),
        MapSpec(f"{path}.v_proj", shared_parts(layer, "v", n_groups, n_heads), "out"),
    )
    return maps, MapSpec(f"{path}.o_proj", head_parts(layer, "o", n_heads), "in")


def mlp_maps(layer: int) -> tuple[tuple[MapSpec, ...], MapSpec]:
    """The maps of the MLP, likewise."""
    path = f"model.layers.{layer}.mlp"
    maps = tuple(MapSpec(f"{path}.{part}_proj", (f"m{layer}.{part}",), "out") for part in ("gate", "up"))
    return maps, MapSpec(f"{path}.down_proj", (f"m{layer}.down",), "in")


def head_width(config: Any) -> int:
    """Dimensions of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def window(config: Any, layer: int) -> int | None:
    """How far back a token of this layer sees, where the configuration has windows."""
    if getattr(config, "sliding_window", None) is None:
        return None
    types = getattr(config, "layer_types", None)
    return int(config.sliding_window) if types is None or types[layer] == "sliding_attention" else None


def rotary(module: Callable[..., Any], *layer_type: str) -> Rotary:
    """Cosines and sines by the library's own module, so that every scaling of positions that it knows is the
    model's."""

    @lru_cache(maxsize=8)
    def tables(length: int) -> tuple[Float[Tensor, "pos d_rotary"], Float[Tensor, "pos d_rotary"]]:
        buffer = next(cast(Any, module).buffers())
        positions = torch.arange(length, device=buffer.device).unsqueeze(0)
        cos, sin = module(torch.zeros(1, dtype=torch.float32, device=buffer.device), positions, *layer_type)
        return cos[0], sin[0]

    return tables
