"""GPT-2: q, k and v of all heads in one map per block, learned positions, tied unembedding."""

from __future__ import annotations

from transformers import GPT2Config, PreTrainedConfig, PreTrainedModel

from gbcd.models.spec import AttentionSpec, EmbeddingSpec, MapSpec, MlpSpec, ModelSpec, NormSpec, head_parts

#: Keys of the configuration that this file reads, or whose every value leaves the forward pass as it is.
KNOWN = {
    "n_positions", "n_ctx", "n_embd", "n_layer", "n_head", "n_inner", "activation_function", "layer_norm_epsilon",
    "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "resid_pdrop", "embd_pdrop",
    "attn_pdrop",
}  # fmt: skip


def matches(config: PreTrainedConfig) -> bool:
    """True for GPT-2 of any size."""
    return isinstance(config, GPT2Config)


def spec(model: PreTrainedModel) -> ModelSpec:
    """`c_attn` holds the slices q0..qH k0..kH v0..vH, `c_proj` reads the heads side by side."""
    config = model.config
    assert isinstance(config, GPT2Config)
    n_layers, n_heads = int(config.n_layer), int(config.n_head)
    attentions: list[AttentionSpec] = []
    mlps: list[MlpSpec] = []
    for layer in range(n_layers):
        block = f"transformer.h.{layer}"
        qkv = tuple(name for part in "qkv" for name in head_parts(layer, part, n_heads))
        scale = (config.n_embd // n_heads) ** -0.5 if config.scale_attn_weights else 1.0
        attentions.append(
            AttentionSpec(
                maps=(MapSpec(f"{block}.attn.c_attn", qkv, "out"),),
                out=MapSpec(f"{block}.attn.c_proj", head_parts(layer, "o", n_heads), "in"),
                norm=NormSpec(f"{block}.ln_1", f"a{layer}.norm"),
                n_groups=n_heads,
                scale=scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale,
            )
        )
        mlps.append(
            MlpSpec(
                maps=(MapSpec(f"{block}.mlp.c_fc", (f"m{layer}.in",), "out"),),
                out=MapSpec(f"{block}.mlp.c_proj", (f"m{layer}.out",), "in"),
                norm=NormSpec(f"{block}.ln_2", f"m{layer}.norm"),
                activation=config.activation_function,
            )
        )
    embedding = EmbeddingSpec("transformer.wte", "transformer.wpe", "lm_head", tied=bool(config.tie_word_embeddings))
    final_norm = NormSpec("transformer.ln_f", "final.norm")
    return ModelSpec(tuple(attentions), tuple(mlps), final_norm, embedding, n_heads, int(config.n_embd))
