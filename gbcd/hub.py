"""Files of a model hub: from the cache where they are there, else downloaded; an unreachable hub is known in seconds.

The library retries every file of an unreachable hub for half a minute. Here one request without retries decides.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

#: Seconds after which a hub that does not answer is unreachable.
TIMEOUT = 5.0

#: Files of a model beside its weights: configuration and tokenizer, never code.
_SMALL = ["*.json", "*.txt", "*.model", "*.jinja"]


def folder_of(name: str, weights: bool = True, nested: bool = False) -> Path:
    """The local folder with the files of the model `name` of the hub.

    Args:
        name: `gpt2`, or `owner/name`.
        weights: False where configuration and tokenizer are enough.
        nested: with the files of inner folders, which a sentence-embedding model has.

    Raises:
        OSError, ValueError: the hub is not reachable, knows no such model, or does not give it to this user.
    """
    patterns = [*_SMALL, *(["*.safetensors"] if weights else [])]
    unused = ["onnx/*", "openvino/*"] if nested else ["*/*"]
    asked: dict[str, Any] = {"allow_patterns": patterns, "ignore_patterns": [*unused, "consolidated*"]}
    try:
        cached = Path(snapshot_download(name, local_files_only=True, **asked))
        if _is_complete(cached, weights):
            return cached
    except OSError:
        pass  # not in the cache
    try:
        HfApi().model_info(name, timeout=TIMEOUT)
        return Path(snapshot_download(name, **asked))
    except (OSError, ValueError):
        raise
    except Exception as error:  # the library passes on errors of its HTTP client
        raise OSError(str(error)) from error


def _is_complete(folder: Path, weights: bool) -> bool:
    if not (folder / "config.json").exists():
        return False
    index = folder / "model.safetensors.index.json"
    if not weights:
        return True
    if index.exists():
        return all((folder / shard).exists() for shard in set(json.loads(index.read_text())["weight_map"].values()))
    return any(folder.glob("*.safetensors"))
