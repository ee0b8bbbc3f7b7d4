"""OPT: maps of their own for q, k and v, learned positions that begin in the table's third row, norms first.

OPT-350m, whose norms come last and whose embeddings are projected, is another model and refused.
"""

from __future__ import annotations

from typing import Any, cast

from transformers import PreTrainedConfig

from gbcd.models.sites import EmbeddingSites, GainSite, LinearSite, ModelSites, head_parts, mlp_sites


def matches(config: PreTrainedConfig) -> bool:
    """True for every OPT but the one of 350m, and those whose norms have no gain."""
    shape = cast(Any, config)
    return config.model_type == "opt" and shape.do_layer_norm_before and shape.layer_norm_elementwise_affine


def sites(config: PreTrainedConfig) -> ModelSites:
    """Sites of `OPTForCausalLM`, whose MLPs see the tokens of all rows end to end."""
    shape, body = cast(Any, config), "model.decoder"
    n_heads = int(shape.num_attention_heads)
    linear: list[LinearSite] = []
    gains: list[GainSite] = []
    for layer in range(shape.num_hidden_layers):
        block = f"{body}.layers.{layer}"
        linear += [
            *(
                LinearSite(f"{block}.self_attn.{part}_proj", f"a{layer}.qkv", head_parts(layer, part, n_heads), "out")
                for part in "qkv"
            ),
            LinearSite(f"{block}.self_attn.out_proj", f"a{layer}.o", head_parts(layer, "o", n_heads), "in"),
            *mlp_sites(layer, f"{block}.fc1", f"{block}.fc2"),
        ]
        gains += [
            GainSite(f"{block}.self_attn_layer_norm", f"a{layer}.norm"),
            GainSite(f"{block}.final_layer_norm", f"m{layer}.norm"),
        ]
    gains.append(GainSite(f"{body}.final_layer_norm", "final.norm"))
    embedding = EmbeddingSites(
        f"{body}.embed_tokens", f"{body}.embed_positions", "lm_head", bool(shape.tie_word_embeddings), first_position=2
    )
    layers, width = int(shape.num_hidden_layers), int(shape.hidden_size)
    return ModelSites(tuple(linear), tuple(gains), embedding, layers, n_heads, width, keeps_positions=False)
