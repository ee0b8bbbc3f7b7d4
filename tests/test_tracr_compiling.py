"""`gbcd compile-tracr`: what it refuses anywhere, and, where tracr is installed, that it gives the shipped models."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gbcd.cli import app
from gbcd.errors import BAD_INPUT, BadInput
from gbcd.models import load as models
from gbcd.tracr import compiling

needs_tracr = pytest.mark.skipif(
    importlib.util.find_spec("tracr") is None, reason="tracr is not installed: pip install 'gbcd[tracr]'"
)
VOCABULARIES = {"tracr_xproportion": "w x y z", "tracr_reverse": "1 2 3"}


@needs_tracr
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", VOCABULARIES)
def test_compiling_again_gives_the_shipped_weights_and_tracrs_own_outputs(name: str):
    program = compiling.find_program(f"gbcd.tracr.programs:{name.removeprefix('tracr_')}")
    symbols = compiling.symbols_of(VOCABULARIES[name])
    again, shipped = compiling.compile_program(program, symbols, 5), models.load(name, "cpu")
    expected = shipped.model.state_dict()
    assert {key: tensor.shape for key, tensor in again.model.state_dict().items()} == {
        key: tensor.shape for key, tensor in expected.items()
    }
    assert all(torch.equal(tensor, expected[key]) for key, tensor in again.model.state_dict().items())
    assert again.tokenizer.backend_tokenizer.to_str() == shipped.tokenizer.backend_tokenizer.to_str()  # pyright: ignore
    theirs = compiling._assembled(program, symbols, 5)
    for length in range(1, 6):
        inputs = [tokens for tokens in again.inputs if len(tokens) == length]
        own_ids = [shipped.tokenizer(" ".join(map(str, tokens)))["input_ids"] for tokens in inputs]
        found = shipped.model(torch.tensor(own_ids)).logits[:, 1:]
        found = found.argmax(2) if found.shape[2] > 1 else found[..., 0]
        their_ids = [theirs.input_encoder.encode([compiling.BOS_TOKEN, *tokens]) for tokens in inputs]
        expected_outputs = np.asarray(theirs.forward(theirs.params, np.array(their_ids)).unembedded_output)[:, 1:]
        np.testing.assert_allclose(found.numpy(), expected_outputs, atol=1e-6)


@pytest.mark.parametrize(
    ("program", "vocabulary", "length", "problem"),
    [
        ("reverse", "1 2 3", "5", "must be written module:name"),
        ("gbcd.nowhere:reverse", "1 2 3", "5", "compiling needs tracr|cannot be imported"),
    ],
)
def test_programs_that_cannot_be_found_are_bad_input(program: str, vocabulary: str, length: str, problem: str):
    arguments = ["compile-tracr", program, "--vocab", vocabulary, "--max-length", length, "--out", "nowhere"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == BAD_INPUT
    with pytest.raises(BadInput, match=problem):
        compiling.find_program(program)
    assert not Path("nowhere").exists()


def test_vocabularies_are_integers_where_all_are_and_name_each_symbol_once():
    assert compiling.symbols_of("1 2 -3") == [1, 2, -3]
    assert compiling.symbols_of("1 b") == ["1", "b"]
    for bad in ("", "a b a"):
        with pytest.raises(BadInput, match="each once"):
            compiling.symbols_of(bad)


def test_too_many_inputs_are_refused_with_their_number():
    with pytest.raises(BadInput, match=r"11,111,110 inputs"):
        compiling.compile_program(None, list("abcdefghij"), 7)


def test_a_program_without_an_output_is_refused():
    with pytest.raises(BadInput, match="no output at position 0 of input 'a'"):
        compiling.compile_program(lambda tokens: [None for _ in tokens], ["a", "b"], 2)


def test_what_is_written_can_be_loaded_as_a_model(tmp_path: Path):
    shipped = models.load("tracr_reverse", "cpu")
    lines = map(json.loads, (models.SHIPPED["tracr_reverse"] / "prompts.jsonl").read_text().splitlines())
    pairs = [(tuple(line["prompt"].split()), tuple(line["answer"].split())) for line in lines]
    compiled = compiling.Compiled(
        shipped.model, shipped.tokenizer, [given for given, _ in pairs], [given for _, given in pairs]
    )  # pyright: ignore
    compiling.write(compiled, tmp_path / "copy")
    assert models.load(str(tmp_path / "copy"), "cpu").sha256 == shipped.sha256
    copied = (tmp_path / "copy" / "prompts.jsonl").read_text()
    assert copied == (models.SHIPPED["tracr_reverse"] / "prompts.jsonl").read_text()
