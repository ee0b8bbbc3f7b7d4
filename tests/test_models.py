"""Weights in memory: one copy for all processes of a machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from oracle_values import mixed_prompts
from random_prompts import VOCAB
from tiny_models import random_model, saved_random, small_tokenizer

from gbcd.engine.engine import Engine
from gbcd.models import load as models
from gbcd.models.load import LoadedModel

SMAPS = Path("/proc/self/smaps")

pytestmark = pytest.mark.skipif(not SMAPS.exists(), reason="only Linux says what a process has mapped")


class Mapping(NamedTuple):
    """A range of this process's addresses: the file behind it, and bytes that were written to, so copied."""

    start: int
    stop: int
    file: str
    copied: int


def mappings() -> list[Mapping]:
    """What this process has mapped."""
    found = re.findall(
        r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)\n(?:[A-Z]\w+:.*\n)*?Anonymous: +(\d+) kB",
        SMAPS.read_text(),
        re.M,
    )
    return [Mapping(int(start, 16), int(stop, 16), file, 1024 * int(copied)) for start, stop, file, copied in found]


def behind(loaded: LoadedModel) -> dict[str, Mapping]:
    """The mapping in which each weight begins, by the weight's name."""
    mapped = mappings()
    return {
        name: next(one for one in mapped if one.start <= weight.data_ptr() < one.stop)
        for name, weight in loaded.model.state_dict().items()
    }


@pytest.mark.parametrize(
    ("family", "shard_size", "n_files"), [("gpt2", "1GB", 1), ("qwen2", "20KB", 3), ("gpt_neox", "1GB", 1)]
)
def test_weights_are_the_file_itself_and_no_pass_writes_to_them(tmp_path, family, shard_size, n_files):
    """GPT-2's embedding is tied; Qwen2 lies in several files."""
    loaded = models.load(saved_random(tmp_path, family, VOCAB, max_shard_size=shard_size), "cpu")
    files = {mapping.file for mapping in behind(loaded).values()}
    assert all(file.startswith(str(tmp_path)) and file.endswith(".safetensors") for file in files)
    assert len(files) >= n_files
    assert loaded.sha256
    engine, prompts = Engine(loaded, ["inverse_logits"]), mixed_prompts((7, 7, 4))
    Engine(loaded, ["logit_difference"], engine.calibrate(prompts), "gim", edges=True).compute(prompts)
    assert {mapping.copied for mapping in behind(loaded).values()} == {0}
    written, weight = next(loaded.model.named_parameters())
    weight.data[0] = 0
    assert behind(loaded)[written].copied > 0


def test_weights_of_another_type_are_a_copy_of_the_process(tmp_path):
    loaded = models.load(saved_random(tmp_path, "gpt2", VOCAB), "cpu", "bfloat16")
    assert not any(mapping.file.startswith(str(tmp_path)) for mapping in behind(loaded).values())


def test_the_mapped_file_and_a_copy_of_it_in_memory_are_the_same_weights(tmp_path):
    loaded = models.load(saved_random(tmp_path, "qwen2", VOCAB), "cpu")
    copied = models.prepared("copy", random_model("qwen2", VOCAB, dtype=torch.float32), small_tokenizer())
    assert loaded.sha256 == copied.sha256
