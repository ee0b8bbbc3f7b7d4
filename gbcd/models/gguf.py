"""GGUF files: weights (mostly quantised), configuration and tokenizer in one file, as llama.cpp keeps them.

The weights are dequantised when they are read, so that what follows is an ordinary model of the library's class. What
was lost when the file was quantised stays lost: results are those of this file, which is why a plan records its hash
and how it is quantised.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gbcd.errors import BadInput

INSTALL = "pip install 'gbcd[gguf]'"


class GgufRecord(NamedTuple):
    """What a plan keeps of a file.

    Attributes:
        sha256: hash of the file.
        quantisation: types of its tensors with their numbers, the most frequent first: `Q4_1 210, F32 61, Q8_0 1`.
    """

    sha256: str
    quantisation: str


def is_gguf(name: str) -> bool:
    """True if a model of this name is a GGUF file."""
    return name.lower().endswith(".gguf")


def record(path: str) -> GgufRecord:
    """Hash and quantisation of the file.

    Raises:
        BadInput: the library that reads GGUF is not installed, or the file is none.
    """
    try:
        import gguf
    except ImportError as error:
        raise BadInput(f"reading GGUF needs a library that is not installed: {INSTALL}") from error
    try:
        tensors = cast(Any, gguf).GGUFReader(path).tensors
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except Exception as error:  # the reader has no error of its own
        raise BadInput(f"it cannot be read as GGUF: {error}") from error
    counts = Counter(str(tensor.tensor_type.name) for tensor in tensors)
    return GgufRecord(sha256, ", ".join(f"{kind} {count}" for kind, count in counts.most_common()))


def read_model(path: str, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, dequantised, and what the library says of loading it (missing and unexpected tensors)."""
    from transformers import GgufConfig

    file = Path(path)
    return cast(Any, AutoModelForCausalLM).from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=dtype,
        quantization_config=GgufConfig(gguf_file=file.name, dequantize=True),
        output_loading_info=True,
    )


def read_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the file."""
    file = Path(path)
    return cast(Any, AutoTokenizer).from_pretrained(file.parent, gguf_file=file.name)


def convert(path: str, folder: Path) -> None:
    """Write the model of `path` to `folder` as safetensors in float32, with its tokenizer."""
    model, _ = read_model(path, torch.float32)
    model.save_pretrained(folder)
    read_tokenizer(path).save_pretrained(folder)
