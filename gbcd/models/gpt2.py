"""GPT-2: fused q, k, v in one map per block, learned positions, tied unembedding.

The names of transformers' `GPT2LMHeadModel` and nothing else; `gpt2_pass.py` holds the fast pass.
"""

from __future__ import annotations

from transformers import GPT2Config, PreTrainedConfig

from gbcd.models.sites import EmbeddingSites, GainSite, LinearSite, ModelSites, head_parts, mlp_sites


def matches(config: PreTrainedConfig) -> bool:
    """True for GPT-2 of any size whose attention is the plain one."""
    return isinstance(config, GPT2Config) and not config.scale_attn_by_inverse_layer_idx


def sites(config: PreTrainedConfig) -> ModelSites:
    """Sites of a GPT-2: `c_attn` holds the slices q0..qH k0..kH v0..vH, `c_proj` reads the heads side by side."""
    assert isinstance(config, GPT2Config)
    n_layers, n_heads = int(config.n_layer), int(config.n_head)
    linear: list[LinearSite] = []
    gains: list[GainSite] = []
    for layer in range(n_layers):
        block = f"transformer.h.{layer}"
        qkv = tuple(name for part in "qkv" for name in head_parts(layer, part, n_heads))
        linear += [
            LinearSite(f"{block}.attn.c_attn", f"a{layer}.qkv", qkv, "out"),
            LinearSite(f"{block}.attn.c_proj", f"a{layer}.o", head_parts(layer, "o", n_heads), "in"),
            *mlp_sites(layer, f"{block}.mlp.c_fc", f"{block}.mlp.c_proj"),
        ]
        gains += [GainSite(f"{block}.ln_1", f"a{layer}.norm"), GainSite(f"{block}.ln_2", f"m{layer}.norm")]
    gains.append(GainSite("transformer.ln_f", "final.norm"))
    embedding = EmbeddingSites("transformer.wte", "transformer.wpe", "lm_head", tied=bool(config.tie_word_embeddings))
    return ModelSites(tuple(linear), tuple(gains), embedding, n_layers, n_heads, int(config.n_embd))
