"""The slow judge of the fast path: one prompt at a time, float64, plain autograd through the library's modules.

Nothing is shared with the engine but the definitions of targets and the names of parts: each sequence of an example is
run by itself, weight gradients are formed by autograd as full matrices, and slices are cut out of those.

The library rounds to float32 inside of RMS norms and of softmax whatever the model's type; here both are computed in
float64, by the same formulas, so that what is compared is not the library's rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from gbcd.models.load import LoadedModel
from gbcd.models.packing import Example
from gbcd.models.spec import MapSpec, NormSpec
from gbcd.wrong_answers.losses import Target

#: Models whose norms of queries and keys see heads before positions.
_HEADS_FIRST = ("gemma3_text",)

#: What stands for the input of a module in a reference, by the module's path: rows by position.
Inputs = Mapping[str, Float[Tensor, "pos d_in"]]


class Oracle:
    """A float64 copy of a model with trainable weights and, where they were one, embedding and unembedding apart."""

    def __init__(self, loaded: LoadedModel) -> None:
        """Copy the model of `loaded`."""
        self._spec, self._n_tokens = loaded.spec, loaded.n_tokens
        self.model: Any = copy.deepcopy(loaded.model).double().requires_grad_(True)
        if self._spec.embedding.tied:
            head = self.model.get_submodule(self._spec.embedding.unembed)
            head.weight = nn.Parameter(head.weight.detach().clone())
        for norm in self._spec.norms:
            module = self.model.get_submodule(norm.module)
            if norm.kind == "rms":
                module.forward = partial(_rms, module, norm.offset)
        if not self._spec.reads_every_token:
            ALL_ATTENTION_FUNCTIONS.register("gbcd_oracle", _attention)
            self.model.config._attn_implementation = "gbcd_oracle"

    def logits(self, sequence: Sequence[int]) -> Float[Tensor, "pos vocab"]:
        """Logits of one sequence at every position, with graph."""
        ids = torch.tensor([list(sequence)], device=self.model.device)
        return self.model(input_ids=ids).logits[0, :, : self._n_tokens]

    def gradients(self, example: Example, target: Target) -> dict[str, Tensor]:
        """Weight gradient of each component of the loss summed over the example's sequences, `W` as `[in, out]`."""
        self.model.zero_grad(set_to_none=True)
        if self._spec.reads_every_token:
            answers = torch.cat([self.logits(sequence) for sequence in example])
        else:
            answers = torch.stack([self.logits(sequence)[-1] for sequence in example])
        target(answers.unsqueeze(0)).sum().backward()
        found: dict[str, Tensor] = {}
        for one in self._spec.maps:
            found.update(_slices(one, _matrix(self.model.get_submodule(one.module), "grad")))
        for norm in self._spec.norms:
            found[norm.component] = self.model.get_submodule(norm.module).weight.grad
        tables = {name: self.model.get_submodule(module).weight.grad for name, module in self._tables().items()}
        if self._spec.embedding.tied:
            tables["embed.tied"] = tables["embed.token"] + tables["unembed"]
        return found | tables

    def weights(self) -> dict[str, Tensor]:
        """Weights of each component, in the layout of `gradients`."""
        found: dict[str, Tensor] = {}
        for one in self._spec.maps:
            found.update(_slices(one, _matrix(self.model.get_submodule(one.module), "data")))
        for norm in self._spec.norms:
            found[norm.component] = self.model.get_submodule(norm.module).weight.data + norm.offset
        found |= {name: self.model.get_submodule(module).weight.data for name, module in self._tables().items()}
        return found | ({"embed.tied": found["embed.token"]} if self._spec.embedding.tied else {})

    def inputs(self, sequence: Sequence[int]) -> dict[str, Float[Tensor, "pos d_in"]]:
        """What every module with a weight reads: of a norm the normalised input, of a table one-hot rows."""
        found: dict[str, Tensor] = {}
        embedding = self._spec.embedding
        norms = {norm.module: norm for norm in self._spec.norms}
        paths = [*(one.module for one in self._spec.maps), *norms, embedding.unembed]

        def record(path: str, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].detach()
            if path in norms:
                x = self._by_position(norms[path], _normalised(module, norms[path], x))
            found[path] = x.reshape(len(sequence), -1)

        with torch.no_grad(), ExitStack() as stack:
            for path in paths:
                hook = self.model.get_submodule(path).register_forward_hook(partial(record, path))
                stack.callback(hook.remove)
            self.logits(sequence)
        rows = {embedding.token: torch.tensor(list(sequence))}
        if embedding.position is not None:
            rows[embedding.position] = torch.arange(len(sequence)) + embedding.first_position
        for path, index in rows.items():
            size = len(self.model.get_submodule(path).weight)
            found[path] = nn.functional.one_hot(index, size).double()
        return found

    @contextmanager
    def compared(self, reference: Inputs) -> Generator[None]:
        """Within this context gradients are those of `X - X'`; values are as before. X' is that of `inputs`, or a
        mean."""
        embedding = self._spec.embedding
        norms = {norm.module: norm for norm in self._spec.norms}
        with ExitStack() as stack:
            for path, other in reference.items():
                module = self.model.get_submodule(path)
                if path in norms:
                    hook = partial(self._without_scale, other, norms[path])
                else:
                    scale = embedding.scale if path == embedding.token else 1.0
                    as_stored = path in (embedding.token, embedding.position) or isinstance(module, Conv1D)
                    hook = partial(_without, other.double() * scale, as_stored)
                stack.callback(module.register_forward_hook(hook).remove)
            yield

    def _tables(self) -> dict[str, str]:
        embedding = self._spec.embedding
        tables = {"embed.token": embedding.token, "unembed": embedding.unembed}
        if embedding.position is not None:
            tables["embed.position"] = embedding.position
        return tables

    def _by_position(self, norm: NormSpec, x: Tensor) -> Tensor:
        is_heads_first = x.ndim == 4 and self.model.config.model_type in _HEADS_FIRST
        return x.transpose(1, 2) if is_heads_first else x

    def _without_scale(self, other: Tensor, norm: NormSpec, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        weight = cast(Tensor, module.weight)
        usual = other.double()
        if output.ndim == 4:
            usual = usual.unflatten(1, (-1, len(weight)))
            is_heads_first = self.model.config.model_type in _HEADS_FIRST
            usual = usual[: output.shape[2 if is_heads_first else 1]]
            usual = usual.transpose(0, 1) if is_heads_first else usual
        else:
            usual = usual[: output.shape[-2]]
        # the value added is zero; its gradient takes that of the reference away from the weight's
        usual = usual * weight
        return output + (usual.detach() - usual)


def _rms(module: Any, offset: float, x: Tensor) -> Tensor:
    return _rms_normalised(module, x) * (module.weight + offset)


def _rms_normalised(module: Any, x: Tensor) -> Tensor:
    eps = getattr(module, "variance_epsilon", None) or module.eps
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _normalised(module: Any, norm: NormSpec, x: Tensor) -> Tensor:
    if norm.kind == "rms":
        return _rms_normalised(module, x)
    return nn.functional.layer_norm(x, module.normalized_shape, eps=module.eps)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The library's eager attention without its rounding to float32; a function of its attention interface."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scaling = options.get("scaling") or query.shape[-1] ** -0.5
    scores = query @ key.transpose(2, 3) * scaling
    if (cap := options.get("softcap")) is not None:
        scores = cap * torch.tanh(scores / cap)
    length = query.shape[2]
    distance = torch.arange(length).unsqueeze(1) - torch.arange(length)
    window = options.get("sliding_window") or length
    hidden = (distance < 0) | (distance >= window)
    pattern = scores.masked_fill(hidden.to(scores.device), -torch.inf).softmax(-1)
    return (pattern @ value).transpose(1, 2).contiguous(), None


def _matrix(module: nn.Module, which: str) -> Float[Tensor, "d_in d_out"]:
    weight = cast(nn.Parameter, module.weight)
    values = cast(Tensor, weight.grad if which == "grad" else weight.data)
    return values if isinstance(module, Conv1D) else values.T


def _slices(one: MapSpec, matrix: Float[Tensor, "d_in d_out"]) -> dict[str, Tensor]:
    pieces = matrix.chunk(len(one.components), 1 if one.axis == "out" else 0)
    return dict(zip(one.components, pieces, strict=True))


def _without(
    other: Float[Tensor, "pos d_in"], as_stored: bool, module: nn.Module, inputs: Any, output: Tensor
) -> Tensor:
    weight = cast(Tensor, module.weight)
    usual = other[: output.shape[-2]] @ (weight if as_stored else weight.T)
    return output + (usual.detach() - usual).view(output.shape)
