"""Transformers compiled by tracr: maps of their own for q, k and v, no norms, an output at every position."""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedModel

from gbcd.models.spec import AttentionSpec, EmbeddingSpec, MapSpec, MlpSpec, ModelSpec, head_parts
from gbcd.tracr.model import TracrConfig

#: Keys of the configuration that this file reads, or whose every value leaves the forward pass as it is.
KNOWN = {"n_outputs", "d_model", "n_layers", "n_heads", "d_head", "d_mlp", "max_position_embeddings"}


def matches(config: PreTrainedConfig) -> bool:
    """True for every compiled transformer."""
    return isinstance(config, TracrConfig)


def spec(model: PreTrainedModel) -> ModelSpec:
    """`gbcd.tracr.model.TracrModel`; parts that the program does not use have weights of zero."""
    config = model.config
    assert isinstance(config, TracrConfig)
    names = {"q": "query", "k": "key", "v": "value"}
    attentions: list[AttentionSpec] = []
    mlps: list[MlpSpec] = []
    for layer in range(config.n_layers):
        block = f"layers.{layer}"
        maps = tuple(
            MapSpec(f"{block}.attn.{module}", head_parts(layer, part, config.n_heads), "out")
            for part, module in names.items()
        )
        out = MapSpec(f"{block}.attn.linear", head_parts(layer, "o", config.n_heads), "in")
        attentions.append(AttentionSpec(maps, out, None, config.n_heads, config.d_head**-0.5))
        mlps.append(
            MlpSpec(
                (MapSpec(f"{block}.mlp.linear_1", (f"m{layer}.in",), "out"),),
                MapSpec(f"{block}.mlp.linear_2", (f"m{layer}.out",), "in"),
                None,
                "relu",
            )
        )
    embedding = EmbeddingSpec("token_embed", "pos_embed", "unembed", tied=False)
    return ModelSpec(
        tuple(attentions), tuple(mlps), None, embedding, config.n_heads, config.d_model,
        causal=False, reads_every_token=True,
    )  # fmt: skip
