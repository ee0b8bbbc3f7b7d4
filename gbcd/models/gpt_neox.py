"""GPT-NeoX, Pythia: one map for q, k and v, interleaved head by head, partly rotary, attention and MLP in parallel."""

from __future__ import annotations

from typing import Any, cast

from transformers import PreTrainedConfig

from gbcd.models.sites import EmbeddingSites, GainSite, LinearSite, ModelSites, head_parts, mlp_sites


def matches(config: PreTrainedConfig) -> bool:
    """True for GPT-NeoX of any size."""
    return config.model_type == "gpt_neox"


def sites(config: PreTrainedConfig) -> ModelSites:
    """Sites of `GPTNeoXForCausalLM`: `query_key_value` holds the slices q0 k0 v0 q1 k1 v1 ..."""
    shape = cast(Any, config)
    n_heads = int(shape.num_attention_heads)
    linear: list[LinearSite] = []
    gains: list[GainSite] = []
    for layer in range(shape.num_hidden_layers):
        block = f"gpt_neox.layers.{layer}"
        qkv = tuple(f"a{layer}.h{head}.{part}" for head in range(n_heads) for part in "qkv")
        linear += [
            LinearSite(f"{block}.attention.query_key_value", f"a{layer}.qkv", qkv, "out"),
            LinearSite(f"{block}.attention.dense", f"a{layer}.o", head_parts(layer, "o", n_heads), "in"),
            *mlp_sites(layer, f"{block}.mlp.dense_h_to_4h", f"{block}.mlp.dense_4h_to_h"),
        ]
        gains += [
            GainSite(f"{block}.input_layernorm", f"a{layer}.norm"),
            GainSite(f"{block}.post_attention_layernorm", f"m{layer}.norm"),
        ]
    gains.append(GainSite("gpt_neox.final_layer_norm", "final.norm"))
    return ModelSites(
        tuple(linear),
        tuple(gains),
        EmbeddingSites("gpt_neox.embed_in", None, "lm_head", bool(shape.tie_word_embeddings)),
        int(shape.num_hidden_layers),
        n_heads,
        int(shape.hidden_size),
        parallel=bool(shape.use_parallel_residual),
    )
