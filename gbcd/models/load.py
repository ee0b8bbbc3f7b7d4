"""Load a model by name or directory: one that is shipped, a local directory, or a name on the model hub.

Weights are read from safetensors only and no code that comes with a model is ever run. There is no fallback: a model
that cannot be had is an error that names the ways out.

The library maps safetensors into memory. On the processor and in the file's own type the parameters are that mapping,
and nothing here writes to them, so all processes of a machine share one copy of the weights: the kernel's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from gbcd import models
from gbcd.component import Component
from gbcd.errors import BadInput
from gbcd.models.decoder import Decoder
from gbcd.models.families import spec_of
from gbcd.models.spec import ModelSpec

REFERENCE = "reference"
REFERENCE_DIRECTORY = Path(__file__).parent.parent / "reference" / "model"
_COMPILED = Path(__file__).parent.parent / "tracr" / "models"

#: Models that come with the package.
SHIPPED = {
    REFERENCE: REFERENCE_DIRECTORY,
    "tracr_xproportion": _COMPILED / "xproportion",
    "tracr_reverse": _COMPILED / "reverse",
}

_PLAIN_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedModel:
    """A frozen model with what belongs to it.

    Attributes:
        name: as it was asked for.
        model: in evaluation mode, no parameter requires a gradient.
        tokenizer: the model's own.
        spec: how it is built, part by part.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: ModelSpec

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.model.dtype

    @property
    def context(self) -> int:
        """Longest sequence, in tokens, that the model takes."""
        return int(self.model.config.max_position_embeddings)

    @property
    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        """The matrix that turns the final residual stream into logits."""
        return self.decoder.unembedding

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that the model reads."""
        return self.decoder.token_table.shape[0]

    @cached_property
    def components(self) -> list[Component]:
        """Parts in canonical order."""
        return models.components(self.model, self.spec)

    @cached_property
    def decoder(self) -> Decoder:
        """What runs it."""
        return Decoder(self.model, self.spec)

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights as loaded: name, type, shape and bytes of every tensor, in order of name."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


def load(name: str, device: str = "auto", dtype: str = "float32") -> LoadedModel:
    """Load `name`: a shipped model, a local directory, or a hub name such as `gpt2`.

    Raises:
        BadInput: unknown name, unreachable hub, weights that are not safetensors, an architecture that no file knows, a
            device that is not there or lacks the type.
    """
    target = resolve_device(device, dtype)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            _source(name), dtype=DTYPES[dtype], use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise _unavailable(name, error) from error
    return prepared(name, cast(Any, model).to(target), load_tokenizer(name))


def prepared(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    """Freeze `model` and describe it.

    Raises:
        BadInput: no family's file knows the model.
    """
    model.eval().requires_grad_(False)
    return LoadedModel(name, model, tokenizer, spec_of(model))


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `name`, without the weights.

    A tokenizer that was saved as a plain `tokenizer.json` is read as such: the library would take the class that goes
    with the model's architecture, which cuts text by rules of its own.

    Raises:
        BadInput: it cannot be had.
    """
    try:
        saved_as = cast(Any, get_tokenizer_config(_source(name))).get("tokenizer_class")
        kind = PreTrainedTokenizerFast if saved_as in _PLAIN_TOKENIZERS else AutoTokenizer
        return cast(Any, kind).from_pretrained(_source(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unavailable(name, error) from error


def resolve_device(device: str, dtype: str) -> torch.device:
    """`auto` is the first GPU where there is one, else the processor.

    Raises:
        BadInput: the device is not there, or it lacks the type.
    """
    if dtype not in DTYPES:
        raise BadInput(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        target = torch.device(device)
        torch.empty(1, dtype=DTYPES[dtype], device=target)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"device {device!r} with dtype {dtype} cannot be used here: {reason}") from error
    return target


def _source(name: str) -> str:
    return str(SHIPPED.get(name, name))


def _unavailable(name: str, error: Exception) -> BadInput:
    reason = str(error).splitlines()[0]
    if Path(name).is_dir() or name in SHIPPED:
        return BadInput(f"model directory {name!r} cannot be loaded: {reason}")
    if name.startswith(("/", "./", "../", "~")):
        return BadInput(f"model {name!r}: there is no such directory")
    return BadInput(
        f"model {name!r} is neither a directory here nor to be had from the model hub: {reason}\n"
        "Ways out: check the spelling; go online; or download it elsewhere (hf download NAME --local-dir DIR) and pass "
        f"the directory. Shipped with gbcd: {', '.join(SHIPPED)}."
    )
