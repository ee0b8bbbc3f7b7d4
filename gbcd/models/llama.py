"""Llama and the models built like it: Mistral, Qwen2 (biases on q, k and v), Qwen3 (norms of queries and keys).

Rotary positions (taps lie before the rotation), RMS norms, grouped keys and values, a gated MLP.
"""

from __future__ import annotations

from typing import Any, cast

from transformers import PreTrainedConfig

from gbcd.models.sites import EmbeddingSites, GainSite, LinearSite, ModelSites, head_parts, shared_parts

_TYPES = ("llama", "mistral", "qwen2", "qwen3")


def matches(config: PreTrainedConfig) -> bool:
    """True for the decoders named above."""
    return config.model_type in _TYPES


def sites(config: PreTrainedConfig) -> ModelSites:
    """Sites of `LlamaForCausalLM` and its like: a map each for q, k, v, o, gate, up and down."""
    shape = cast(Any, config)
    linear: list[LinearSite] = []
    gains: list[GainSite] = []
    for layer in range(shape.num_hidden_layers):
        block = f"model.layers.{layer}"
        linear += block_maps(shape, layer)
        gains += [
            GainSite(f"{block}.input_layernorm", f"a{layer}.norm", "rms"),
            GainSite(f"{block}.post_attention_layernorm", f"m{layer}.norm", "rms"),
        ]
        if config.model_type == "qwen3":
            gains += [GainSite(f"{block}.self_attn.{x}_norm", f"a{layer}.{x}_norm", "rms", heads=2) for x in "qk"]
    gains.append(GainSite("model.norm", "final.norm", "rms"))
    embedding = EmbeddingSites("model.embed_tokens", None, "lm_head", bool(shape.tie_word_embeddings))
    heads, width = int(shape.num_attention_heads), int(shape.hidden_size)
    return ModelSites(tuple(linear), tuple(gains), embedding, int(shape.num_hidden_layers), heads, width)


def block_maps(shape: Any, layer: int) -> list[LinearSite]:
    """The linear maps of one block, which Gemma names in the same way."""
    attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
    n_heads, n_groups = int(shape.num_attention_heads), int(shape.num_key_value_heads)
    return [
        LinearSite(f"{attention}.q_proj", f"a{layer}.qkv", head_parts(layer, "q", n_heads), "out"),
        LinearSite(f"{attention}.k_proj", f"a{layer}.qkv", shared_parts(layer, "k", n_groups, n_heads), "out"),
        LinearSite(f"{attention}.v_proj", f"a{layer}.qkv", shared_parts(layer, "v", n_groups, n_heads), "out"),
        LinearSite(f"{attention}.o_proj", f"a{layer}.o", head_parts(layer, "o", n_heads), "in"),
        LinearSite(f"{mlp}.gate_proj", f"m{layer}.in", (f"m{layer}.gate",), "out"),
        LinearSite(f"{mlp}.up_proj", f"m{layer}.in", (f"m{layer}.up",), "out"),
        LinearSite(f"{mlp}.down_proj", f"m{layer}.down", (f"m{layer}.down",), "in"),
    ]
