"""From a RASP program to a model directory: compile with tracr, copy the weights, check every input, save.

tracr and jax are needed here and nowhere else (`pip install 'gbcd[tracr]'`). The vocabulary is laid out anew: padding,
BOS, then the symbols in the order given, so that token 0 is padding as everywhere in gbcd. The directory also holds
`prompts.jsonl`: every input with the program's own output and the farthest one, ready for `gbcd run --prompts`.
"""

# tracr and haiku are an optional extra and carry no types
# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gbcd.errors import BadInput
from gbcd.prompting.outputs import SPACE_KEY, OutputSpace, space_of
from gbcd.tracr.model import PAD, TracrConfig, TracrModel

PAD_TOKEN, BOS_TOKEN = "<pad>", "<bos>"

#: Inputs that are enumerated at most; beyond it a program is not small any more.
MAX_INPUTS = 200_000

#: How far an output may lie from the program's: tracr approximates products and thresholds by ReLUs.
TOLERANCE = 1e-3

Symbol = str | int


class Compiled(NamedTuple):
    """A compiled program, in this library's form.

    Attributes:
        model, tokenizer: what a model directory holds.
        inputs, outputs: every input and the program's output, each a tuple of one value per position.
    """

    model: TracrModel
    tokenizer: PreTrainedTokenizerFast
    inputs: list[tuple[Symbol, ...]]
    outputs: list[tuple[Any, ...]]


def find_program(reference: str) -> Any:
    """The RASP program at `module:name`: an SOp, or a function without arguments that makes one.

    Raises:
        BadInput: tracr is not installed, or there is no such program.
    """
    module, _, name = reference.partition(":")
    if not name:
        raise BadInput(f"program {reference!r} must be written module:name, for example gbcd.tracr.programs:reverse")
    try:
        importlib.import_module("tracr.rasp.rasp")
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("tracr", "jax", "haiku"):
            raise BadInput(
                f"compiling needs tracr, which is not installed ({error}): pip install 'gbcd[tracr]'"
            ) from error
        raise BadInput(f"program {reference!r} cannot be imported: {error}") from error
    except AttributeError as error:
        raise BadInput(f"program {reference!r}: module {module!r} has no {name!r}") from error
    return found() if isinstance(found, Callable) and not hasattr(found, "label") else found


def symbols_of(vocabulary: str) -> list[Symbol]:
    """The symbols of a vocabulary separated by spaces; integers where all of them are.

    Raises:
        BadInput: none, or one named twice.
    """
    words = vocabulary.split()
    if not words or len(set(words)) < len(words):
        raise BadInput(f"--vocab {vocabulary!r} must name at least one symbol, and each once")
    return [int(word) for word in words] if all(word.lstrip("-").isdigit() for word in words) else list(words)


def every_input(symbols: Sequence[Symbol], max_length: int) -> Iterator[tuple[Symbol, ...]]:
    """All sequences of 1 to `max_length` symbols, shortest first."""
    for length in range(1, max_length + 1):
        yield from product(symbols, repeat=length)


def compile_program(program: Any, symbols: Sequence[Symbol], max_length: int) -> Compiled:
    """Compile `program` and check it on every input.

    Raises:
        BadInput: a program that tracr cannot compile, too many inputs, an output that is undefined, or a compiled model
            that does not compute its program.
    """
    count = sum(len(symbols) ** length for length in range(1, max_length + 1))
    if max_length < 1 or count > MAX_INPUTS:
        raise BadInput(f"--max-length {max_length} gives {count:,} inputs; between 1 and {MAX_INPUTS:,} can be studied")
    inputs = list(every_input(symbols, max_length))
    outputs = [tuple(program(list(tokens))) for tokens in inputs]
    for tokens, values in zip(inputs, outputs, strict=True):
        if None in values:
            raise BadInput(f"the program gives no output at position {values.index(None)} of input {_text(tokens)!r}")
    assembled = _assembled(program, symbols, max_length)
    names = _output_names(assembled)
    if not names:
        outputs = [tuple(map(float, values)) for values in outputs]
    space = OutputSpace(names) if names else _number_space(outputs)
    compiled = Compiled(_model(assembled, symbols), _tokenizer(symbols, max_length, space), inputs, outputs)
    _refuse_wrong(compiled, space)
    return compiled


def write(compiled: Compiled, out: Path) -> None:
    """Save model, tokenizer and `prompts.jsonl` to the directory `out`.

    Raises:
        BadInput: `out` cannot be written.
    """
    space = space_of(compiled.tokenizer)
    assert space is not None
    try:
        compiled.model.save_pretrained(out)
        compiled.tokenizer.save_pretrained(out)
        with (out / "prompts.jsonl").open("w", encoding="utf-8") as file:
            for tokens, values in zip(compiled.inputs, compiled.outputs, strict=True):
                answer = _text(values)
                farthest = space.write(space.farthest(space.parse(answer)))
                line = {"prompt": _text(tokens), "answer": answer, "wrong_answer": farthest}
                file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise BadInput(f"--out {str(out)!r} cannot be written: {error.strerror or error}") from error


