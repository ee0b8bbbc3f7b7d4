"""What is to be said of a prompt: its tokens, answers, what the model predicts, what each definition pulls towards.

Every line is a label and pieces that a narrow window must not break: a token with its bar, an answer with its
probability. For a compiled program answers, outputs and targets are a value per position after BOS.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gbcd import tasks, wrong_answers
from gbcd.engine.engine import loss_context, packed_for
from gbcd.engine.gram import widened
from gbcd.errors import BadInput, own_code
from gbcd.evaluation.metrics import metric_for
from gbcd.models import load as models
from gbcd.models.load import LoadedModel
from gbcd.printing import counted
from gbcd.prompting.notes import Notes
from gbcd.prompting.outputs import OutputSpace, space_of
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.special_tokens import Bos
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.wrong_answers import LossContext, meaning, output_targets
from gbcd.wrong_answers.losses import Target, TokenSet, set_logits
from gbcd.wrong_answers.output_targets import OutputContext, TowardsOutputs, output_context

#: The model's own predictions that are listed.
TOP = 5

#: Tokens of a set that are written out.
SHOWN = 6


class Line(NamedTuple):
    """A label, and what stands beside it in pieces."""

    label: str
    pieces: list[str]


def default_model(task: str | None) -> str:
    """The model that `task` is shown on where none is named: its own, or the reference model.

    Raises:
        BadInput: there is no such task.
    """
    return (tasks.get(task).model if task is not None else None) or models.REFERENCE


def chosen(
    loaded: LoadedModel, task: str | None, file: str | None, n: int, seed: int, bos: Bos = "auto"
) -> list[Prompt]:
    """`n` prompts of a task, or the first `n` of a file, of which every line is checked.

    Raises:
        BadInput: neither or both of task and file, fewer than one prompt, or prompts that cannot be used.
    """
    if (task is None) == (file is None):
        raise BadInput("say what to show, one of both: a task (gbcd show ioi) or a file (gbcd show --prompts FILE)")
    if n < 1:
        raise BadInput(f"{n} prompts were asked for; ask for at least 1")
    if task is not None:
        return tasks.draw(task, loaded.tokenizer, n, seed)
    read = loaded.check(str(file), bos=bos)
    return list(read.read(range(min(n, len(read)))))


def described(
    prompts: Sequence[Prompt], loaded: LoadedModel, embedding_model: str | None, bos: Bos = "auto"
) -> Iterator[list[Line]]:
    """What the model adds to every text, the lines of each prompt, and how many of them the model solves.

    With an `embedding_model` the answer farthest in meaning is shown, among the answers of these prompts; a study
    chooses among those of all its prompts.

    Raises:
        BadInput: a prompt that cannot be used.
    """
    space = space_of(loaded.tokenizer)
    if embedding_model is not None and space is None:
        prompts = meaning.with_farthest(prompts, meaning.load_embedder(embedding_model))
    encoded, notes, readings = loaded.encode(prompts, bos), Notes(loaded.tokenizer), list[_Reading]()
    yield [Line(name.replace("_", " "), _words(fact)) for name, fact in loaded.facts(bos).items()]
    for one in encoded:
        logits = widened(loaded.decoder.run(packed_for(loaded, [(one.ids,)])).logits)
        if space is None:
            readings.append(_reading(one, logits[:, 0]))
            yield list(_lines(one, logits[:, 0], loaded))
        else:
            yield list(_output_lines(one, logits, loaded, space))
    notes.add(encoded)
    yield [*_solved(encoded, readings), *(Line("note", _words(sentence)) for sentence in notes.sentences())]


class _Reading(NamedTuple):
    """How a model does on a prompt: the metric, whether an answer is its first choice, whether right is above wrong."""

    metric: float
    is_first: bool
    is_above: bool | None


def _reading(encoded: EncodedPrompt, logits: Float[Tensor, "1 vocab"]) -> _Reading:
    name = _metric_name(encoded)
    value = float(metric_for(name, [encoded], logits.device)(logits, [0]))
    above = None
    if encoded.wrong_ids:
        above = float(set_logits(logits, [encoded.answer_ids]) - set_logits(logits, [encoded.wrong_ids])) > 0
    return _Reading(value, int(logits.argmax()) in encoded.answer_ids, above)


def _solved(encoded: Sequence[EncodedPrompt], readings: Sequence[_Reading]) -> Iterator[Line]:
    if not readings:
        return
    with_wrong = [one.is_above for one in readings if one.is_above is not None]
    said = [f"first choice right in {sum(one.is_first for one in readings)} of {len(readings)}"]
    if with_wrong:
        said.insert(0, f"answer above wrong answer in {sum(with_wrong)} of {len(with_wrong)}")
    if len(names := {_metric_name(one) for one in encoded}) == 1:
        mean = sum(one.metric for one in readings) / len(readings)
        said.append(f"mean {names.pop().replace('_', ' ')} {mean:.3g}")
    yield Line("solved", _words("; ".join(said)))


def _metric_name(encoded: EncodedPrompt) -> str:
    return tasks.metric_of(encoded.prompt.task, bool(encoded.wrong_ids))


def _lines(encoded: EncodedPrompt, logits: Float[Tensor, "1 vocab"], loaded: LoadedModel) -> Iterator[Line]:
    tokenizer = loaded.tokenizer
    context = loss_context([encoded], logits, loaded)
    probabilities = torch.softmax(logits[0], 0)
    yield _title(encoded)
    yield Line("prompt", _bars(encoded.ids, tokenizer))
    if encoded.twin_ids is not None:
        yield Line("twin", _bars(encoded.twin_ids, tokenizer))
    if encoded.counterfactual_ids is not None:
        yield Line("counterfactual", _bars(encoded.counterfactual_ids, tokenizer))
        n, own = len(encoded.counterfactual_ids), len(encoded.ids)
        if n != own:
            yield Line("", _words(f"(counterfactual: {n} tokens, prompt {own}: not used)"))
    yield Line("answer", _shares(encoded.answer_ids, probabilities, tokenizer))
    if encoded.wrong_ids:
        yield Line("wrong answer", _shares(encoded.wrong_ids, probabilities, tokenizer))
    yield Line("model predicts", _top(probabilities, tokenizer))
    for name in wrong_answers.names():
        yield Line(f"  {name}", _pull(name, encoded, context, tokenizer))


def _output_lines(
    encoded: EncodedPrompt, outputs: Float[Tensor, "1 pos value"], loaded: LoadedModel, space: OutputSpace
) -> Iterator[Line]:
    prompt = encoded.prompt
    context = output_context([encoded], outputs, space)
    yield _title(encoded)
    yield Line("prompt", _bars(encoded.ids, loaded.tokenizer))
    yield Line("answer", _words(prompt.answers[0]))
    if prompt.wrong_answers:
        yield Line("wrong answer", _words(prompt.wrong_answers[0]))
    yield Line("model outputs", _outputs(outputs[0, 1:], space))
    for name in wrong_answers.names():
        yield Line(f"  {name}", _output_pull(name, encoded, context))


def _title(encoded: EncodedPrompt) -> Line:
    tokens = counted(len(encoded.ids), "token")
    return Line(encoded.prompt.id, _words(f"template {encoded.prompt.template}, {tokens}"))


def _output_pull(name: str, encoded: EncodedPrompt, context: OutputContext) -> list[str]:
    try:
        wrong_answers.refuse_undefined(wrong_answers.get(name), [encoded], context.space)
    except BadInput as error:
        return _words(f"undefined: {error}")
    target = output_targets.target_of(name, context)
    if isinstance(target, TowardsOutputs):
        return _outputs(target.values[0, 1:], context.space)
    return _words("the squared difference between the outputs of answer and wrong answer")


def _outputs(values: Float[Tensor, "pos value"], space: OutputSpace) -> list[str]:
    """A value per position: the number, the symbol with its output, or all outputs where none stands out."""
    if not space.symbols:
        return _words(" ".join(f"{value:.4g}" for value in values[:, 0].tolist()))
    written = [
        " ".join(f"{symbol}:{value:.2f}" for symbol, value in zip(space.symbols, row, strict=True) if value >= 0.005)
        for row in values.tolist()
    ]
    return _joined(written, " | ")


def _pull(name: str, encoded: EncodedPrompt, context: LossContext, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What the definition `name` asks of the model."""
    definition = wrong_answers.get(name)
    try:
        wrong_answers.refuse_undefined(definition, [encoded])
    except BadInput as error:
        return _words("shown with --embedding-model" if definition.needs_meaning else f"undefined: {error}")
    with own_code(f"wrong answer {name!r}", definition.define):
        target: Target = definition.define(context)
    predicted = torch.softmax(context.logits[0], 0)
    if target.tokens is not None:
        return _shares(target.tokens[0], predicted, tokenizer)
    leaf = context.logits.unsqueeze(1).clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(target(leaf).sum(), leaf)
    # of a cross-entropy the gradient is prediction minus target
    return ["a ", "distribution: ", *_top(predicted - gradient[0, 0], tokenizer, 3)]


