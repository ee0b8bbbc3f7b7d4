"""Gemma 2 and 3, text only: Llama's maps with norms before and after, gains `1 + w`, scaled embeddings, capped logits.

Caps of attention scores and sliding windows lie between taps, in the library's own code.
"""

from __future__ import annotations

from typing import Any, cast

from transformers import PreTrainedConfig

from gbcd.models.llama import block_maps
from gbcd.models.sites import EmbeddingSites, GainSite, LinearSite, ModelSites

#: Norms of a block and their components.
_NORMS = {
    "input_layernorm": "a{}.norm",
    "post_attention_layernorm": "a{}.post_norm",
    "pre_feedforward_layernorm": "m{}.norm",
    "post_feedforward_layernorm": "m{}.post_norm",
}


def matches(config: PreTrainedConfig) -> bool:
    """True for Gemma 2 and for the text models of Gemma 3 that look back only."""
    is_gemma = config.model_type in ("gemma2", "gemma3_text")
    return is_gemma and not getattr(config, "use_bidirectional_attention", False)


def sites(config: PreTrainedConfig) -> ModelSites:
    """Sites of `Gemma2ForCausalLM` and `Gemma3ForCausalLM`."""
    shape = cast(Any, config)
    linear: list[LinearSite] = []
    gains: list[GainSite] = []
    for layer in range(shape.num_hidden_layers):
        block = f"model.layers.{layer}"
        linear += block_maps(shape, layer)
        gains += [GainSite(f"{block}.{norm}", name.format(layer), "rms", 1.0) for norm, name in _NORMS.items()]
        if config.model_type == "gemma3_text":
            gains += [GainSite(f"{block}.self_attn.{x}_norm", f"a{layer}.{x}_norm", "rms", 1.0, 1) for x in "qk"]
    gains.append(GainSite("model.norm", "final.norm", "rms", 1.0))
    width = int(shape.hidden_size)
    embedding = EmbeddingSites(
        "model.embed_tokens", None, "lm_head", bool(shape.tie_word_embeddings),
        scale=width**0.5, logit_cap=shape.final_logit_softcapping,
    )  # fmt: skip
    heads = int(shape.num_attention_heads)
    return ModelSites(tuple(linear), tuple(gains), embedding, int(shape.num_hidden_layers), heads, width)
