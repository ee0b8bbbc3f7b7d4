"""Load a model's tokenizer as its own file says.

`tokenizer.json` holds everything: how text is cut, and which tokens are added. The library's class for an architecture
puts rules of its own in place of some of it, so the file is read as such wherever there is one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gbcd.errors import BadInput
from gbcd.models import gguf
from gbcd.models.checkpoint import one_line


def read(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer in `source`, a directory or a GGUF file.

    Raises:
        BadInput: it cannot be read, or is none of the library's `tokenizers`.
    """
    try:
        tokenizer = _read(source)
    except Exception as error:  # a damaged file makes the library raise nearly anything
        raise BadInput(f"its tokenizer cannot be read: {one_line(error)}") from error
    if not tokenizer.is_fast:
        raise BadInput(f"its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json: save it with one")
    return tokenizer


def _read(source: str) -> PreTrainedTokenizerBase:
    if gguf.is_gguf(source):
        return gguf.read_tokenizer(source)
    kind = PreTrainedTokenizerFast if (Path(source) / "tokenizer.json").exists() else AutoTokenizer
    return cast(Any, kind).from_pretrained(source, trust_remote_code=False, local_files_only=True)
