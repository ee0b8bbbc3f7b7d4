"""Gemma 2 and 3, text only: Llama's maps with norms before and after, norm weights `1 + w`, scaled embeddings, caps."""

from __future__ import annotations

from typing import Any, cast

from transformers import PreTrainedConfig, PreTrainedModel

from gbcd.models.families.llama import attention_maps, mlp_maps, rotary, window
from gbcd.models.spec import AttentionSpec, EmbeddingSpec, MlpSpec, ModelSpec, NormSpec

#: Keys of the configuration that this file reads, or whose every value leaves the forward pass as it is.
KNOWN = {
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "hidden_activation", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "attention_bias",
    "query_pre_attn_scalar", "sliding_window", "layer_types", "final_logit_softcapping", "attn_logit_softcapping",
    "attention_dropout", "_sliding_window_pattern", "sliding_window_pattern",
}  # fmt: skip


def matches(config: PreTrainedConfig) -> bool:
    """True for Gemma 2 and for the text models of Gemma 3."""
    return config.model_type in ("gemma2", "gemma3_text")


def spec(model: PreTrainedModel) -> ModelSpec:
    """`Gemma2ForCausalLM` and `Gemma3ForCausalLM`."""
    config = cast(Any, model.config)
    body = cast(Any, model).model
    is_third = config.model_type == "gemma3_text"
    turns = {kind: rotary(body.rotary_emb, kind) for kind in set(config.layer_types)} if is_third else {}
    one_turn = None if is_third else rotary(body.rotary_emb)
    attentions: list[AttentionSpec] = []
    mlps: list[MlpSpec] = []
    for layer in range(config.num_hidden_layers):
        block = f"model.layers.{layer}"
        q_norm, k_norm = (_norm(f"{block}.self_attn.{x}_norm", f"a{layer}.{x}_norm") for x in "qk")
        attentions.append(
            AttentionSpec(
                *attention_maps(config, layer),
                norm=_norm(f"{block}.input_layernorm", f"a{layer}.norm"),
                n_groups=int(config.num_key_value_heads),
                scale=float(config.query_pre_attn_scalar) ** -0.5,
                post_norm=_norm(f"{block}.post_attention_layernorm", f"a{layer}.post_norm"),
                q_norm=q_norm if is_third else None,
                k_norm=k_norm if is_third else None,
                cap=config.attn_logit_softcapping,
                window=window(config, layer),
                rotary=turns[config.layer_types[layer]] if is_third else one_turn,
            )
        )
        mlps.append(
            MlpSpec(
                *mlp_maps(layer),
                norm=_norm(f"{block}.pre_feedforward_layernorm", f"m{layer}.norm"),
                activation=config.hidden_activation,
                post_norm=_norm(f"{block}.post_feedforward_layernorm", f"m{layer}.post_norm"),
            )
        )
    width = int(config.hidden_size)
    embedding = EmbeddingSpec(
        "model.embed_tokens", None, "lm_head", bool(config.tie_word_embeddings),
        scale=float(body.embed_tokens.embed_scale), logit_cap=config.final_logit_softcapping,
    )  # fmt: skip
    heads = int(config.num_attention_heads)
    return ModelSpec(tuple(attentions), tuple(mlps), _norm("model.norm", "final.norm"), embedding, heads, width)


def _norm(module: str, component: str) -> NormSpec:
    return NormSpec(module, component, "rms", 1.0)
