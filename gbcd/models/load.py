"""Load a model by name: one that is shipped, a local directory, a GGUF file, or a name on the model hub.

Weights are read from safetensors or GGUF only and no code that comes with a model is ever run. There is no fallback: a
model that is not available, or not whole, is an error that names the ways out.

The library maps safetensors into memory. On the processor and in the file's own type the parameters are that mapping,
and nothing here writes to them, so all processes of a machine share one copy of the weights: the kernel's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gbcd import hub, models
from gbcd.component import Component
from gbcd.errors import BadInput
from gbcd.models import checkpoint, gguf, tokenizers
from gbcd.models.decoder import Decoder
from gbcd.models.families import spec_of
from gbcd.models.gguf import GgufRecord
from gbcd.models.memory import refuse_too_large
from gbcd.models.spec import ModelSpec
from gbcd.prompting import special_tokens
from gbcd.prompting.outputs import space_of
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.prompt_files import PromptFile, check
from gbcd.prompting.special_tokens import Bos
from gbcd.prompting.tokens import EncodedPrompt, Tokenised

REFERENCE = "reference"
REFERENCE_DIRECTORY = Path(__file__).parent.parent / "reference" / "model"
_COMPILED = Path(__file__).parent.parent / "tracr" / "models"

#: Models that come with the package.
SHIPPED = {
    REFERENCE: REFERENCE_DIRECTORY,
    "tracr_xproportion": _COMPILED / "xproportion",
    "tracr_reverse": _COMPILED / "reverse",
}

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedModel:
    """A frozen model with what belongs to it.

    Attributes:
        name: as it was asked for.
        model: in evaluation mode, no parameter requires a gradient.
        tokenizer: the model's own.
        spec: how it is built, part by part.
        gguf: of a model that was read from a GGUF file, its hash and quantisation.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: ModelSpec
    gguf: GgufRecord | None = None

    def encode(self, prompts: Iterable[Prompt], bos: Bos = "auto") -> list[EncodedPrompt]:
        """The prompts as this model reads them; see `gbcd.prompting.tokens.encode`."""
        return self.tokenised(prompts, bos).encoded()

    def tokenised(self, prompts: Iterable[Prompt], bos: Bos = "auto") -> Tokenised:
        """The same in two steps, of which the first takes no lock of Python's."""
        return Tokenised(prompts, self.tokenizer, self.context, self.vocabulary_size, bos)

    def check(self, path: str, needs_wrong_answer: Sequence[str] = (), bos: Bos = "auto") -> PromptFile:
        """A prompt file as this model reads it; see `gbcd.prompting.prompt_files.check`."""
        return check(path, self.tokenizer, self.context, needs_wrong_answer, self.vocabulary_size, bos)

    def facts(self, bos: Bos) -> dict[str, str]:
        """What a plan records of the model beside its hash: tokens added to each text, and what was read from GGUF."""
        facts = {"special_tokens": special_tokens.described(self.tokenizer, bos)}
        if self.gguf is not None:
            facts |= {"gguf_sha256": self.gguf.sha256, "quantisation": self.gguf.quantisation}
        return facts

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
        """The matrix that turns the final residual stream into logits, without rows that stand for no token."""
        return self.decoder.unembedding

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding."""
        return cast(Any, self.model.get_submodule(self.spec.embedding.token)).weight.shape[0]

    @property
    def n_tokens(self) -> int | None:
        """Rows of the unembedding that stand for a token; models pad theirs, and no token is one of the rows beyond.

        None for a model whose outputs are no tokens.
        """
        if space_of(self.tokenizer) is not None:
            return None
        return min(self.vocabulary_size, max(self.tokenizer.get_vocab().values()) + 1)

    @cached_property
    def components(self) -> list[Component]:
        """Parts in canonical order."""
        return models.components(self.model, self.spec)

    @cached_property
    def decoder(self) -> Decoder:
        """What runs it."""
        return Decoder(self.model, self.spec, self.n_tokens)

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights as loaded: name, type, shape and bytes of every tensor, in order of name."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


def load(name: str, device: str = "auto", dtype: str = "float32", share: float = 1.0) -> LoadedModel:
    """Load `name`: a shipped model, a local directory, a GGUF file, or a hub name such as `gpt2`.

    On a GPU the model has a `share` of its memory.

    Raises:
        BadInput: unknown name, unreachable hub, weights that are not safetensors or GGUF, incomplete or damaged files,
            an architecture that no file knows, a device that is missing, lacks the type or has too little memory.
    """
    target = resolve_device(device, dtype)
    source = _source(name)
    try:
        record = gguf.record(source) if gguf.is_gguf(source) else None
        model, tokenizer = checkpoint.read(source, DTYPES[dtype]), tokenizers.read(source)
        refuse_too_large(model, target, share)
    except BadInput as error:
        raise BadInput(f"model {name!r} cannot be loaded: {error}") from error
    try:
        model = cast(Any, model).to(target)
    except torch.OutOfMemoryError as error:
        raise BadInput(
            f"model {name!r} does not fit into what other programs leave of {target}: choose another device or dtype"
        ) from error
    return replace(prepared(name, model, tokenizer), gguf=record)


def prepared(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    """Freeze `model` and describe it.

    Raises:
        BadInput: no family's file knows the model.
    """
    model.eval().requires_grad_(False)
    return LoadedModel(name, model, tokenizer, spec_of(model))


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `name`, without the weights.

    Raises:
        BadInput: it is not available.
    """
    try:
        return tokenizers.read(_source(name, weights=False))
    except BadInput as error:
        raise BadInput(f"model {name!r} cannot be loaded: {error}") from error


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


def _source(name: str, weights: bool = True) -> str:
    """The directory or file that holds the model."""
    path = str(SHIPPED.get(name, name))
    if Path(path).is_dir() or (gguf.is_gguf(path) and Path(path).is_file()):
        return path
    if path.startswith(("/", "./", "../", "~")) or gguf.is_gguf(path):
        raise BadInput(f"model {name!r}: there is no such {'file' if gguf.is_gguf(path) else 'directory'}")
    try:
        return str(hub.folder_of(path, weights))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"model {name!r} is no directory here, and the model hub does not give it: {str(error).splitlines()[0]}\n"
            "Check the spelling; go online; or download it elsewhere (hf download NAME --local-dir DIR) and pass the "
            f"directory. Shipped with gbcd: {', '.join(SHIPPED)}."
        ) from error
