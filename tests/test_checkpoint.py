"""What is not the model that its configuration describes is refused in one sentence, by every command."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from random_prompts import VOCAB
from safetensors.torch import load_file, save_file
from test_cli import gbcd
from tiny_models import FAMILIES, saved_random
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from gbcd.commands import doctor
from gbcd.errors import BadInput
from gbcd.models import load as loading

Tensors = dict[str, torch.Tensor]


def saved(folder: Path, family: str = "gpt2") -> Path:
    return Path(saved_random(folder, family, VOCAB))


def edited(folder: Path, edit: Callable[[Tensors], object]) -> None:
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def configured(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refusal(folder: Path) -> str:
    with pytest.raises(BadInput) as refused:
        loading.load(str(folder), "cpu")
    return str(refused.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_checkpoint_of_every_family_loads(tmp_path: Path, family: str) -> None:
    assert loading.load(str(saved(tmp_path, family)), "cpu").components


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    lost = ["transformer.h.1.mlp.c_fc.weight", "transformer.h.2.ln_1.weight"]
    edited(saved(tmp_path), lambda tensors: [tensors.pop(name) for name in lost])
    assert "lacks 2 tensors of the configuration:\n" + "\n".join(lost) in refusal(tmp_path)


def test_tensors_of_another_shape_are_named_with_both(tmp_path: Path) -> None:
    configured(saved(tmp_path), n_inner=100)
    message = refusal(tmp_path)
    assert "9 tensors have another shape than the configuration says" in message
    assert "transformer.h.0.mlp.c_fc.weight: (24, 96) in the file, (24, 100) by config.json" in message


def test_tensors_without_a_place_are_named_and_computed_ones_are_not(tmp_path: Path) -> None:
    edited(saved(tmp_path), lambda tensors: tensors.update({"transformer.h.0.attn.bias": torch.zeros(1, 1, 4, 4)}))
    loading.load(str(tmp_path), "cpu")
    configured(tmp_path, n_layer=2)
    assert "11 tensors of the checkpoint have no place in config.json's model:\ntransformer.h.2." in refusal(tmp_path)


def test_tied_matrices_are_as_the_configuration_says(tmp_path: Path) -> None:
    configured(saved(tmp_path / "two", "llama"), tie_word_embeddings=True)
    assert "tie_word_embeddings = true, and the checkpoint has two different matrices" in refusal(tmp_path / "two")
    configured(saved(tmp_path / "one", "llama_own_keys"), tie_word_embeddings=False)
    assert "lacks 1 tensors of the configuration:\nlm_head.weight" in refusal(tmp_path / "one")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    name = "transformer.h.1.mlp.c_fc.weight"
    edited(saved(tmp_path), lambda tensors: tensors[name].view(-1)[7].fill_(torch.nan))
    assert f"1 tensors hold numbers that are not finite:\n{name}" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "model.safetensors is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer, not the weights"),
        (b"x" * 100, "model.safetensors is damaged or cut off"),
    ],
)
def test_a_file_that_holds_no_weights_is_named(tmp_path: Path, raw: bytes, said: str) -> None:
    (saved(tmp_path) / "model.safetensors").write_bytes(raw)
    assert said in refusal(tmp_path)


def test_a_folder_in_the_place_of_weights_is_no_file(tmp_path: Path) -> None:
    (saved(tmp_path) / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    assert "model.safetensors is no file" in refusal(tmp_path)


def test_whole_numbers_without_a_word_on_quantisation_are_refused(tmp_path: Path) -> None:
    name = "transformer.h.1.mlp.c_fc.weight"
    edited(saved(tmp_path), lambda tensors: tensors.update({name: (tensors[name] * 100).to(torch.int8)}))
    assert f"quantised numbers, and config.json does not say how:\n{name} (I8)" in refusal(tmp_path)


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    file = saved(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors is damaged or cut off" in refusal(tmp_path)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8"])
def test_quantised_weights_are_refused_by_method(tmp_path: Path, method: str) -> None:
    configured(saved(tmp_path), quantization_config={"quant_method": method})
    assert f"its weights are quantised ({method})" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "foo"}, "model type `foo`"),
        ({"n_embd": "wide"}, "n_embd"),
        ({"n_head": 5}, "divisible by num_heads"),
        ({"activation_function": "foo"}, "KeyError: 'foo'"),
    ],
)
def test_a_configuration_that_describes_no_model_is_refused(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    configured(saved(tmp_path), **values)
    assert said in refusal(tmp_path)


def test_every_command_refuses_in_one_sentence_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "ray_works", lambda: "not started in this test")
    model, out = saved(tmp_path / "model"), tmp_path / "out"
    edited(model, lambda tensors: tensors.pop("transformer.h.2.ln_1.weight"))
    for command in (["run", "--task", "ioi", "--out", str(out)], ["show", "ioi"], ["doctor", "--out", str(out)]):
        status, said, refused = gbcd(*command, "--model", str(model))
        assert status == 2
        assert "lacks 1 tensors of the configuration" in " ".join((said + refused).split())
        assert "Traceback" not in refused
        assert logging.get_verbosity() == logging.ERROR  # the library's own report is not printed before it
    assert not (out / "plan.json").exists()


def test_a_tokenizer_is_read_as_its_file_says_whatever_its_class(tmp_path: Path) -> None:
    """GPT-2's class would put its own rules in place of the pairs of digits that the file cuts."""
    saved(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}))
    text = "The war lasted from 1732 to 17, said Andrew."
    whole = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text)
    assert loading.load_tokenizer(str(tmp_path)).encode(text) == whole.ids


def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (saved(tmp_path) / "tokenizer.json").write_text("{")
    assert "its tokenizer cannot be read" in refusal(tmp_path)


def test_an_unreachable_hub_is_known_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", "http://127.0.0.1:9", raising=False)
    started = time.monotonic()
    with pytest.raises(BadInput, match="no directory here, and the model hub does not give it"):
        loading.load("nobody/no-such-model", "cpu")
    assert time.monotonic() - started < 10


def test_a_file_that_does_not_exist_is_named() -> None:
    with pytest.raises(BadInput, match=r"'none\.gguf': there is no such file"):
        loading.load("none.gguf", "cpu")


def foreign_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    words = {f"w{number}": number for number in range(vocab)}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w0")


@pytest.mark.parametrize("field", ["prompt", "answer"])
def test_tokens_without_an_embedding_row_are_refused_when_planned(tmp_path: Path, field: str) -> None:
    model, out = saved(tmp_path / "model"), tmp_path / "out"
    shutil.copy(model / "config.json", tmp_path)
    foreign_tokenizer(VOCAB + 5).save_pretrained(model)
    words = {"prompt": "w1 w2", "answer": "w3"} | {field: f"w{VOCAB + 1}"}
    (tmp_path / "own.jsonl").write_text(json.dumps(words) + "\n")
    for command in (["run", "--out", str(out)], ["show"]):
        status, _, refused = gbcd(*command, "--prompts", str(tmp_path / "own.jsonl"), "--model", str(model))
        assert status == 2
        said = " ".join(refused.split())
        assert f"'w{VOCAB + 1}' (id {VOCAB + 1})" in said
        assert f"embedding of the model ends at {VOCAB - 1}" in said
    assert not out.exists()
