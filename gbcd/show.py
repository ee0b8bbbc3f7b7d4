"""Prompts as the model reads them: tokens, answers, what the model itself predicts, what each definition pulls towards.

    gbcd show ioi --model reference -n 5
    gbcd show tracr_reverse
    gbcd show --prompts FILE --model DIR

Tokens are set apart by bars, with a space of their own shown as it is and a line break as \\n. Lines wrap at the width
of the window. For a compiled program answers, outputs and targets are a value per position after BOS.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gbcd import tasks, wrong_answers
from gbcd.architectures import models
from gbcd.architectures.models import LoadedModel
from gbcd.errors import BadInput
from gbcd.gradients.engine import pass_for, scene_of
from gbcd.gradients.gram import widened
from gbcd.prompting import prompt_files
from gbcd.prompting.outputs import OutputSpace, space_of
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.tokens import EncodedPrompt, encode
from gbcd.wrong_answers import Scene, meaning, output_targets
from gbcd.wrong_answers.losses import Target, TokenSet
from gbcd.wrong_answers.output_targets import OutputScene, TowardsOutputs, output_scene

#: The model's own predictions that are listed.
TOP = 5

#: Tokens of a set that are written out.
SHOWN = 6

LABEL = 20


def default_model(task: str | None) -> str:
    """The model that `task` is shown on where none is named: its own, or the reference model.

    Raises:
        BadInput: there is no such task.
    """
    return (tasks.get(task).model if task is not None else None) or models.REFERENCE


def chosen(loaded: LoadedModel, task: str | None, file: str | None, n: int, seed: int) -> list[Prompt]:
    """`n` prompts of a task, or the first `n` of a file, of which every line is checked.

    Raises:
        BadInput: neither or both of task and file, fewer than one prompt, or prompts that cannot be used.
    """
    if (task is None) == (file is None):
        raise BadInput("say what to show: a task (gbcd show ioi) or a file (gbcd show --prompts FILE)")
    if n < 1:
        raise BadInput(f"{n} prompts were asked for; ask for at least 1")
    if task is not None:
        return tasks.draw(task, loaded.tokenizer, n, seed)
    read = prompt_files.check(str(file), loaded.tokenizer, loaded.context)
    return list(read.read(range(min(n, len(read)))))


def show(prompts: Sequence[Prompt], loaded: LoadedModel, embedding_model: str | None, console: Console) -> None:
    """Print `prompts` with what the model makes of them.

    With an `embedding_model` the answer farthest in meaning is shown, among the answers of these prompts; a study
    chooses among those of all its prompts.

    Raises:
        BadInput: a prompt that cannot be used.
    """
    space = space_of(loaded.tokenizer)
    if embedding_model is not None and space is None:
        prompts = meaning.with_farthest(prompts, meaning.load_embedder(embedding_model))
    for encoded in encode(prompts, loaded.tokenizer, loaded.context):
        for label, text in _lines(encoded, loaded) if space is None else _output_lines(encoded, loaded, space):
            _print(label, text, console)
        console.print()


def _lines(encoded: EncodedPrompt, loaded: LoadedModel) -> Iterator[tuple[str, str]]:
    prompt, tokenizer = encoded.prompt, loaded.tokenizer
    logits = widened(pass_for(loaded).forward([(encoded.ids,)]).logits[:, 0])
    scene = scene_of([encoded], logits, loaded)
    probabilities = torch.softmax(logits[0], 0)
    yield prompt.id, f"template {prompt.template}, {len(encoded.ids)} tokens"
    yield "prompt", _bars(encoded.ids, tokenizer)
    if encoded.twin_ids is not None:
        yield "twin", _bars(encoded.twin_ids, tokenizer)
    if encoded.counterfactual_ids is not None:
        yield "counterfactual", _bars(encoded.counterfactual_ids, tokenizer)
    yield "answer", _with_share(encoded.answer_ids, probabilities, tokenizer)
    if encoded.wrong_ids:
        yield "wrong answer", _with_share(encoded.wrong_ids, probabilities, tokenizer)
    yield "model predicts", _top(probabilities, tokenizer)
    for name in wrong_answers.names():
        yield f"  {name}", _pull(name, encoded, scene, tokenizer)


def _output_lines(encoded: EncodedPrompt, loaded: LoadedModel, space: OutputSpace) -> Iterator[tuple[str, str]]:
    prompt = encoded.prompt
    outputs = widened(pass_for(loaded).forward([(encoded.ids,)]).logits)
    scene = output_scene([encoded], outputs, space)
    yield prompt.id, f"template {prompt.template}, {len(encoded.ids)} tokens"
    yield "prompt", _bars(encoded.ids, loaded.tokenizer)
    yield "answer", prompt.answers[0]
    if prompt.wrong_answers:
        yield "wrong answer", prompt.wrong_answers[0]
    yield "model outputs", _outputs(outputs[0, 1:], space)
    for name in wrong_answers.names():
        yield f"  {name}", _output_pull(name, encoded, scene)


def _output_pull(name: str, encoded: EncodedPrompt, scene: OutputScene) -> str:
    try:
        wrong_answers.refuse_undefined(wrong_answers.get(name), [encoded], scene.space)
    except BadInput as error:
        return f"undefined: {error}"
    target = output_targets.target_of(name, scene)
    if isinstance(target, TowardsOutputs):
        return _outputs(target.values[0, 1:], scene.space)
    return "the squared difference between the outputs of answer and wrong answer"


def _outputs(values: Float[Tensor, "pos value"], space: OutputSpace) -> str:
    """A value per position: the number, the symbol with its output, or all outputs where none stands out."""
    if not space.symbols:
        return " ".join(f"{value:.4g}" for value in values[:, 0].tolist())
    written = [
        " ".join(f"{symbol}:{value:.2f}" for symbol, value in zip(space.symbols, row, strict=True) if value >= 0.005)
        for row in values.tolist()
    ]
    return " | ".join(written)


def _pull(name: str, encoded: EncodedPrompt, scene: Scene, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the definition `name` asks of the model."""
    definition = wrong_answers.get(name)
    try:
        wrong_answers.refuse_undefined(definition, [encoded])
    except BadInput as error:
        if definition.needs_meaning:
            return "shown with --embedding-model"
        return f"undefined: {error}"
    target: Target = definition.define(scene)
    if target.tokens is not None:
        return _with_share(target.tokens[0], torch.softmax(scene.logits[0], 0), tokenizer)
    leaf = scene.logits.unsqueeze(1).clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(target(leaf).sum(), leaf)
    # of a cross-entropy the gradient is prediction minus target
    asked = torch.softmax(scene.logits[0], 0) - gradient[0, 0]
    return f"a distribution: {_top(asked, tokenizer, 3)}"


