"""OPT: maps of their own for q, k and v, learned positions that begin in the table's third row, norms first.

OPT-350m, whose norms come last and whose embeddings are projected, is another model and refused.
"""

from __future__ import annotations

from typing import Any, cast

from transformers import PreTrainedConfig, PreTrainedModel

from gbcd.errors import BadInput
from gbcd.models.spec import AttentionSpec, EmbeddingSpec, MapSpec, MlpSpec, ModelSpec, NormSpec, head_parts

#: Keys of the configuration that this file reads, or whose every value leaves the forward pass as it is.
KNOWN = {
    "hidden_size", "num_hidden_layers", "ffn_dim", "max_position_embeddings", "do_layer_norm_before",
    "word_embed_proj_dim", "num_attention_heads", "activation_function", "layer_norm_elementwise_affine", "enable_bias",
    "dropout", "attention_dropout", "layerdrop", "_remove_final_layer_norm", "prefix",
}  # fmt: skip


def matches(config: PreTrainedConfig) -> bool:
    """True for every OPT."""
    return config.model_type == "opt"


def spec(model: PreTrainedModel) -> ModelSpec:
    """`OPTForCausalLM`.

    Raises:
        BadInput: the one of 350m, or norms without weights.
    """
    config, body = cast(Any, model.config), "model.decoder"
    if not (config.do_layer_norm_before and config.layer_norm_elementwise_affine):
        raise BadInput("OPT with do_layer_norm_before = false (OPT-350m) or norms without weights is not supported")
    n_heads, n_layers, width = int(config.num_attention_heads), int(config.num_hidden_layers), int(config.hidden_size)
    attentions: list[AttentionSpec] = []
    mlps: list[MlpSpec] = []
    for layer in range(n_layers):
        block = f"{body}.layers.{layer}"
        attentions.append(
            AttentionSpec(
                maps=tuple(
                    MapSpec(f"{block}.self_attn.{part}_proj", head_parts(layer, part, n_heads), "out") for part in "qkv"
                ),
                out=MapSpec(f"{block}.self_attn.out_proj", head_parts(layer, "o", n_heads), "in"),
                norm=NormSpec(f"{block}.self_attn_layer_norm", f"a{layer}.norm"),
                n_groups=n_heads,
                scale=(width // n_heads) ** -0.5,
            )
        )
        mlps.append(
            MlpSpec(
                maps=(MapSpec(f"{block}.fc1", (f"m{layer}.in",), "out"),),
                out=MapSpec(f"{block}.fc2", (f"m{layer}.out",), "in"),
                norm=NormSpec(f"{block}.final_layer_norm", f"m{layer}.norm"),
                activation=config.activation_function,
            )
        )
    embedding = EmbeddingSpec(
        f"{body}.embed_tokens", f"{body}.embed_positions", "lm_head", bool(config.tie_word_embeddings), first_position=2
    )
    final_norm = NormSpec(f"{body}.final_layer_norm", "final.norm")
    return ModelSpec(tuple(attentions), tuple(mlps), final_norm, embedding, n_heads, width)
