"""Transformers compiled by tracr: maps of their own for q, k and v, no norms, an output at every position."""

from __future__ import annotations

from transformers import PreTrainedConfig

from gbcd.models.sites import EmbeddingSites, LinearSite, ModelSites, head_parts, mlp_sites
from gbcd.tracr.model import TracrConfig


def matches(config: PreTrainedConfig) -> bool:
    """True for every compiled transformer."""
    return isinstance(config, TracrConfig)


def sites(config: PreTrainedConfig) -> ModelSites:
    """Sites of `gbcd.tracr.model.TracrModel`; parts that the program does not use have weights of zero."""
    assert isinstance(config, TracrConfig)
    linear: list[LinearSite] = []
    for layer in range(config.n_layers):
        block = f"layers.{layer}"
        q, k, v, o = (head_parts(layer, part, config.n_heads) for part in "qkvo")
        linear += [
            LinearSite(f"{block}.attn.query", f"a{layer}.qkv", q, "out"),
            LinearSite(f"{block}.attn.key", f"a{layer}.qkv", k, "out"),
            LinearSite(f"{block}.attn.value", f"a{layer}.qkv", v, "out"),
            LinearSite(f"{block}.attn.linear", f"a{layer}.o", o, "in"),
            *mlp_sites(layer, f"{block}.mlp.linear_1", f"{block}.mlp.linear_2"),
        ]
    embedding = EmbeddingSites("token_embed", "pos_embed", "unembed", tied=False)
    return ModelSites(
        tuple(linear), (), embedding, config.n_layers, config.n_heads, config.d_model, reads_every_token=True
    )