def _shares(tokens: TokenSet, probabilities: Float[Tensor, " vocab"], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Tokens of a set, each with its probability, and that of all."""
    shown = [_share(token, float(probabilities[token]), tokenizer) for token in tokens[:SHOWN]]
    if len(tokens) > SHOWN:
        together = float(probabilities[list(tokens)].sum())
        shown.append(f"and {len(tokens) - SHOWN} more (all: {together:.3g})")
    return _joined(shown, ", ")


def _top(probabilities: Float[Tensor, " vocab"], tokenizer: PreTrainedTokenizerBase, count: int = TOP) -> list[str]:
    best = torch.topk(probabilities, min(count, len(probabilities)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return _joined([_share(token, share, tokenizer) for token, share in pairs], ", ")


def _share(token: int, probability: float, tokenizer: PreTrainedTokenizerBase) -> str:
    return f"{str(tokenizer.decode([token]))!r} ({probability:.3g})"


def _bars(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return _joined([str(tokenizer.decode([token])).replace("\n", "\\n") for token in ids], "|")


def _words(text: str) -> list[str]:
    return _joined(text.split(" "), " ")


def _joined(pieces: Sequence[str], separator: str) -> list[str]:
    """Every piece with what sets it apart from the next."""
    return [*(f"{piece}{separator}" for piece in pieces[:-1]), *pieces[-1:]]
