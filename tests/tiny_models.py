"""Random models, small enough for a test; the one place where they are made."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from gbcd.reference.tokenizer import build_tokenizer

CONTEXT = 64


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
        spread = torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim == 1 else width**-0.5)
        parameter.data.copy_(spread + (1.0 if "ln_" in name and name.endswith("weight") else 0.0))
    return model, small_tokenizer()