def _assembled(program: Any, symbols: Sequence[Symbol], max_length: int) -> Any:
    from tracr.compiler import compiling

    try:
        return compiling.compile_rasp_to_model(
            program, set(symbols), max_length, compiler_bos=BOS_TOKEN, compiler_pad=PAD_TOKEN
        )
    except (NotImplementedError, ValueError) as error:
        raise BadInput(f"tracr cannot compile this program: {error}") from error


def _output_names(assembled: Any) -> tuple[str, ...]:
    return tuple(map(str, getattr(assembled.output_encoder, "encoding_map", ())))


def _number_space(outputs: Sequence[tuple[Any, ...]]) -> OutputSpace:
    values = [value for row in outputs for value in row]
    return OutputSpace((), min(values), max(values))


def _model(assembled: Any, symbols: Sequence[Symbol]) -> TracrModel:
    params, shape = assembled.params, assembled.model_config
    encoding = assembled.input_encoder.encoding_map
    rows = [encoding[token] for token in (PAD_TOKEN, BOS_TOKEN, *symbols)]
    tokens, positions = params["token_embed"]["embeddings"], params["pos_embed"]["embeddings"]
    unembed = _unembedding(assembled, tokens.shape[1])
    weights = {
        "token_embed.weight": np.asarray(tokens)[rows],
        "pos_embed.weight": positions,
        "unembed.weight": unembed.T,
    }
    for layer in range(shape.num_layers):
        for block, names in (("attn", ("query", "key", "value", "linear")), ("mlp", ("linear_1", "linear_2"))):
            for name in names:
                found = params[f"transformer/layer_{layer}/{block}/{name}"]
                if np.any(found["b"]):
                    raise BadInput(f"tracr gave layer {layer} {block} {name} a bias, which this model has no place for")
                weights[f"layers.{layer}.{block}.{name}.weight"] = np.asarray(found["w"]).T
    config = TracrConfig(
        vocab_size=len(rows),
        n_outputs=unembed.shape[1],
        d_model=tokens.shape[1],
        n_layers=shape.num_layers,
        n_heads=shape.num_heads,
        d_head=shape.key_size,
        d_mlp=shape.mlp_hidden_size,
        max_position_embeddings=positions.shape[0],
    )
    model = TracrModel(config)
    model.load_state_dict({name: torch.tensor(np.array(value)) for name, value in weights.items()})
    return model.eval()


def _unembedding(assembled: Any, d_model: int) -> np.ndarray:
    # tracr keeps it as a function of the residual stream, so it is read off by unembedding each direction
    import haiku as hk

    def read(directions: Any) -> Any:
        return assembled.get_compiled_model().unembed(directions, use_unembed_argmax=False)

    transformed = hk.without_apply_rng(hk.transform(read))
    return np.asarray(transformed.apply({}, np.eye(d_model, dtype=np.float32))).reshape(d_model, -1)


def _tokenizer(symbols: Sequence[Symbol], max_length: int, space: OutputSpace) -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate((PAD_TOKEN, BOS_TOKEN, *map(str, symbols)))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD_TOKEN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A", special_tokens=[(BOS_TOKEN, vocabulary[BOS_TOKEN])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD_TOKEN,
        bos_token=BOS_TOKEN,
        unk_token=PAD_TOKEN,
        model_max_length=max_length + 1,
        **{SPACE_KEY: asdict(space)},
    )


def _refuse_wrong(compiled: Compiled, space: OutputSpace) -> None:
    tokenizer, longest = compiled.tokenizer, max(map(len, compiled.inputs)) + 1
    ids = torch.tensor([_padded(tokenizer(_text(tokens))["input_ids"], longest) for tokens in compiled.inputs])
    with torch.no_grad():
        given = compiled.model(ids).logits[:, 1:]
    for row, (tokens, values) in enumerate(zip(compiled.inputs, compiled.outputs, strict=True)):
        expected = torch.tensor(space.parse(_text(values)))
        found = given[row, : len(values)]
        found = found.argmax(1).float() if space.symbols else found[:, 0]
        if not bool(((found - expected).abs() <= TOLERANCE).all()):
            shown = [round(value, 4) for value in found.tolist()]
            raise BadInput(
                f"the compiled model does not compute its program: for {_text(tokens)!r} the program gives "
                f"{_text(values)!r}, the model {shown}. tracr cannot compile some programs; see its README"
            )


def _padded(ids: Any, length: int) -> list[int]:
    return [*ids, *[PAD] * (length - len(ids))]


def _text(values: Sequence[Any]) -> str:
    return " ".join(str(value) for value in values)


__all__ = ["Compiled", "compile_program", "every_input", "find_program", "symbols_of", "write"]
