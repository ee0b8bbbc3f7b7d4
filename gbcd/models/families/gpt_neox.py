"""GPT-NeoX, Pythia: one map for q, k and v, interleaved head by head, partly rotary, attention and MLP in parallel."""

from __future__ import annotations

from typing import Any, cast

from transformers import PreTrainedConfig, PreTrainedModel

from gbcd.models.families.llama import rotary
from gbcd.models.spec import AttentionSpec, EmbeddingSpec, MapSpec, MlpSpec, ModelSpec, NormSpec, head_parts

#: Keys of the configuration that this file reads, or whose every value leaves the forward pass as it is.
KNOWN = {
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "rope_parameters",
    "max_position_embeddings", "layer_norm_eps", "use_parallel_residual", "attention_bias", "attention_dropout",
    "hidden_dropout", "classifier_dropout", "rotary_pct", "rotary_emb_base",
}  # fmt: skip


def matches(config: PreTrainedConfig) -> bool:
    """True for GPT-NeoX of any size."""
    return config.model_type == "gpt_neox"


def spec(model: PreTrainedModel) -> ModelSpec:
    """`query_key_value` holds the slices q0 k0 v0 q1 k1 v1 ..."""
    config = cast(Any, model.config)
    n_heads = int(config.num_attention_heads)
    turn = rotary(cast(Any, model).gpt_neox.rotary_emb)
    attentions: list[AttentionSpec] = []
    mlps: list[MlpSpec] = []
    for layer in range(config.num_hidden_layers):
        block = f"gpt_neox.layers.{layer}"
        qkv = tuple(f"a{layer}.h{head}.{part}" for head in range(n_heads) for part in "qkv")
        attentions.append(
            AttentionSpec(
                maps=(MapSpec(f"{block}.attention.query_key_value", qkv, "out"),),
                out=MapSpec(f"{block}.attention.dense", head_parts(layer, "o", n_heads), "in"),
                norm=NormSpec(f"{block}.input_layernorm", f"a{layer}.norm"),
                n_groups=n_heads,
                scale=(config.hidden_size // n_heads) ** -0.5,
                rotary=turn,
            )
        )
        mlps.append(
            MlpSpec(
                maps=(MapSpec(f"{block}.mlp.dense_h_to_4h", (f"m{layer}.in",), "out"),),
                out=MapSpec(f"{block}.mlp.dense_4h_to_h", (f"m{layer}.out",), "in"),
                norm=NormSpec(f"{block}.post_attention_layernorm", f"m{layer}.norm"),
                activation=config.hidden_act,
            )
        )
    return ModelSpec(
        tuple(attentions),
        tuple(mlps),
        NormSpec("gpt_neox.final_layer_norm", "final.norm"),
        EmbeddingSpec("gpt_neox.embed_in", None, "lm_head", bool(config.tie_word_embeddings)),
        n_heads,
        int(config.hidden_size),
        parallel=bool(config.use_parallel_residual),
    )
