"""GGUF files, written by llama.cpp's own library: read, recorded, and refused by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from real_model import smollm2
from test_cli import gbcd
from tiny_models import random_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel

from gbcd import load_model
from gbcd.errors import BadInput

N_HEADS, N_GROUPS, N_LAYERS, WIDTH = 4, 2, 2, 32
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def letters() -> Tokenizer:
    """A tokenizer of bytes, as GPT-2's without merges but for `th`."""
    vocabulary = {byte: number for number, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocabulary | {"th": 256}, [("t", "h")]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made


def tiny() -> PreTrainedModel:
    return random_model(
        "llama", 257, dtype=torch.float32, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=N_LAYERS,
        num_key_value_heads=N_GROUPS, attention_bias=False, mlp_bias=False, tie_word_embeddings=False,
    )  # fmt: skip


def interleaved(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of queries and keys in llama.cpp's order of rotary pairs."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def written(path: Path, model: PreTrainedModel, architecture: str = "llama") -> str:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(N_LAYERS)
    writer.add_feed_forward_length(64)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_GROUPS)
    writer.add_layer_norm_rms_eps(float(model.config.rms_norm_eps))
    writer.add_rope_freq_base(float(model.config.rope_parameters["rope_theta"]))
    writer.add_vocab_size(257)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(letters().get_vocab(), key=letters().get_vocab().__getitem__))
    writer.add_token_merges(["t h"])
    for name, tensor in model.state_dict().items():
        _add(writer, name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def _add(writer: gguf.GGUFWriter, name: str, weight: np.ndarray[Any, Any]) -> None:
    """One tensor; the second map of every MLP in eight bits."""
    outer = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
    if name in outer:
        writer.add_tensor(f"{outer[name]}.weight", weight)
        return
    layer, inner = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    target = NAMES[inner]
    if target in ("attn_q", "attn_k"):
        weight = interleaved(weight, N_HEADS if target == "attn_q" else N_GROUPS)
    if target == "ffn_down":
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(f"blk.{layer}.{target}.weight", gguf.quantize(weight, kind), raw_dtype=kind)
    else:
        writer.add_tensor(f"blk.{layer}.{target}.weight", np.ascontiguousarray(weight))


def test_a_file_is_the_model_that_was_written(tmp_path: Path) -> None:
    model = tiny()
    loaded = load_model(written(tmp_path / "tiny.gguf", model), "cpu")
    ids = loaded.tokenizer("the other", return_tensors="pt")["input_ids"]
    assert ids.tolist() == [letters().encode("the other").ids]
    with torch.no_grad():
        expected, found = model(ids).logits, loaded.model(ids).logits
    assert float((found - expected).abs().max()) < 0.03 * float(expected.abs().max())  # eight bits
    q_proj = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(loaded.model.state_dict()[q_proj], model.state_dict()[q_proj])
    assert loaded.gguf is not None
    assert loaded.gguf.quantisation == "F32 19, Q8_0 2"


def test_show_and_plan_say_what_was_read(tmp_path: Path) -> None:
    file = written(tmp_path / "tiny.gguf", tiny())
    lines = [{"prompt": "the other", "answer": "a", "wrong_answer": "b"} for _ in range(2)]
    (tmp_path / "p.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    asked = ["--prompts", str(tmp_path / "p.jsonl"), "--model", file]
    status, said, refused = gbcd("show", *asked)
    assert status == 0, refused
    assert "quantisation        F32 19, Q8_0 2" in said
    assert "occur more than once" in " ".join(said.split())
    status, said, refused = gbcd("plan", *asked, "--device", "cpu", "--out", str(tmp_path / "out"))
    assert status == 0, refused
    assert "1 of 2 prompts occur more than once" in " ".join(said.split())
    facts = json.loads((tmp_path / "out" / "plan.json").read_text())["sources"]["facts"]
    assert facts["quantisation"] == "F32 19, Q8_0 2"
    assert facts["special_tokens"] == "none"
    assert len(facts["gguf_sha256"]) == 64


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: path.write_bytes(b"GGUF" + b"x" * 40), "cannot be read as GGUF"),
        (lambda path: path.write_bytes(b""), "cannot be read as GGUF"),
        (lambda path: written(path, tiny(), "unheard_of"), "unheard_of"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, write: Any, said: str) -> None:
    write(tmp_path / "bad.gguf")
    with pytest.raises(BadInput, match=r"bad\.gguf' cannot be loaded: ") as refused:
        load_model(str(tmp_path / "bad.gguf"), "cpu")
    assert said in str(refused.value)


def test_without_its_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "any.gguf").write_bytes(b"GGUF")
    with pytest.raises(BadInput, match=r"pip install 'gbcd\[gguf\]'"):
        load_model(str(tmp_path / "any.gguf"), "cpu")


def test_the_real_model_completes_a_sentence() -> None:
    loaded = load_model(smollm2(), "cpu")
    ids = loaded.tokenizer("When Mary and John went to the store, John gave a drink to", return_tensors="pt")
    with torch.no_grad():
        logits = loaded.model(**ids).logits[0, -1]
    assert loaded.tokenizer.decode([int(logits.argmax())]) == " Mary"
    assert float(logits.softmax(0).max()) > 0.9
