"""How well a model solves the four language tasks on held-out prompts, and in which layers.

`measure` gives the figures of the model card. `without_layer` repeats the accuracy with every head and MLP of one
layer replaced by its mean over the prompts: a task whose accuracy survives without a layer does not need that layer,
and one that falls in several layers has a circuit that spans them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from gbcd.prompting.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures over prompts of one task.

    Attributes:
        prompts: how many.
        accuracy: share whose most likely next token is a right answer.
        above_wrong: share where the best right answer has a higher logit than every wrong one.
        probability_difference: mean of the probability of all right answers less that of all wrong ones.
    """

    prompts: int
    accuracy: float
    above_wrong: float
    probability_difference: float


def measure(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> Quality:
    """Read `prompts` and compare the next token with the answers."""
    right = above = difference = 0.0
    for some, ids in _batches(tokenizer, prompts):
        logits = next_token_logits(model, ids)
        for prompt, row in zip(some, logits, strict=True):
            answers, wrong = _ids(tokenizer, prompt.answers), _ids(tokenizer, prompt.wrong_answers)
            probabilities = row.softmax(-1)
            right += float(int(row.argmax()) in answers)
            above += float(row[answers].max() > row[wrong].max())
            difference += float(probabilities[answers].sum() - probabilities[wrong].sum())
    n = len(prompts)
    return Quality(n, right / n, above / n, difference / n)


def without_layer(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> list[Quality]:
    """Quality with all heads and the MLP of one layer at their mean, for each layer in turn.

    The mean is over the prompts of the same template, position by position: it keeps what the wording alone says and
    removes what this prompt says. Give a few dozen prompts a template at least.
    """
    by_template: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_template[prompt.template].append(prompt)
    found: list[Quality] = []
    for layer in range(model.config.n_layer):
        block = f"transformer.h.{layer}"
        parts: list[Quality] = []
        for group in by_template.values():
            heads, mlp = (model.get_submodule(f"{block}.{part}.c_proj") for part in ("attn", "mlp"))
            with _mean_output(heads), _mean_output(mlp):
                parts.append(measure(model, tokenizer, group))
        found.append(_together(parts))
    return found


@torch.no_grad()
def next_token_logits(model: GPT2LMHeadModel, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch vocab"]:
    """Logits after the last position."""
    return model(input_ids=ids, logits_to_keep=1).logits[:, -1]


@contextmanager
def _mean_output(module: nn.Module) -> Generator[None]:
    def replace(
        _: nn.Module, __: tuple[Tensor, ...], output: Float[Tensor, "batch pos d"]
    ) -> Float[Tensor, "batch pos d"]:
        return output.mean(0, keepdim=True).expand_as(output)

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _batches(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], size: int = 256
) -> Iterator[tuple[list[Prompt], Int[Tensor, "batch pos"]]]:
    """Prompts of one length together, so that no padding is needed."""
    by_length: dict[int, list[tuple[Prompt, list[int]]]] = defaultdict(list)
    for prompt in prompts:
        ids = tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
        by_length[len(ids)].append((prompt, ids))  # pyright: ignore[reportArgumentType]
    for group in by_length.values():
        for start in range(0, len(group), size):
            some = group[start : start + size]
            yield [prompt for prompt, _ in some], torch.tensor([ids for _, ids in some])


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    return [row[0] for row in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]  # pyright: ignore[reportGeneralTypeIssues]


def _together(parts: Sequence[Quality]) -> Quality:
    n = sum(part.prompts for part in parts)

    def mean(field: str) -> float:
        return sum(part.prompts * getattr(part, field) for part in parts) / n

    return Quality(n, mean("accuracy"), mean("above_wrong"), mean("probability_difference"))