def _with_share(tokens: TokenSet, probabilities: Float[Tensor, " vocab"], tokenizer: PreTrainedTokenizerBase) -> str:
    shown = " ".join(_quoted(token, tokenizer) for token in tokens[:SHOWN])
    rest = f" and {len(tokens) - SHOWN} more" if len(tokens) > SHOWN else ""
    return f"{shown}{rest} ({_percent(float(probabilities[list(tokens)].sum()))})"


def _top(probabilities: Float[Tensor, " vocab"], tokenizer: PreTrainedTokenizerBase, count: int = TOP) -> str:
    best = torch.topk(probabilities, min(count, len(probabilities)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return ", ".join(f"{_quoted(token, tokenizer)} {_percent(share)}" for token, share in pairs)


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 else f"{share:.1g}"


def _quoted(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    return repr(str(tokenizer.decode([token])))


def _bars(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return "|".join(str(tokenizer.decode([token])).replace("\n", "\\n") for token in ids)


def _print(label: str, text: str, console: Console) -> None:
    wide = max(console.width - 1, LABEL + 20)
    indent = " " * LABEL
    lines = textwrap.wrap(
        f"{label + ' ':<{LABEL}}{text}",
        wide,
        subsequent_indent=indent,
        drop_whitespace=False,
        break_on_hyphens=False,
    )
    for line in lines:
        console.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)
