"""What a model takes on a GPU, by its sizes: real ones without weights, held against their parameters and docs."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from small_runs import finished, small_study
from tiny_models import saved_tiny_gpt2
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gbcd.errors import BadInput
from gbcd.evaluation import evaluate as evaluating
from gbcd.models import load as models
from gbcd.models import memory
from gbcd.models.families import spec_of
from gbcd.run.settling import batch_size
from gbcd.study import Compute

LLAMA_8B = {
    "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip


def without_weights(dtype: str, family: str = "llama", **sizes: object) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes), dtype=getattr(torch, dtype))


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return without_weights("bfloat16", **LLAMA_8B)


def with_gpu(monkeypatch: pytest.MonkeyPatch, gigabytes: float) -> None:
    monkeypatch.setattr(memory, "gpu_bytes", lambda device: int(gigabytes * 1e9))


def test_the_sizes_of_a_large_model_are_those_of_its_parameters_and_of_the_docs(llama: PreTrainedModel) -> None:
    """8.03 G parameters; 20 tokens of `70 thousand numbers` in and out of the maps of a block, times four."""
    assert memory.weight_bytes(llama) == pytest.approx(2 * 8_030_261_248, rel=1e-6)
    maps = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14_336)
    expected = 4 * (2 * 32 * (20 * maps + 32 * 20**2) + 128_256 * (3 * 2 + 3 * 8))
    assert memory.prompt_bytes(llama, spec_of(llama), 20) == expected == pytest.approx(438e6, rel=2e-3)


def test_tied_weights_count_once() -> None:
    """GPT-2 small has 124 M parameters, whose unembedding is its embedding."""
    assert memory.weight_bytes(without_weights("float32", "gpt2")) == pytest.approx(4 * 124_439_808, rel=1e-6)


@pytest.mark.parametrize(
    ("gigabytes", "share", "fits"), [(80.0, 1.0, True), (24.0, 1.0, True), (24.0, 0.5, False), (16.0, 1.0, False)]
)
def test_weights_that_do_not_fit_are_refused_with_the_limit(
    monkeypatch: pytest.MonkeyPatch, llama: PreTrainedModel, gigabytes: float, share: float, fits: bool
) -> None:
    with_gpu(monkeypatch, gigabytes)
    if fits:
        return memory.refuse_too_large(llama, torch.device("cuda"), share)
    with pytest.raises(BadInput) as refused:
        memory.refuse_too_large(llama, torch.device("cuda"), share)
    said = str(refused.value)
    assert f"take 16.1 GB in bfloat16, and a worker has {gigabytes * share:.1f} GB, {share:g} of the GPU" in said
    assert ("gpus_per_worker" in said) == (share < 1)
    assert 'dtype = "bfloat16"' not in said
    return memory.refuse_too_large(llama, torch.device("cpu"), share)


def test_a_smaller_type_is_named_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, 0.4)
    with pytest.raises(BadInput, match=r"take 0\.5 GB in float32, and a worker has 0\.4 GB.* dtype = \"bfloat16\""):
        memory.refuse_too_large(without_weights("float32", "gpt2"), torch.device("cuda"), 1.0)


def test_a_model_is_refused_before_it_is_sent_to_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "resolve_device", lambda device, dtype: torch.device("cuda"))
    with_gpu(monkeypatch, 1e-6)
    with pytest.raises(BadInput, match=r"model .* cannot be loaded: its weights take .* 0\.25 of the GPU"):
        models.load(saved_tiny_gpt2(tmp_path), "cuda", share=0.25)


def test_a_batch_is_what_fits_beside_the_weights(monkeypatch: pytest.MonkeyPatch, llama: PreTrainedModel) -> None:
    """On 80 GB: 72 - 16.1 GB, of 438 MB a prompt, are 127 (docs/architectures.md), so a batch of 64."""
    with_gpu(monkeypatch, 80)
    spec = spec_of(llama)
    assert memory.prompts_beside(llama, spec, 20, 1.0) is None  # it lies on no GPU
    monkeypatch.setattr(PreTrainedModel, "device", torch.device("cuda"))
    assert memory.prompts_beside(llama, spec, 20, 1.0) == 127
    assert batch_size("cuda", 20, 127) == 64
    assert batch_size("cuda", 20, memory.prompts_beside(llama, spec, 20, 0.5)) == 32
    assert memory.prompts_beside(llama, spec, 20, 0.2) == 0
    assert batch_size("cuda", 20, 0) == 1


def test_without_workers_a_model_has_the_whole_gpu() -> None:
    assert [Compute(workers=n, gpus_per_worker=0.5).gpu_share for n in (0, 1, 2)] == [1.0, 0.5, 0.5]


def test_the_model_that_planned_is_gone_when_workers_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that it shares with them its memory is given back."""
    planned: list[weakref.ref[PreTrainedModel]] = []
    alive: list[bool] = []
    read = models.checkpoint.read

    def remembered(source: str, dtype: torch.dtype) -> PreTrainedModel:
        model = read(source, dtype)
        planned.append(weakref.ref(model))
        return model

    monkeypatch.setattr(models.checkpoint, "read", remembered)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: alive.append(planned[0]() is not None))
    finished(small_study(tmp_path, prompts_per_task=8))
    assert alive == [False]


@pytest.mark.parametrize(("workers", "share"), [(2, 0.5), (0, 1.0)])
def test_the_model_of_an_evaluation_has_the_share_of_its_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int, share: float
) -> None:
    study = small_study(tmp_path, gpus_per_worker=0.5)
    finished(study)

    def load_model(*given: object) -> None:
        raise BadInput(f"share {given[-1]}")

    monkeypatch.setattr(evaluating, "load_model", load_model)
    with pytest.raises(BadInput, match=f"^share {share}$"):
        evaluating.evaluate(study.out, 4, workers=workers, device="cpu")
