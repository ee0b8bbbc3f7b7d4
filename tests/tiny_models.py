"""Random models, small enough for a test; the one place where they are made."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from training.tokenizer import build_tokenizer

CONTEXT = 64
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]


@lru_cache
def small_tokenizer() -> PreTrainedTokenizerFast:
    """The reference model's tokenizer, built once."""
    return build_tokenizer(CONTEXT)


def tiny_gpt2(n_layers: int = 2, n_heads: int = 2, seed: int = 0) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """A GPT-2 with random weights, of width 16, and the reference model's tokenizer."""
    tokenizer = small_tokenizer()
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=16,
        n_layer=n_layers,
        n_head=n_heads,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return GPT2LMHeadModel(config), tokenizer


def saved_tiny_gpt2(folder: Path, n_layers: int = 2, n_heads: int = 2, seed: int = 0) -> str:
    """The same, saved to `folder`; returns what `--model` takes."""
    model, tokenizer = tiny_gpt2(n_layers, n_heads, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def random_gpt2(
    n_layers: int,
    n_heads: int,
    d_head: int,
    vocab: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    **config: object,
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """A GPT-2 of any shape whose weights, biases and gains are all random and large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    width = n_heads * d_head
    shape = GPT2Config(
        vocab_size=vocab, n_positions=CONTEXT, n_embd=width, n_layer=n_layers, n_head=n_heads,
        bos_token_id=0, eos_token_id=0, **config  # pyright: ignore
    )  # fmt: skip
    model = GPT2LMHeadModel(shape).to(dtype)
    for name, parameter in model.named_parameters():
        # in float64, which is drawn alike by every instruction set; stored values depend on it
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        spread = drawn * (0.3 if parameter.ndim == 1 else width**-0.5)
        parameter.data.copy_(spread + (1.0 if "ln_" in name and name.endswith("weight") else 0.0))
    return model, small_tokenizer()


#: One or more shapes for each architecture: configuration class, and what makes it of width 24 with three layers.
FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, object]]] = {
    "gpt2": (GPT2Config, {"n_layer": 3, "n_embd": 24, "n_head": 4, "n_positions": CONTEXT}),
    "llama": (LlamaConfig, {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}),
    "llama_own_keys": (LlamaConfig, {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "mistral": (MistralConfig, {"num_key_value_heads": 2, "sliding_window": 3, "head_dim": 4}),
    "qwen2": (Qwen2Config, {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {"num_key_value_heads": 2, "head_dim": 8}),
    "gemma2": (Gemma2Config, {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 3, "query_pre_attn_scalar": 8,
                              "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}),
    "gemma3": (Gemma3TextConfig, {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 3,
                                  "query_pre_attn_scalar": 8, "layer_types": _SLIDING}),
    "gpt_neox": (GPTNeoXConfig, {"use_parallel_residual": True}),
    "gpt_neox_serial": (GPTNeoXConfig, {"use_parallel_residual": False, "tie_word_embeddings": True}),
    "opt": (OPTConfig, {"ffn_dim": 40, "word_embed_proj_dim": 24}),
}  # fmt: skip


def random_model(
    family: str, vocab: int, seed: int = 0, dtype: torch.dtype = torch.float64, **config: object
) -> PreTrainedModel:
    """A model of the library's own class whose weights, biases and gains are all random and large enough to matter."""
    kind, shape = FAMILIES[family]
    common: dict[str, object] = {
        "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40,
        "max_position_embeddings": CONTEXT, "hidden_dropout": 0.0, "dropout": 0.0,
    }  # fmt: skip
    common = {key: value for key, value in common.items() if hasattr(kind(), key)}
    tokens = {"vocab_size": vocab, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    model = AutoModelForCausalLM.from_config(kind(**(({} if family == "gpt2" else common) | tokens | shape | config)))
    return randomised(model, seed).to(dtype)


def saved_random(folder: Path, family: str = "gpt2", vocab: int = 0, **how: Any) -> str:
    """A random model in float32 with the reference model's tokenizer, saved; returns what `--model` takes.

    Without `vocab` it has a row for each token; `how` is for the library's `save_pretrained`.
    """
    model = random_model(family, vocab or len(small_tokenizer()), dtype=torch.float32)
    model.save_pretrained(folder, **how)
    small_tokenizer().save_pretrained(folder)
    return str(folder)


def randomised(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """The model with every parameter drawn anew: matrices by their width, gains around what the model begins with."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        spread = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.data.add_(0.3 * spread)
        else:
            parameter.data.copy_(spread * parameter.shape[1] ** -0.5)
    return model.eval()
