"""Transformers compiled by tracr: maps of their own for q, k and v, no norms, an output at every position."""

from __future__ import annotations

from transformers import PreTrainedConfig

from gbcd.architectures.sites import EmbeddingSites, LinearSite, ModelSites
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
        for part, module in (("q", "query"), ("k", "key"), ("v", "value")):
            linear.append(LinearSite(f"{block}.attn.{module}", f"a{layer}.qkv", _heads(config, layer, part), "out"))
        linear += [
            LinearSite(f"{block}.attn.linear", f"a{layer}.o", _heads(config, layer, "o"), "in"),
            LinearSite(f"{block}.mlp.linear_1", f"m{layer}.in", (f"m{layer}.in",), "out"),
            LinearSite(f"{block}.mlp.linear_2", f"m{layer}.out", (f"m{layer}.out",), "in"),
        ]
    embedding = EmbeddingSites("token_embed", "pos_embed", "unembed", tied=False)
    return ModelSites(
        tuple(linear), (), embedding, config.n_layers, config.n_heads, config.d_model, reads_every_token=True
    )


def _heads(config: TracrConfig, layer: int, part: str) -> tuple[str, ...]:
    return tuple(f"a{layer}.h{head}.{part}" for head in range(config.n_heads))
