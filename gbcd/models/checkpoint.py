"""Read a model's weights, and refuse what is not the model that its configuration describes.

The library fills what a checkpoint lacks with random numbers and goes on; results would then be those of no model. So
every tensor of the configuration must be in the file with its shape, every tensor of the file must have a place, tied
matrices are as the configuration says, and all numbers are finite.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from gbcd.errors import BadInput, listed
from gbcd.models import gguf

_POINTER = b"version https://git-lfs"

#: Tensors that old checkpoints hold and that the library computes.
_COMPUTED = re.compile(r"(rotary_emb\.inv_freq|\.attn\.(masked_)?bias|attention\.(masked_)?bias)$")


def read(source: str, dtype: torch.dtype) -> PreTrainedModel:
    """The model in `source`, a directory or a GGUF file, on the processor.

    Raises:
        BadInput: says in one sentence what is wrong with the files.
    """
    if gguf.is_gguf(source):
        model, report = _library(lambda: gguf.read_model(source, dtype))
    else:
        _refuse_quantised(Path(source))
        _refuse_broken(Path(source))
        model, report = _library(
            lambda: cast(Any, AutoModelForCausalLM).from_pretrained(
                source,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        )
    _refuse_incomplete(report)
    _refuse_other_tying(model)
    _refuse_not_finite(model)
    return model


def _library(load: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """What the library reads. A damaged file makes it raise nearly anything."""
    try:
        return load()
    except Exception as error:
        raise BadInput(one_line(error)) from error


def one_line(error: Exception) -> str:
    """The beginning of what the library says, with the kind of fault where that says little by itself."""
    said = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
    return said if isinstance(error, (OSError, ValueError, ImportError)) and said else f"{type(error).__name__}: {said}"


def _refuse_quantised(folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # the library says what is wrong
    quantisation = config.get("quantization_config") if isinstance(config, dict) else None
    if quantisation:
        method = (
            quantisation.get("quant_method", "an unnamed method") if isinstance(quantisation, dict) else quantisation
        )
        raise BadInput(
            f"its weights are quantised ({method}), and gradients need plain ones: dequantise it (model.dequantize() "
            "of transformers, then save_pretrained), or take the model that it was made from, or a GGUF file"
        )


def _refuse_broken(folder: Path) -> None:
    for file in sorted(folder.glob("*.safetensors")):
        if not file.is_file():
            raise BadInput(f"{file.name} is no file: fetch the model again")
        with file.open("rb") as opened:
            head = opened.read(len(_POINTER))
        if head == _POINTER:
            raise BadInput(f"{file.name} is a Git LFS pointer, not the weights: run `git lfs pull` there")
        if not head:
            raise BadInput(f"{file.name} is empty: fetch it again")
        try:
            with safe_open(file, "pt") as tensors:
                types = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        except Exception as error:  # SafetensorError is no subclass of anything narrower
            raise BadInput(f"{file.name} is damaged or cut off ({error}): fetch it again") from error
        packed = [f"{name} ({kind})" for name, kind in types.items() if _is_packed(name, kind)]
        if packed:
            raise BadInput(f"{file.name} holds quantised numbers, and config.json does not say how:\n{listed(packed)}")


def _is_packed(name: str, kind: str) -> bool:
    """Whether a tensor is of whole or 8-bit numbers, which the library takes as they are; masks are no weights."""
    return kind.startswith(("I", "U", "F8", "F4")) and not _COMPUTED.search(name)


def _refuse_incomplete(report: dict[str, Any]) -> None:
    missing = sorted(report["missing_keys"])
    if missing:
        raise BadInput(f"the checkpoint lacks {len(missing)} tensors of the configuration:\n{listed(missing)}")
    if mismatched := sorted(report["mismatched_keys"]):
        shapes = [f"{name}: {tuple(has)} in the file, {tuple(wants)} by config.json" for name, has, wants in mismatched]
        raise BadInput(f"{len(shapes)} tensors have another shape than the configuration says:\n{listed(shapes)}")
    extra = sorted(name for name in report["unexpected_keys"] if not _COMPUTED.search(name))
    if extra:
        raise BadInput(f"{len(extra)} tensors of the checkpoint have no place in config.json's model:\n{listed(extra)}")


def _refuse_other_tying(model: PreTrainedModel) -> None:
    """Whether the unembedding is the embedding is for the configuration to say; the library goes by the file."""
    try:
        tokens, unembed = model.get_input_embeddings(), model.get_output_embeddings()
    except NotImplementedError:  # a compiled program
        return
    if not isinstance(tokens, nn.Embedding) or not isinstance(unembed, nn.Linear):
        return
    says = bool(getattr(model.config, "tie_word_embeddings", False))
    if says != (tokens.weight is unembed.weight):
        raise BadInput(
            f"config.json says tie_word_embeddings = {str(says).lower()}, and the checkpoint has "
            f"{'two different matrices' if says else 'one matrix'} for embedding and unembedding: correct config.json"
        )


def _refuse_not_finite(model: PreTrainedModel) -> None:
    # a sum is not finite if one summand is not, and needs no mask as large as the tensor
    suspect = [(name, tensor) for name, tensor in model.named_parameters() if not tensor.sum().isfinite()]
    bad = [name for name, tensor in suspect if not tensor.isfinite().all()]
    if bad:
        raise BadInput(f"{len(bad)} tensors hold numbers that are not finite:\n{listed(bad)}")
