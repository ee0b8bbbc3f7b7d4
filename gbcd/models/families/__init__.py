"""Families of models, each a short file; this one finds the file for a model and checks its claim."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from gbcd.errors import BadInput, listed
from gbcd.models.families import gemma, gpt2, gpt_neox, llama, opt, tracr
from gbcd.models.nonlinear import ACTIVATIONS
from gbcd.models.spec import ModelSpec


class Family(NamedTuple):
    """Name, the test whether a configuration is of this family, its spec, and the keys of a configuration it knows."""

    name: str
    matches: Callable[[PreTrainedConfig], bool]
    spec: Callable[[PreTrainedModel], ModelSpec]
    known: set[str]


FAMILIES = (
    Family("gpt2", gpt2.matches, gpt2.spec, gpt2.KNOWN),
    Family("llama, mistral, qwen2, qwen3", llama.matches, llama.spec, llama.KNOWN),
    Family("gemma2, gemma3 (text)", gemma.matches, gemma.spec, gemma.KNOWN),
    Family("gpt_neox", gpt_neox.matches, gpt_neox.spec, gpt_neox.KNOWN),
    Family("opt", opt.matches, opt.spec, opt.KNOWN),
    Family("tracr", tracr.matches, tracr.spec, tracr.KNOWN),
)

#: Keys that say nothing of the forward pass, or that the library checks against the weights.
_HARMLESS = {
    "architectures", "attn_implementation", "auto_map", "bos_token_id", "cache_implementation",
    "chunk_size_feed_forward", "decoder_start_token_id", "dtype", "embd_layer_norm", "eos_token_id",
    "experts_implementation", "finetuning_task", "gradient_checkpointing", "id2label", "init_std", "initializer_range",
    "is_llama_config", "label2id", "model_type", "n_special", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_past", "pad_token_id", "predict_special_tokens", "problem_type", "return_dict",
    "rope_interleaved", "sep_token_id", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
    "summary_type", "summary_use_proj", "task_specific_params", "tie_word_embeddings", "tokenizer_class", "torch_dtype",
    "transformers.js_config", "transformers_version", "use_cache", "vocab_size",
}  # fmt: skip


def spec_of(model: PreTrainedModel) -> ModelSpec:
    """The spec of `model`, checked: its configuration is understood, and every weight belongs to a part.

    Raises:
        BadInput: no file knows this model, a key of the configuration that changes it, or one of its weights.
    """
    config = model.config
    for family in FAMILIES:
        if family.matches(config):
            _refuse_unknown_keys(config, family)
            spec = family.spec(model)
            _refuse_unclaimed(model, spec)
            return spec
    known = ", ".join(family.name for family in FAMILIES)
    raise BadInput(f"{type(model).__name__} is of no family that is supported; supported: {known}")


def _refuse_unknown_keys(config: PreTrainedConfig, family: Family) -> None:
    """An allow-list: a switch that differs from the library's default and that nobody here has read is refused."""
    defaults, known = type(config)().to_dict(), family.known | _HARMLESS
    unknown = [
        f"{key} = {value!r}"
        for key, value in sorted(config.to_dict().items())
        if key not in known and not key.startswith("_") and value not in (None, False) and value != defaults.get(key)
    ]
    if unknown:
        raise BadInput(
            f"the configuration of this {config.model_type} has values that gbcd/models/families does not know, so its "
            f"results could be wrong:\n{listed(unknown)}"
        )


def _refuse_unclaimed(model: nn.Module, spec: ModelSpec) -> None:
    embedding = spec.embedding
    modules = [one.module for one in (*spec.maps, *spec.norms)]
    modules += [path for path in (embedding.token, embedding.position, embedding.unembed) if path is not None]
    claimed = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    if missing := [name for name, _ in model.named_parameters() if name not in claimed]:
        raise BadInput(f"weights that no part claims, so their gradients would be lost:\n{listed(missing)}")
    unknown = sorted({mlp.activation for mlp in spec.mlps if mlp is not None} - ACTIVATIONS.keys())
    if unknown:
        raise BadInput(f"activation {unknown[0]!r} is not known; known: {', '.join(ACTIVATIONS)}")
